"""Workers that exchange halos are killed, stopped and slowed: no query is lost, none hangs."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from digits import (
    Digits,
    all_are_the_base_models,
    three_of_four_die,
    two_are_stopped_and_go_on,
)
from launching import Running
from mpicoded.answer import Mode
from mpicoded.trace import Action

START = Callable[..., Running]
PLAN = ('plan={split="width", exchange="neighbours"}', 'code={name="uncoded", k=4}')
NEIGHBOURS = (*PLAN, "input.limit=300", "runtime.sharing=true", "runtime.suspect_after=0.3")


def neighbours(start: START, folder: Path, *sets: str, **how: Any) -> Digits:
    """Four strips and a spare rank; a query takes at least ``pace`` seconds."""
    return Digits(start, folder, *NEIGHBOURS, *sets, small=True, **how)


def ranks_die_one_after_the_other(start: START, folder: Path) -> None:
    three_of_four_die(neighbours(start, folder, pace=0.005), random.Random(5))


def ranks_are_stopped_and_go_on(start: START, folder: Path, ft: bool) -> None:
    two_are_stopped_and_go_on(neighbours(start, folder, pace=0.005), random.Random(6), ft)


def a_code_protects_a_segment(start: START, folder: Path) -> None:
    """A rank is stopped for a while, another killed: answers come all the time, some decoded."""
    plan = 'plan={split="width", stages=["pool1", "pool2"], exchange="neighbours"}'
    run = Digits(start, folder, plan, "input.limit=500", pace=0.01)
    run.start()
    run.wait_until(60)
    pid = run.running.ranks()[3]
    os.kill(pid, signal.SIGSTOP)
    run.wait_until(run.answered() + 40)
    os.kill(pid, signal.SIGCONT)
    run.wait_until(run.answered() + 40)
    run.kill([5])
    run.end(timeout=60)
    loaded = run.load()
    own = loaded.queries["mode"] == Mode.AVAILABLE
    same = loaded.predictions["class"] == loaded.predictions["base_class"]
    assert same[own].all() and 0 < (~own).sum() < 250
    assert {int(rank) for rank in run.events(Action.FAIL)["rank"]} == {5}


def faults_are_injected(start: START, folder: Path) -> None:
    """A straggler, lost answers, a freeze and a crash in one run."""
    faults = (
        '{kind="slow", rank=1, factor=5, start=0.1, stop=0.5}',
        '{kind="silence", rank=2, probability=0.02}',
        '{kind="freeze", rank=3, seconds=1.0, start=0.5}',
        '{kind="crash", rank=4, start=0.7}',
    )
    run = neighbours(start, folder, f"faults=[{', '.join(faults)}]", "runtime.window=2")
    run.start()
    run.end(timeout=90)
    assert {int(rank) for rank in run.events(Action.FAIL)["rank"]} == {4}
    all_are_the_base_models(run)


RUNS: dict[str, tuple[Any, ...]] = {
    "ranks die one after the other": (ranks_die_one_after_the_other,),
    "ranks are stopped and go on, without ULFM": (ranks_are_stopped_and_go_on, False),
    "ranks are stopped and go on, under ULFM": (ranks_are_stopped_and_go_on, True),
    "a straggler, lost answers, a freeze and a crash": (faults_are_injected,),
    "a code protects a segment": (a_code_protects_a_segment,),
}


@pytest.fixture(scope="module")
def runs(beside: Callable[..., Future[None]]) -> dict[str, Future[None]]:
    return {name: beside(*run) for name, run in RUNS.items()}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_neighbours(runs: dict[str, Future[None]], name: str) -> None:
    runs[name].result()
