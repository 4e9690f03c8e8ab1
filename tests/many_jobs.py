"""Ranks that stay and run one verb after another, for tests in which starting them takes the time.

    mpirun -n 9 python many_jobs.py FOLDER PID 0

The first ranks, as many as command ``i`` (``FOLDER/i.json``) asks for, have a communicator of their
own for it; rank 0 writes its :class:`Outcome` to ``FOLDER/i.out``. They end with the process PID.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from launching import MARK, Running

RAISED = 99  # status of a rank that ended by an exception
ORPHANED = -1  # of a worker whose leader died
LOOK = 0.02  # s between two looks for the next command


@dataclass(frozen=True)
class Outcome:
    """How a command ended: on rank 0, what all ranks printed, and whether a leader got to work."""

    status: int
    stdout: str
    stderr: str
    others: str
    started: bool
    seconds: float

    @property
    def output(self) -> str:
        return self.stdout + self.stderr + self.others


class LiveRanks:
    """Ranks under one mpirun, started with the first command, and anew after one that hung."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.n, self.count = folder, n, 0
        self.job: Running | None = None

    def run(self, n: int, *args: object, cwd: Path | None = None, **env: str) -> Outcome:
        """Run a command on the first n ranks; AssertionError if it does not end."""
        assert n <= self.n
        if self.job is None:
            words = [__file__, self.folder, str(os.getpid()), str(self.count)]
            self.job = Running(self.folder, self.n, words, env={"PYTHONDONTWRITEBYTECODE": "1"})
        env = {name: value for name, value in os.environ.items() if ours(name)} | env
        given, found = (self.folder / f"{self.count}.{end}" for end in ("json", "out"))
        write(given, {"n": n, "args": list(map(str, args)), "cwd": str(cwd or ""), "env": env})
        self.count += 1
        limit = time.monotonic() + 120
        while not found.exists():
            if self.job.process.poll() is not None or time.monotonic() > limit:
                text = self.job.text()
                self.close()
                raise AssertionError(f"{args} did not end:\n{text}")
            time.sleep(LOOK)
        return Outcome(**json.loads(found.read_text()))

    def close(self) -> None:
        if self.job is not None:
            self.job.kill()
        self.job = None


def ours(name: str) -> bool:
    return name.startswith("MPICODED_") and name != MARK


def write(path: Path, what: Any) -> None:
    """Write a file so that nobody finds a part of it."""
    path.with_suffix(".part").write_text(json.dumps(what))
    path.with_suffix(".part").rename(path)


def main(folder: Path, master: Path, first: int) -> None:
    from mpi4py import MPI

    rank = MPI.COMM_WORLD.Get_rank()
    for number in itertools.count(first):
        while not (folder / f"{number}.json").exists():
            if not master.exists():
                os._exit(1)
            time.sleep(LOOK)
        given = json.loads((folder / f"{number}.json").read_text())
        comm = MPI.COMM_WORLD.Split(0 if rank < given["n"] else MPI.UNDEFINED, rank)
        if comm != MPI.COMM_NULL and (outcome := run(comm, **given)):
            write(folder / f"{number}.out", asdict(outcome))


def run(comm: Any, n: int, args: list[str], cwd: str, env: dict[str, str]) -> Outcome | None:
    """Run one command on all ranks of ``comm``; rank 0 returns how it ended."""
    os.chdir(cwd or os.path.dirname(__file__))
    for name in filter(ours, list(os.environ)):
        del os.environ[name]
    os.environ.update(env)
    began = time.perf_counter()
    if comm.Get_rank() > 0:
        status, stdout, stderr = captured(lambda: work(comm, args))
        comm.gather(f"status {status}" * (status in (RAISED, ORPHANED)) + stdout + stderr)
        return None
    print(*args, flush=True)  # the last line that is seen if it hangs
    sys.argv = ["mpicoded", *args]
    with mock.patch("mpicoded.commands.run.Leader", wraps=leader_class()) as leader:
        status, stdout, stderr = captured(lambda: work(comm, args))
    others = "".join(comm.gather("") or [])
    seconds = time.perf_counter() - began
    return Outcome(status, stdout, stderr, others, leader.called, seconds)


def work(comm: Any, args: list[str]) -> int:
    """Run a verb as its command line does, or a program, ``-c TEXT``, which finds ``comm``."""
    from mpicoded import __main__ as program

    if args[0] == "-c":
        exec(args[1], {"comm": comm})
        return 0
    return program._serve(comm, 120.0) if comm.Get_rank() else program._lead(comm, 120.0)


def leader_class() -> type:
    from mpicoded.runtime.leader import Leader

    return Leader


def captured(call: Callable[[], int]) -> tuple[int, str, str]:
    """Return the status of ``call`` and what it printed on both streams."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = call()
        except BaseException:
            traceback.print_exc()
            status = RAISED
    return status, out.getvalue(), err.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path("/proc") / sys.argv[2], int(sys.argv[3]))
