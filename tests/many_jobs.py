"""Runs the verb `run` many times in one mpirun, for tests in which starting ranks takes the time.

    mpirun -n 3 python many_jobs.py commands.json outcomes.json

``commands.json`` holds lists of arguments. Every command has a communicator of its own and ends on
all ranks before the next begins; ``outcomes.json`` gets an :class:`Outcome` for each.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from launching import Running

RAISED = 99  # status of a rank that ended by an exception


@dataclass(frozen=True)
class Outcome:
    """How a command ended: on rank 0, what all ranks printed, and whether a leader got to work."""

    status: int
    stdout: str
    stderr: str
    others: str
    started: bool
    seconds: float


def run_all(folder: Path, n: int, commands: Sequence[Sequence[str]], **how: Any) -> list[Outcome]:
    """Run the commands on n ranks in ``folder``; AssertionError if one of them does not end."""
    given, found = folder / "commands.json", folder / "outcomes.json"
    given.write_text(json.dumps(commands))
    job = Running(folder, n, [__file__, given, found], cwd=folder, **how)
    try:
        ended = job.wait(60 + len(commands))
    finally:
        job.kill()
    assert ended.status == 0 and not ended.left, ended.output
    outcomes = [Outcome(**outcome) for outcome in json.loads(found.read_text())]
    given.unlink()
    found.unlink()
    return outcomes


def main(given: Path, found: Path) -> None:
    from mpi4py import MPI

    commands = json.loads(given.read_text())
    outcomes = [run(MPI.COMM_WORLD.Dup(), args) for args in commands]
    if MPI.COMM_WORLD.Get_rank() == 0:
        found.write_text(json.dumps([asdict(outcome) for outcome in outcomes if outcome]))
    MPI.COMM_WORLD.Barrier()
    os._exit(0)  # without MPI_Finalize: what is left open on the old communicators does not matter


def run(comm: Any, args: list[str]) -> Outcome | None:
    """Run one command on all ranks of ``comm``; rank 0 returns how it ended."""
    from mpicoded import __main__ as program

    began = time.perf_counter()
    if comm.Get_rank() > 0:
        status, stdout, stderr = captured(lambda: program._serve(comm, 120.0))
        comm.gather(f"status {status}" * (status in (RAISED, program.ORPHANED)) + stdout + stderr)
        return None
    print(*args, flush=True)  # the last line that is seen if it hangs
    sys.argv = ["mpicoded", *args]
    with mock.patch("mpicoded.commands.run.Leader", wraps=leader_class()) as leader:
        status, stdout, stderr = captured(lambda: program._lead(comm, 120.0))
    others = "".join(comm.gather("") or [])
    seconds = time.perf_counter() - began
    return Outcome(status, stdout, stderr, others, leader.called, seconds)


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
    main(*map(Path, sys.argv[1:]))
