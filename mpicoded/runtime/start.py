"""MPI_Init and MPI_Finalize, which wait for all ranks, within limits; a foreign mpirun."""

from __future__ import annotations

import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import NoReturn

from mpi4py import MPI

from mpicoded.errors import JobError
from mpicoded.paths import read_text
from mpicoded.processes import START_LIMIT
from mpicoded.runtime.backoff import Stopwatch
from mpicoded.runtime.environment import PROCESSES, missing, parent_died, started
from mpicoded.runtime.exit import end_job

END_LIMIT = 10.0
TICK = 0.1  # s between two looks at a clock
LARGEST = 1 << 20  # bytes of a job file
# Python's reader of TOML takes hours for a hostile file, and ours is none of a worker's imports.
GIVEN = re.compile(r"^[^#\n]*?\bstart_limit[ \t]*=[ \t]*([\w.+-]+)", re.MULTILINE)


def start_limit(words: Sequence[str]) -> float:
    """Return [runtime] start_limit of a command line and its job file; no error here."""
    limit = None
    for word in words:
        name, equals, value = word.removeprefix("--set=").partition("=")
        if equals and name.strip() == "runtime.start_limit":
            limit = value
    try:
        if limit is None:
            paths = (Path(word) for word in words if not word.startswith("-"))
            path = next(path for path in paths if path.is_file())
            limit = GIVEN.findall(read_text(path, LARGEST))[0]
        seconds = float(limit)
    except (OSError, ValueError, LookupError, StopIteration):
        return START_LIMIT
    return seconds if 0 < seconds < inf else START_LIMIT


@contextmanager
def watch(limit: float, text: Callable[[float], str]) -> Iterator[None]:
    """End the whole job, saying ``text``, unless the block is left within ``limit`` seconds."""
    left, waited = threading.Event(), Stopwatch()

    def look() -> None:
        while not left.wait(TICK):
            if parent_died():
                os._exit(1)
            if waited.seconds() > limit:
                end_job(text(limit))

    threading.Thread(target=look, name="watch", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def init(limit: float) -> MPI.Comm:
    """Initialize MPI, which waits for all ranks, within ``limit`` seconds; return COMM_WORLD.

    JobError if another MPI's mpirun started this process.
    """
    if MPI.get_vendor()[0] == "MPICH" and started()[0] == PROCESSES[0][0]:
        refuse_foreign()  # it would abort the job in words of its own
    with watch(limit, partial(_late, "MPI_Init")):
        # mpi4py's own call would keep that thread from running
        ctypes.CDLL(MPI.__file__).MPI_Init_thread(
            None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int())
        )
    for comm in (MPI.COMM_WORLD, MPI.COMM_SELF):
        comm.Set_errhandler(MPI.ERRORS_RETURN)  # mpi4py makes exceptions of what is returned
    if MPI.COMM_WORLD.Get_size() == 1:
        refuse_foreign()
    return MPI.COMM_WORLD


def finalize(status: int) -> NoReturn:
    """Finalize MPI, which waits for all ranks, within a limit, and exit with ``status``."""
    if MPI.Is_initialized():
        with watch(END_LIMIT, partial(_late, "MPI_Finalize")):
            ctypes.CDLL(MPI.__file__).MPI_Finalize()
    sys.exit(status)  # after os._exit MPICH's mpirun ends with 0


def _late(call: str, limit: float) -> str:
    size, rank = started()[1:]
    gone, host = missing(), os.uname().nodename
    who = f"ranks {gone} of {size} on {host}" if gone else f"one of {size} ranks besides {rank}"
    return (
        f"error: {who} did not come to {call} within {limit:g} s: dead, stopped or cut off; look "
        "at its last words and its host, or raise start_limit in [runtime]"
    )


def refuse_foreign() -> None:
    """Raise JobError in the first of several processes that are each alone; the others leave."""
    name, size, rank = started()
    if size < 2:
        return
    if rank > 0:
        time.sleep(END_LIMIT / 2)  # the first one is to be heard, and ends the job
        os._exit(2)
    library = " ".join(MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\x00").split())
    raise JobError(
        f"mpirun started {size} processes ({name} = {size}), but each finds itself alone, rank 0 "
        f"of 1: that mpirun is not the one of mpi4py's library, {library}; use its own, or "
        "python -m mpicoded launch, which finds it"
    )
