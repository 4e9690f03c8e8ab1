"""The hosts that a batch system has given to this job, and how to ask whether they answer.

The first start leaves them to mpirun, which reads the same; they are named to leave one out.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpicoded.launch.target import Host

LIMIT = 10.0  # s that scontrol may take
SRUN = "srun --overlap --nodes=1 --ntasks=1 --quiet --nodelist"


def allocated_hosts(env: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """Return the hosts of this Slurm or PBS job; none outside of one."""
    if "SLURM_JOB_NODELIST" in env:
        counts = tasks(env.get("SLURM_TASKS_PER_NODE", ""))
        names = _slurm_names(env["SLURM_JOB_NODELIST"])
        return tuple(Host(n, c) for n, c in zip(names, counts, strict=False))
    if "PBS_NODEFILE" in env:
        lines = Path(env["PBS_NODEFILE"]).read_text().split()
        return tuple(Host(name, count) for name, count in Counter(lines).items())
    return ()


def allocated_agent(env: Mapping[str, str] = os.environ) -> str | None:
    """Return what starts a command on one of these hosts, None for ssh."""
    return SRUN if "SLURM_JOB_NODELIST" in env else None


def tasks(text: str) -> Sequence[int]:
    """Slurm's short form, spelled out: "2(x3),1" is [2, 2, 2, 1]."""
    pairs = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in pairs for _ in range(int(times or 1))]


def _slurm_names(nodelist: str) -> list[str]:
    try:
        words = ["scontrol", "show", "hostnames", nodelist]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split()
