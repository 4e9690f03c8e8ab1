"""What splitting costs: VGG-16 features at 224x224 on 8 workers against one process.

    mpirun --with-ft ulfm -n 9 python jobs/measure/split.py [repeats]

Both run in turn in one job, the unsplit model in the leader with as many threads as there are
cores while the workers wait. Printed is time / (unsplit time x compute redundancy of the plan): 1
means that every core was busy with the plan's FLOPs as efficiently as torch alone keeps it.
"""

from __future__ import annotations

import os
import sys
import time
from statistics import median

import torch
from mpi4py import MPI

from mpicoded import Group
from mpicoded.models import build

PLAN = {"split": "tiles", "tiles": (4, 2), "stages": ["16"]}  # to the third pool; the rest: leader


def main(repeats: int = 15) -> None:
    """Time both in turn and print the ratio."""
    torch.manual_seed(0)
    model = build("vgg16-features", {})
    cores = len(os.sched_getaffinity(0))
    x = torch.randn(1, 3, 224, 224)
    with Group(MPI.COMM_WORLD, model, (3, 224, 224), k=8, **PLAN) as group:
        if group is None:
            return
        torch.set_num_threads(cores)
        whole, split, ratios = [], [], []
        for repeat in range(repeats + 2):
            began = time.perf_counter()
            with torch.inference_mode():
                reference = model(x)
            middle = time.perf_counter()
            answer = group.infer(x)
            end = time.perf_counter()
            if repeat >= 2:  # the first ones warm up
                whole.append(middle - began)
                split.append(end - middle)
                ratios.append(split[-1] / (whole[-1] * (1 + group.plan.redundancy)))
        error = (answer.output - reference).abs().max() / reference.abs().max()
        print(group.plan.table(group.cluster))
        print(
            f"unsplit, {cores} threads: {1e3 * median(whole):.0f} ms; split: "
            f"{1e3 * median(split):.0f} ms; redundancy {1 + group.plan.redundancy:.3f}; ratio "
            f"{median(ratios):.3f} (median of {repeats}; {min(ratios):.3f} … {max(ratios):.3f}); "
            f"largest relative error {error:.1e}"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
