"""Threads of a rank's computations."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

LOCAL_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")  # Open MPI's, MPICH's
CGROUPS = Path("/sys/fs/cgroup")


def use_threads(threads: int | str) -> None:
    """Compute with so many threads; "auto": this rank's share of the cores of its node."""
    torch.set_num_threads(own_share() if isinstance(threads, str) else threads)


def own_share() -> int:
    """Return the cores that this process may use, divided by the ranks of this job beside it."""
    local = next((int(os.environ[name]) for name in LOCAL_RANKS if name in os.environ), 1)
    cores = min(len(os.sched_getaffinity(0)), quota(CGROUPS))
    return max(1, cores // local)


def quota(root: Path) -> int:
    """Return how many cores a control group grants, rounded up; a large number without a limit."""
    try:
        most, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        most, period = _version_1(root / "cpu")
    limited = most.isdigit() and period.isdigit() and int(period) > 0
    return math.ceil(int(most) / int(period)) if limited else 1 << 16


def _version_1(folder: Path) -> tuple[str, str]:
    try:
        most, period = (folder / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
        return most.read_text().strip(), period.read_text().strip()
    except OSError:
        return "max", ""
