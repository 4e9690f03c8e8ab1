"""The hosts of a job: of a host file, or those that a batch system has given to it.

A host file names one machine a line, as mpirun reads it (``pi3 slots=2``, ``# a comment``). Hosts
of a batch system are left to mpirun, which reads the same, until one is to be left out.
"""

import os
import re
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

from mpicoded.cluster_tools.launch.machines import Host
from mpicoded.errors import JobError, short
from mpicoded.paths import read_text

# A name becomes a word of mpirun's and of ssh's command line: it must not read as an option.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
LINE = re.compile(r"(?P<name>[^\s=]+)(?:\s+slots\s*=\s*(?P<slots>\S+))?")
COUNT = re.compile(r"0*(?P<count>[1-9][0-9]{0,8})")
USAGE = "write `NAME slots=COUNT`, as in jobs/hostfile.example"
LARGEST = 1 << 20  # bytes of a hostfile
MOST = 4096  # hosts, and ranks of one start
LIMIT = 10.0  # s that scontrol may take
SRUN = "srun --overlap --nodes=1 --ntasks=1 --quiet --nodelist"
ALLOCATIONS = ("SLURM_JOB_ID", "PBS_NODEFILE", "LSB_JOBID", "COBALT_NODEFILE")


def read(path: Path) -> tuple[Host, ...]:
    """Return the hosts of a file, in its order; JobError names the file, the line and why."""
    lines = ((i, line.partition("#")[0].strip()) for i, line in enumerate(read_lines(path), 1))
    hosts = tuple(_host(f"{path}, line {i}", line) for i, line in lines if line)
    if not hosts:
        raise JobError(f"{path}: names no host; {USAGE}")
    _check_distinct(path, hosts)
    return hosts


def read_lines(path: Path) -> list[str]:
    """Return the lines of a small file; JobError if it is anything else."""
    try:
        return read_text(path, LARGEST).split("\n")
    except FileNotFoundError:
        why = "there is no such hostfile"
    except UnicodeDecodeError as error:
        why = f"is not text in UTF-8 (byte {error.start})"
    except OSError as error:
        why = f"cannot be read as a hostfile: {error.strerror}"
    raise JobError(f"{path}: {why}; {USAGE}")


def check_name(where: str, name: str) -> str:
    """Return the name of a host; JobError if it is none."""
    if NAME.fullmatch(name) is None:
        raise JobError(
            f"{where}: {short(name)} is no name of a host: letters, digits, '.', '_' and '-', a "
            "letter or digit first"
        )
    return name


def check_ranks(ranks: int, hosts: int) -> None:
    """Raise JobError where a start would have too many ranks or hosts."""
    for count, what in ((ranks, "ranks"), (hosts, "hosts")):
        if count > MOST:
            raise JobError(f"{count} {what} are too many: launch starts up to {MOST}")


def _host(where: str, line: str) -> Host:
    found = LINE.fullmatch(line)
    if found is None:
        raise JobError(f"{where}: {short(line)} is not understood; {USAGE}")
    name, slots = check_name(where, found["name"]), found["slots"] or "1"
    count = COUNT.fullmatch(slots)
    if count is None or int(count["count"]) > MOST:
        shown = slots if len(slots) < 20 else f"{slots[:16]}…"
        raise JobError(f"{where}: slots={shown} is no number of ranks; give 1 or more, to {MOST}")
    return Host(name, int(count["count"]))


def _check_distinct(path: Path, hosts: tuple[Host, ...]) -> None:
    check_ranks(1, len(hosts))
    name, count = Counter(host.name.lower() for host in hosts).most_common(1)[0]
    if count > 1:
        slots = sum(host.slots for host in hosts if host.name.lower() == name)
        why = f"{name} stands there {count} times; give it one line, slots={slots}"
        raise JobError(f"{path}: {why}")


def allocated_hosts(env: Mapping[str, str] = os.environ) -> tuple[Host, ...]:
    """Return the hosts of this Slurm or PBS job, none outside of one; JobError if they are bad."""
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
