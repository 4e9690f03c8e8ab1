"""Leftovers of a start, and their removal by the next launcher after one that was killed.

A start has a folder in TMPDIR, and one of the same name in shared memory. The name says whose they
are: host and process namespace, boot, process id and start time of the launcher. So nothing of a
living launcher, of another machine or of another user is ever taken away.
"""

import os
import re
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mpicoded import processes
from mpicoded.processes import read, started

MARK = "MPICODED_LAUNCH"
MEMORY = Path("/dev/shm")
LIST = "shared-memory"  # in the folder: more files in MEMORY that its ranks have made
# What Open MPI and MPICH make there; whatever else a rank maps from there is not ours.
SHARED = re.compile(
    r"/dev/shm/((?:sm_segment|vader_segment|osc_|mpich_|psm2?_|ucx_)[^/\s]*)(?=\s|$)", re.MULTILINE
)
NAME = re.compile(r"mpicoded-(?P<place>\w+)-(?P<boot>\w+)-(?P<pid>\d+)-(?P<ticks>\d+)-\w+")
LEAVE = 5.0  # s that the ranks of a dead launcher have to leave by themselves
KILL_LIMIT = 15.0  # s; a process that waits for a disk for ever cannot be killed


def new_folder() -> Path:
    """Make the folder of a start, for its TMPDIR; its name is the start's mark."""
    # what a killed mpirun leaves there makes a later one with the same pid fail
    pid = os.getpid()
    return Path(tempfile.mkdtemp(prefix=f"mpicoded-{_place()}-{_boot()}-{pid}-{started(pid)}-"))


def new_memory(folder: Path) -> Path | None:
    """Make the folder in shared memory that belongs to a start; None where there can be none."""
    memory = MEMORY / folder.name
    try:
        memory.mkdir(mode=0o700)
    except OSError:
        return None
    return memory


def note(folder: Path, found: Iterable[int]) -> None:
    """Write down the shared memory that processes of a start use, to remove it with the folder."""
    names = {name for pid in found for name in SHARED.findall(read(pid, "maps").decode("latin-1"))}
    with suppress(OSError):
        names.difference_update(_listed(folder))
        if names:
            with (folder / LIST).open("a") as file:
                file.writelines(f"{name}\n" for name in sorted(names))


def remove(folder: Path) -> None:
    """Remove both folders of a start that has ended, and the shared memory that one lists."""
    with suppress(OSError):
        listed = _listed(folder)
        last = (folder / LIST).stat().st_mtime + 1 if listed else 0.0
        for path in (MEMORY / name for name in listed):
            with suppress(OSError):
                made = path.lstat()
                ours = made.st_uid == os.getuid() and stat.S_ISREG(made.st_mode)
                if ours and made.st_mtime <= last:  # a later one of that name is another job's
                    path.unlink()
    for each in (folder, MEMORY / folder.name):
        shutil.rmtree(each, ignore_errors=True)


def sweep() -> None:
    """Remove the leftovers of this user's dead launchers on this machine, their ranks too."""
    places = (Path(tempfile.gettempdir()), MEMORY)
    dead = {path.name: path for place in places for path in place.glob("mpicoded-*") if _dead(path)}
    for mark in dead:
        kill(mark, LEAVE)
    for name in dead:
        remove(places[0] / name)


def _dead(path: Path) -> bool:
    """True if a path is the folder of a start whose launcher, one of ours, is no more."""
    found = NAME.fullmatch(path.name)
    if found is None or found["place"] != _place():
        return False
    with suppress(OSError):
        made = path.lstat()
        ours = made.st_uid == os.getuid() and stat.S_ISDIR(made.st_mode)
        lives = found["boot"] == _boot() and started(int(found["pid"])) == int(found["ticks"])
        return ours and not lives
    return False


def pids(mark: str) -> list[int]:
    """Return every living process of a start on this machine."""
    wanted = f"{MARK}={mark}".encode()
    return [pid for pid in processes.pids() if wanted in processes.entries(pid)]


def kill(mark: str, grace: float) -> None:
    """End all processes of a start that have not left by themselves in ``grace`` seconds."""
    end = time.monotonic() + grace
    while pids(mark) and time.monotonic() < end:
        time.sleep(0.02)
    processes.kill_all(lambda: pids(mark), KILL_LIMIT)


def _listed(folder: Path) -> list[str]:
    """Return the names in the list; only such as could have been written there by us."""
    try:
        lines = (folder / LIST).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [line for line in lines if SHARED.fullmatch(f"/dev/shm/{line}")]


def _place() -> str:
    """Identify this host and process namespace among others that may share a folder with it."""
    return _short(f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}")


def _boot() -> str:
    return _short(Path("/proc/sys/kernel/random/boot_id").read_text())


def _short(text: str) -> str:
    return f"{zlib.crc32(text.encode()):08x}"
