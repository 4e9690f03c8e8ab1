"""Ranks of a pipeline are killed and stopped with queries in all stages: none is lost or hangs."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from digits import Digits, three_of_four_die, two_are_stopped_and_go_on
from launching import Running

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


@pytest.mark.parametrize("planner", ["pico", "replicas"])
def test_ranks_die_one_after_the_other(
    start: Callable[..., Running], tmp_path: Path, planner: str
) -> None:
    three_of_four_die(pipeline(start, tmp_path, planner), random.Random(7))


def test_ranks_are_stopped_and_go_on(start: Callable[..., Running], tmp_path: Path) -> None:
    two_are_stopped_and_go_on(pipeline(start, tmp_path, "pico"), random.Random(8))
