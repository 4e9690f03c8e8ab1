"""The leader, or the whole job, is killed: the file holds what was answered, --resume the rest."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import Digits
from launching import Ended, Running
from mpicoded.answer import Mode
from mpicoded.results import Loaded
from mpicoded.trace import Action

PACE = 0.005


def table(ended: Ended) -> str:
    """What was printed behind the progress bar."""
    assert "results: " in ended.stdout
    return ended.stdout[ended.stdout.index(" ranks on ") :]


def check_events(loaded: Loaded) -> None:
    """Every unit that a query was decoded from was sent and arrived in the trace."""
    used = {tuple(int(i) for i in place) for place in np.argwhere(loaded.queries["arrived"])}
    for action in (Action.SEND, Action.ARRIVE):
        events = loaded.events[loaded.events["action"] == action]
        told = set(
            zip(*(events[name].tolist() for name in ("query", "stage", "unit")), strict=True)
        )
        assert used <= told, f"{len(used - told)} of {len(used)} have no {action.name}"


def check_resumed(run: Digits, **how: object) -> str:
    """Resume: every query has one answer, those that were there stay. Return the table."""
    check_events(run.load())
    before = run.load().queries
    kept = before["mode"] != Mode.PENDING
    assert 0 < kept.sum() < kept.size
    assert not run.load().finished
    run.start("--resume", **how)
    ended = run.end(timeout=60)
    after = run.load()
    assert after.finished
    check_events(after)
    for name in ("answered", "mode", "arrived", "attempts"):
        assert np.array_equal(after.queries[name][kept], before[name][kept])
    assert (after.queries["answered"][~kept] > before["answered"][kept].max()).all()
    assert not np.isnan(after.predictions["output"]).any()
    return table(ended)


def begun(start: Callable[..., Running], folder: Path, **how: Any) -> Digits:
    """A run of 600 queries of which 100 are answered."""
    run = Digits(start, folder, "input.limit=600", small=True, k=1, pace=PACE)
    run.start(**how)
    run.wait_until(100)
    return run


def the_leader_is_killed(start: Callable[..., Running], folder: Path) -> None:
    run = begun(start, folder)
    run.kill([0])
    ended = run.running.wait(timeout=20)
    assert ended.status != 0
    assert ended.left == (), "the workers leave"
    printed = check_resumed(run)
    assert run.load().layout.starts == 2
    run.start("--resume")
    assert table(run.end(timeout=60)) == printed, "a finished file has nothing to add"


def mpirun_is_ended(start: Callable[..., Running], folder: Path, number: signal.Signals) -> None:
    run = begun(start, folder)
    run.running.process.send_signal(number)
    ended = run.running.wait(timeout=20)
    assert ended.status != 0
    assert ended.left == ()
    check_resumed(run)


def a_worker_is_killed_without_ulfm(start: Callable[..., Running], folder: Path, mpi: str) -> None:
    run = begun(start, folder, mpi=mpi, ft=False)
    run.kill([2])
    ended = run.running.wait(timeout=20)
    assert ended.status != 0, ended.output
    assert ended.left == ()
    check_resumed(run, mpi=mpi, ft=False)


KILLS: dict[str, tuple[Any, ...]] = {
    "the leader": (the_leader_is_killed,),
    "mpirun, by SIGTERM": (mpirun_is_ended, signal.SIGTERM),
    "mpirun, by SIGINT": (mpirun_is_ended, signal.SIGINT),
    "mpirun, by SIGKILL": (mpirun_is_ended, signal.SIGKILL),
    "a worker under Open MPI without ULFM": (a_worker_is_killed_without_ulfm, "openmpi"),
    "a worker under MPICH": (a_worker_is_killed_without_ulfm, "mpich"),
}


@pytest.fixture(scope="module")
def kills(beside: Callable[..., Future[None]]) -> dict[str, Future[None]]:
    return {name: beside(*kill) for name, kill in KILLS.items()}


@pytest.mark.parametrize("name", KILLS)
def test_who_is_killed(kills, name):
    kills[name].result()
