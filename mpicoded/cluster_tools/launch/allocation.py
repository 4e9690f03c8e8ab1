"""The hosts that a batch system has given to this job, and how to ask whether they answer.

The first start leaves them to mpirun, which reads the same; they are named to leave one out.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

from mpicoded.cluster_tools.launch.hostfile import MOST, check_name, check_ranks, read_lines
from mpicoded.cluster_tools.launch.machines import Host

LIMIT = 10.0  # s that scontrol may take
SRUN = "srun --overlap --nodes=1 --ntasks=1 --quiet --nodelist"
ALLOCATIONS = ("SLURM_JOB_ID", "PBS_NODEFILE", "LSB_JOBID", "COBALT_NODEFILE")


def allocated_hosts(env: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """Return the hosts of this Slurm or PBS job; none outside of one.

    JobError if the batch system's file is none, or a name could be read as an option.
    """
    if "SLURM_JOB_NODELIST" in env:
        counts = tasks(env.get("SLURM_TASKS_PER_NODE", ""))
        names = _slurm_names(env["SLURM_JOB_NODELIST"])
        return tuple(Host(n, c) for n, c in zip(names, counts, strict=False))
    if "PBS_NODEFILE" in env:
        path = Path(env["PBS_NODEFILE"])
        counted = Counter(word for line in read_lines(path) for word in line.split())
        check_ranks(1, len(counted))
        return tuple(Host(check_name(str(path), n), count) for n, count in counted.items())
    return ()


def alone(hosts: Sequence[Host]) -> bool:
    """True if all ranks run on one machine, as far as that is known."""
    found = hosts or allocated_hosts()
    return len(found) == 1 or not (found or any(name in os.environ for name in ALLOCATIONS))


def allocated_agent(env: Mapping[str, str] = os.environ) -> str | None:
    """Return the command that starts another on one of these hosts, None for ssh."""
    return SRUN if "SLURM_JOB_NODELIST" in env else None


def tasks(text: str) -> Sequence[int]:
    """Slurm's short form, spelled out: "2(x3),1" is [2, 2, 2, 1]."""
    pairs = re.findall(r"([0-9]{1,9})(?:\(x([0-9]{1,9})\))?", text)
    spelled = chain.from_iterable(repeat(int(count), int(times or 1)) for count, times in pairs)
    return list(islice(spelled, MOST))


def _slurm_names(nodelist: str) -> list[str]:
    check_name("SLURM_JOB_NODELIST", nodelist[:1])
    try:
        words = ["scontrol", "show", "hostnames", nodelist]
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [check_name("SLURM_JOB_NODELIST", name) for name in done.stdout.split()]
