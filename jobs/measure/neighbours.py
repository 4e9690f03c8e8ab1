"""Strips that exchange halos on real ranks against the unsplit model: VGG-16 and ResNet-18.

    mpirun --with-ft ulfm -n 9 python jobs/measure/neighbours.py [size]

k = 2 … 8 strips of rows of images of size x size, one a worker; per k the largest relative error of
three answers and the milliseconds of the middle one.
"""

from __future__ import annotations

import sys
from statistics import median

import torch
from mpi4py import MPI

from mpicoded import Group
from mpicoded.models import build


def main(size: int = 64) -> None:
    """Print a line a network and k."""
    comm = MPI.COMM_WORLD
    for name in ("vgg16", "resnet18"):
        torch.manual_seed(0)
        model, images = build(name, {}).eval(), torch.randn(3, 1, 3, size, size)
        for k in range(2, comm.Get_size()):
            how = {"split": "height", "exchange": "neighbours", "deadline": float("inf")}
            with Group(comm, model, (3, size, size), k=k, **how) as group:
                if group is None:
                    continue
                answers = [group.infer(x) for x in images]
                stages = [range(*segment) for segment in group.plan.segments]
            with torch.inference_mode():
                pairs = [(a.output, model(x)) for a, x in zip(answers, images, strict=True)]
            error = max(float((y - z).abs().max() / z.abs().max()) for y, z in pairs)
            took = 1e3 * median(answer.latency for answer in answers)
            print(f"{name:9} k {k}  stages {len(stages[0]):2}  error {error:.1e}  {took:.0f} ms")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
