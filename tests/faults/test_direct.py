"""Workers that exchange halos are killed, stopped and slowed: no query is lost, none hangs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digits import Digits
from launching import Running
from mpicoded.answer import Mode
from mpicoded.trace import Action

START = Callable[..., Running]
PLAN = ('plan={split="width", exchange="neighbours"}', 'code={name="uncoded", k=4}')
NEIGHBOURS = (*PLAN, "input.limit=300", "runtime.sharing=true", "runtime.suspect_after=0.3")


def neighbours(start: START, folder: Path, *sets: str, **how: Any) -> Digits:
    """Four strips and a spare rank; a query takes at least ``pace`` seconds."""
    return Digits(start, folder, *NEIGHBOURS, *sets, small=True, **how)


def all_are_the_base_models(run: Digits) -> None:
    loaded = run.load()
    assert set(loaded.queries["mode"].tolist()) == {Mode.AVAILABLE}
    assert np.array_equal(loaded.predictions["class"], loaded.predictions["base_class"])


def ranks_die_one_after_the_other(start: START, folder: Path) -> None:
    run, draw = neighbours(start, folder, pace=0.005), random.Random(5)
    run.start()
    killed = draw.sample(range(1, 5), 3)
    for i, rank in enumerate(killed):
        run.wait_until(40 + 60 * i + draw.randrange(20))
        time.sleep(draw.uniform(0, 0.02))
        run.kill([rank])
    run.end(timeout=60)
    assert {int(rank) for rank in run.events(Action.FAIL)["rank"]} == set(killed)
    all_are_the_base_models(run)


def ranks_are_stopped_and_go_on(start: START, folder: Path, ft: bool) -> None:
    run, draw = neighbours(start, folder, pace=0.005), random.Random(6)
    run.start(ft=ft)
    for answered, rank in ((40, 2), (120, 4)):
        run.wait_until(answered)
        time.sleep(draw.uniform(0, 0.02))
        pid = run.running.ranks()[rank]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
    run.end(timeout=60)
    assert {int(rank) for rank in run.events(Action.SUSPECT)["rank"]} >= {2, 4}
    all_are_the_base_models(run)


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
