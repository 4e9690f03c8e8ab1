"""Host files: one machine a line, as mpirun reads them (``pi3 slots=2``, ``# a comment``)."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from mpicoded.errors import JobError
from mpicoded.launch.target import Host

LINE = re.compile(r"(?P<name>[\w.-]+(?::[\w:.-]+)?)(?:\s+slots\s*=\s*(?P<slots>\S+))?")
WAY = "write `NAME slots=COUNT`, as in jobs/hostfile.example"


def read(path: Path) -> tuple[Host, ...]:
    """Return the hosts of a file, in its order: rank 0 runs on the first.

    Raises
    ------
    JobError
        One line: the file, the line and what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise JobError(f"{path}: there is no such hostfile; {WAY}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read as a hostfile: {error}") from None
    lines = ((i, line.partition("#")[0].strip()) for i, line in enumerate(text.splitlines(), 1))
    hosts = tuple(_host(f"{path}, line {i}", line) for i, line in lines if line)
    if not hosts:
        raise JobError(f"{path}: names no host; {WAY}")
    _check_distinct(path, hosts)
    return hosts


def _host(where: str, line: str) -> Host:
    found = LINE.fullmatch(line)
    if found is None:
        raise JobError(f"{where}: {line!r} is not understood; {WAY}")
    slots = found["slots"] or "1"
    if not slots.isdecimal() or int(slots) < 1:
        raise JobError(f"{where}: slots={slots} is no number of ranks; give 1 or more")
    return Host(found["name"], int(slots))


def _check_distinct(path: Path, hosts: tuple[Host, ...]) -> None:
    name, count = Counter(host.name for host in hosts).most_common(1)[0]
    if count > 1:
        slots = sum(host.slots for host in hosts if host.name == name)
        raise JobError(
            f"{path}: {name} stands there {count} times; give it one line, slots={slots}"
        )
