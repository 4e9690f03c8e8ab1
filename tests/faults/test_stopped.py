"""Workers are stopped with SIGSTOP, for a while and for good: nothing is lost, the run ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from digits import Digits
from launching import Running
from mpicoded.trace import Action

PACE = 0.01
END = "runtime.end_limit=2.0"


def stop_for(run: Digits, rank: int, seconds: float) -> tuple[float, float]:
    """SIGSTOP a rank, and SIGCONT it later; return when, on the clock of the run."""
    run.running.signal(rank, signal.SIGSTOP)
    stopped = time.perf_counter()
    time.sleep(seconds)
    run.running.signal(rank, signal.SIGCONT)
    return stopped - run.began, time.perf_counter() - run.began


def check_return(run: Digits, rank: int, stopped: float, woken: float) -> None:
    suspected, returned = (run.events(a, rank)["stop"] for a in (Action.SUSPECT, Action.RETURN))
    assert any(stopped < t < woken for t in suspected), (suspected, stopped, woken)
    assert any(t > woken - 0.1 for t in returned), (returned, stopped, woken)
    # of a copy that comes second nothing is used, and yet the rank works
    answers = (run.events(a, rank)["stop"] for a in (Action.ARRIVE, Action.EXTRA, Action.LATE))
    assert any((each > returned[-1]).any() for each in answers), "it works again"


def three_seconds_and_for_good(start: Callable[..., Running], folder: Path) -> None:
    run = Digits(start, folder, "input.limit=800", END, small=True, pace=PACE)
    run.start()
    run.wait_until(50)
    times = stop_for(run, 2, 3.0)
    run.wait_until(run.answered() + 100)
    run.running.signal(3, signal.SIGSTOP)
    ended = run.end(timeout=60)
    check_return(run, 2, *times)
    assert "ranks [3] did not answer the end of the job" in ended.stderr
    assert not run.events(Action.FAIL).size


def without_ulfm(start: Callable[..., Running], folder: Path, mpi: str) -> None:
    run = Digits(start, folder, "input.limit=1000", END, small=True, pace=PACE)
    run.start(mpi=mpi, ft=False)
    run.wait_until(50)
    times = stop_for(run, 2, 1.5)
    run.wait_until(run.answered() + 100)
    run.running.signal(3, signal.SIGSTOP)
    ended = run.end(timeout=60)
    check_return(run, 2, *times)
    assert "ranks [3] did not answer the end of the job" in ended.stderr
    assert run.load().finished
    assert "results: " in ended.stdout, "the table is printed"


STOPS: dict[str, tuple[Any, ...]] = {
    "under ULFM, three seconds": (three_seconds_and_for_good,),
    "without, under Open MPI": (without_ulfm, "openmpi"),
    "without, under MPICH": (without_ulfm, "mpich"),
}


@pytest.fixture(scope="module")
def stops(beside: Callable[..., Future[None]]) -> dict[str, Future[None]]:
    return {name: beside(*stop) for name, stop in STOPS.items()}


@pytest.mark.parametrize("name", STOPS)
def test_for_a_while_and_for_good(stops, name):
    stops[name].result()
