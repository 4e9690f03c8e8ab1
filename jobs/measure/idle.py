"""CPU that a waiting group burns, all ranks together.

    mpirun --with-ft ulfm -n 9 python jobs/measure/idle.py [seconds [repeats]]

Opens a group, answers one query, then waits; reads each rank's CPU time from /proc.
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

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of the processes so far."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS


def main(seconds: float = 10.0, repeats: int = 5) -> None:
    """Print the share of a core that all ranks burn."""
    comm = MPI.COMM_WORLD
    pids = comm.allgather(os.getpid())
    with Group(comm, build("lenet5", {}), (1, 32, 32), k=6, stages=["pool2"]) as group:
        if group is None:
            return
        group.infer(torch.zeros(1, 32, 32))
        time.sleep(2.0)
        shares = []
        for _ in range(repeats):
            before = cpu_seconds(pids)
            time.sleep(seconds)
            shares.append(100 * (cpu_seconds(pids) - before) / seconds)
        print(
            f"{len(pids)} waiting ranks burn {median(shares):.2f} % of one core "
            f"(median of {repeats}; {min(shares):.2f} … {max(shares):.2f})"
        )


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((float, int), sys.argv[1:], strict=False)))
