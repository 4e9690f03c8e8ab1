"""How long a group with VGG-16's 59 MB of weights takes to start, and what the leader holds for it.

    mpirun --with-ft ulfm -n 9 python jobs/measure/start.py

The setup goes along a chain of all workers; timed is from the first program to the last READY, with
all ranks there already.
"""

from __future__ import annotations

import os
import resource
import time

from mpi4py import MPI

from mpicoded import Group
from mpicoded.models import build


def main() -> None:
    """Print seconds, and the leader's largest memory above that before the start."""
    comm = MPI.COMM_WORLD
    model = build("vgg16-features", {})
    comm.Barrier()
    before = _peak()
    began = time.perf_counter()
    how = {"split": "tiles", "tiles": (4, 2), "stages": ("23", "30")}
    with Group(comm, model, (3, 224, 224), k=8, **how) as group:
        if group is None:
            print(f"r{comm.Get_rank()} peak {_peak():.0f} MB", flush=True)
            return
        took = time.perf_counter() - began
        weights = sum(p.numel() for p in model.parameters()) * 4 / 1e6
        print(
            f"weights {weights:.0f} MB, {comm.Get_size() - 1} workers, {os.cpu_count()} cores: "
            f"ready in {took:.2f} s; the leader's peak memory rose by {_peak() - before:.0f} MB"
        )


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
