"""Strips that exchange halos on real ranks against the unsplit model: VGG-16 and ResNet-18.

    mpirun --with-ft ulfm -n 9 python jobs/measure/neighbours.py [size]

k = 2 … 8 strips of rows of images of size x size, one a worker; per k the largest relative error of
three answers with each format of halos, and the milliseconds of the middle one.
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
            for wire in ("float32", "float16", "int8"):
                how = {"split": "height", "exchange": "neighbours", "deadline": float("inf")}
                with Group(comm, model, (3, size, size), k=k, wire=wire, **how) as group:
                    if group is None:
                        continue
                    answers = [group.infer(x) for x in images]
                    stages = len(range(*group.plan.segments[0]))
                with torch.inference_mode():
                    pairs = [(a.output, model(x)) for a, x in zip(answers, images, strict=True)]
                error = max(float((y - z).abs().max() / z.abs().max()) for y, z in pairs)
                took = 1e3 * median(answer.latency for answer in answers)
                line = f"{name:9} k {k}  {wire:7}  stages {stages:2}  error {error:.1e}"
                print(f"{line}  {took:.0f} ms", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
