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


def killed_and_resumed(
    start: Callable[..., Running], folder: Path, *kills: Callable[[Digits], object], **how: Any
) -> tuple[Digits, Ended]:
    """Kill a run, and again after 100 more answers: every query has one, those there stay."""
    run = Digits(start, folder, f"input.limit={500 + 100 * len(kills)}", small=True, k=1, pace=PACE)
    run.start(**how)
    before = []
    for number, kill in enumerate(kills, 1):
        run.wait_until(100 * number)
        kill(run)
        ended = run.running.wait(timeout=20)
        assert ended.status != 0, ended.output
        assert ended.left == (), "the workers leave"
        before.append(run.load())
        assert not before[-1].finished
        check_events(before[-1])
        run.start("--resume", **how)
    ended = run.end(timeout=60)
    after = run.load()
    assert (after.finished, after.layout.starts) == (True, 1 + len(kills))
    check_events(after)
    assert not np.isnan(after.predictions["output"]).any()
    for queries in (loaded.queries for loaded in before):
        kept = queries["mode"] != Mode.PENDING
        assert 0 < kept.sum() < kept.size
        for name in ("answered", "mode", "arrived", "attempts"):
            assert np.array_equal(after.queries[name][kept], queries[name][kept])
        assert (after.queries["answered"][~kept] > queries["answered"][kept].max()).all()
    return run, ended


def mpirun(number: signal.Signals) -> Callable[[Digits], object]:
    return lambda run: run.running.process.send_signal(number)


def leader_and_mpirun(start: Callable[..., Running], folder: Path) -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)
    kills = (lambda run: run.kill([0]), *map(mpirun, signals))
    run, ended = killed_and_resumed(start, folder, *kills)
    printed = table(ended)
    run.start("--resume")
    assert table(run.end(timeout=60)) == printed, "a finished file has nothing to add"


def worker_without_ulfm(start: Callable[..., Running], folder: Path, mpi: str) -> None:
    killed_and_resumed(start, folder, lambda run: run.kill([2]), mpi=mpi, ft=False)


KILLS: dict[str, tuple[Any, ...]] = {
    "the leader, then mpirun by SIGTERM, SIGINT and SIGKILL": (leader_and_mpirun,),
    "a worker under Open MPI without ULFM": (worker_without_ulfm, "openmpi"),
    "a worker under MPICH": (worker_without_ulfm, "mpich"),
}


@pytest.fixture(scope="module")
def kills(beside: Callable[..., Future[None]]) -> dict[str, Future[None]]:
    return {name: beside(*kill) for name, kill in KILLS.items()}


@pytest.mark.parametrize("name", KILLS)
def test_who_is_killed(kills, name):
    kills[name].result()
