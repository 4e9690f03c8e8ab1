"""Read this machine's processes from /proc; one that is gone, or not ours, shows nothing."""

import os
import signal
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")  # where mpirun tells a process its rank
START_LIMIT = 120.0  # s for all ranks to meet, where nothing else is said


def pids() -> list[int]:
    """Return every process."""
    return sorted(int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())


def read(pid: int, name: str) -> bytes:
    """Return a file of a process; nothing when it is gone, or not ours."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def entries(pid: int) -> list[bytes]:
    """Return the environment that a process was started with; a zombie has none."""
    return read(pid, "environ").split(b"\0")


def rank(pid: int) -> int | None:
    """Return the rank that mpirun gave a process, None if it is not one of its own."""
    for entry in entries(pid):
        name, _, value = entry.decode(errors="replace").partition("=")
        if name in RANK and value.isdecimal():
            return int(value)
    return None


def fields(pid: int) -> list[str]:
    """Return the state of a process (R, S, T, …), its parent, and the rest of its stat."""
    return read(pid, "stat").rpartition(b")")[2].decode().split()


def started(pid: int) -> int | None:
    """Return when a process was started, in ticks since boot; None if there is none."""
    found = fields(pid)
    return int(found[19]) if found and found[0] not in "ZX" else None


def kill_all(find: Callable[[], Collection[int]], limit: float) -> Collection[int]:
    """SIGKILL all that ``find`` returns until there are none, or ``limit`` s; return the rest."""
    end = time.monotonic() + limit
    while (left := find()) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return left
