"""Ranks of a pipeline are killed and stopped with queries in all stages: none is lost or hangs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from digits import Digits
from launching import Running
from mpicoded.answer import Mode
from mpicoded.trace import Action

CLUSTER = """\
[[device]]
ranks = [0, 1, 2, 3, 4]
flops = 1e6
values = 1e7
sends = 1e7
receives = 1e7
"""


def pipeline(start: Callable[..., Running], folder: Path, planner: str) -> Digits:
    """Four workers, window 5; a query takes each stage at least 20 ms."""
    (folder / "cluster.toml").write_text(CLUSTER)
    plan = f'plan={{planner="{planner}", cluster="{folder / "cluster.toml"}"}}'
    sets = ("code={}", "input.limit=300", "runtime.window=5", "runtime.suspect_after=0.3")
    return Digits(start, folder, plan, *sets, small=True, pace=0.02)


def all_are_the_base_models(run: Digits) -> None:
    loaded = run.load()
    assert set(loaded.queries["mode"].tolist()) == {Mode.AVAILABLE}
    assert np.array_equal(loaded.predictions["class"], loaded.predictions["base_class"])


@pytest.mark.parametrize("planner", ["pico", "replicas"])
def test_ranks_die_one_after_the_other(
    start: Callable[..., Running], tmp_path: Path, planner: str
) -> None:
    run, draw = pipeline(start, tmp_path, planner), random.Random(7)
    run.start()
    killed = draw.sample(range(1, 5), 3)
    for i, rank in enumerate(killed):
        run.wait_until(40 + 60 * i + draw.randrange(20))
        time.sleep(draw.uniform(0, 0.02))
        run.kill([rank])
    run.end(timeout=60)
    assert {int(rank) for rank in run.events(Action.FAIL)["rank"]} == set(killed)
    all_are_the_base_models(run)


def test_ranks_are_stopped_and_go_on(start: Callable[..., Running], tmp_path: Path) -> None:
    run, draw = pipeline(start, tmp_path, "pico"), random.Random(8)
    run.start()
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
