"""The decisions together, on a virtual clock: what faults cost in latency and in own answers.

A unit takes half a second, give or take ``jitter``; one query is in flight; the leader needs 10 ms
for the posting of a unit. Ratios are against the same group without faults.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from mpicoded.scheduling.dispatcher import Ready
from mpicoded.scheduling.ranks import Task
from world import Weather, World

UNIT = 0.5
SETTLED = 20  # queries


def served(
    k: int = 6,
    r: int = 2,
    queries: int = 200,
    jitter: float = 0.02,
    factor: Callable[[int, int], float] = lambda rank, query: 1.0,
    tail: float = 0.0,
    silent: int = 0,
    **how: Any,
) -> tuple[np.ndarray, np.ndarray, World]:
    """Serve queries; return the latencies, the shares that are the base model's own, the world."""
    workers, weather = how.setdefault("workers", k + r), how.pop("weather", Weather())

    def service(random: Random, rank: int, task: Task) -> float | None:
        if rank in Random(task.query).sample(range(1, workers + 1), silent):
            return None
        late = random.expovariate(1 / tail) if tail else 0.0
        return UNIT * max(0.1, random.gauss(1, jitter) + late) * factor(rank, task.query)

    how = {"window": 1, "send": 0.01, "tick": 0.05, "give_up": 30.0, "suspect_after": 20.0, **how}
    world = World(7, weather, k=k, r=r, queries=queries, service=service, **how).run()
    ends = [world.ended[query] for query in range(queries)]
    own = [isinstance(act, Ready) and bool(act.arrived[:k].all()) for act in ends]
    assert all(isinstance(act, Ready) for act in ends), "nothing is lost"
    return np.array([world.took[query] for query in range(queries)]), np.array(own), world


def healthy(**how: Any) -> float:
    """Median latency without faults."""
    return float(np.median(served(**how)[0]))


@pytest.mark.parametrize("jitter", [0.0, 0.02, 0.05])
def test_a_healthy_group_answers_by_itself(jitter: float) -> None:
    _, own, world = served(jitter=jitter)
    assert own.mean() >= 0.99
    assert own.all() or jitter > 0.02
    assert world.ranks.home == list(range(1, 9)), "every unit at home"


def test_ranks_that_differ_a_little_are_all_waited_for() -> None:
    _, own, _ = served(factor=lambda rank, query: {2: 1.2, 4: 1.2}.get(rank, 1.0))
    assert own[SETTLED:].all()


@pytest.mark.parametrize("missing", [1, 2])
def test_silent_units_in_every_query_cost_little(missing: int) -> None:
    took, own, _ = served(silent=missing)
    assert np.median(took[SETTLED:]) <= 1.06 * healthy()
    assert own.mean() < 0.5


@pytest.mark.parametrize("slower", [4.0, 10.0])
def test_a_straggler_costs_neither_latency_nor_accuracy(slower: float) -> None:
    took, own, world = served(
        factor=lambda rank, query: slower if rank == 3 and query >= 50 else 1.0
    )
    assert np.quantile(took[SETTLED:], 0.99) <= 1.15 * healthy()
    assert (~own).sum() <= 4, "then it has a parity unit"
    assert 3 in world.ranks.home[6:]


def test_a_rank_that_is_fast_again_has_data_when_another_becomes_slow() -> None:
    took, own, world = served(
        queries=250,
        factor=lambda rank, query: (
            10.0
            if rank in {3: range(50, 100), 1: range(150, 250), 2: range(150, 250)}
            and query in {3: range(50, 100), 1: range(150, 250), 2: range(150, 250)}[rank]
            else 1.0
        ),
    )
    assert {1, 2} == set(world.ranks.home[6:])
    assert (~own).sum() <= 12
    assert np.quantile(took[SETTLED:], 0.99) <= 1.2 * healthy()


@pytest.mark.parametrize("times", [3.0, 1 / 3])
def test_when_everything_changes_its_speed_answers_stay_own(times: float) -> None:
    took, own, _ = served(factor=lambda rank, query: times if query >= 100 else 1.0)
    assert own.mean() >= 0.99
    assert np.median(took[150:]) < 1.1 * (times * UNIT + 0.065)


def test_when_jitter_grows_the_wait_does() -> None:
    def factor(rank: int, query: int) -> float:
        return 1.0 + 0.2 * Random(100 * query + rank).random() * (query >= 60)

    own = served(queries=260, jitter=0.005, factor=factor)[1]
    assert own[100:].mean() >= 0.98


@pytest.mark.parametrize("tail", [0.05, 0.1, 0.2, 0.5, 1.0, 2.0])
def test_exponential_tails(tail: float) -> None:
    """The code cuts the tail; with a short one answers stay the base model's own."""
    took, own, _ = served(tail=tail)
    uncoded, _, _ = served(k=6, r=0, tail=tail)
    assert np.quantile(took, 0.99) <= 1.02 * np.quantile(uncoded, 0.99)
    assert np.mean(took) <= 1.02 * np.mean(uncoded)
    assert own.mean() >= (0.97 if tail <= 0.1 else 0.6)


def test_two_deaths_leave_the_healthy_speed_and_a_third_costs_a_unit() -> None:
    for deaths, times in ((2, 1.0), (3, 2.0)):
        took, own, world = served(queries=60, weather=Weather(deaths=deaths))
        assert np.median(took[SETTLED:]) == pytest.approx(times * healthy(), rel=0.1)
        assert own[SETTLED:].all()
        posts = [line for _, line in world.log if line.startswith("Post") and "query=50," in line]
        assert len(posts) == 6, "k units, no parity"


@pytest.mark.parametrize("slower", [4.0, 10.0])
def test_four_of_eight_throttled_get_fewer_tiles(slower: float) -> None:
    """ADCNN's scenario with exact tiles: at best, a fast rank has 32 / (4 + 4 / slower) of 32."""
    took, own, _ = served(
        k=32,
        r=0,
        workers=8,
        queries=140,
        factor=lambda rank, query: slower if rank <= 4 and 50 <= query < 100 else 1.0,
    )
    best = np.ceil(32 / (4 + 4 / slower)) * UNIT + 0.1
    assert np.median(took[60:100]) <= 1.1 * best
    assert took[50] < 0.75 * 4 * slower * UNIT, "idle ranks help at once"
    assert np.median(took[105:]) <= 1.05 * np.median(took[20:50]), "recovered"
    assert own.all()


def test_uncoded_a_straggler_gives_its_unit_to_another_and_gets_it_back() -> None:
    took, _, _ = served(
        k=8,
        r=0,
        queries=250,
        factor=lambda rank, query: 10.0 if rank == 3 and 50 <= query < 100 else 1.0,
    )
    assert np.mean(took[50:100]) < 2.5 * np.mean(took[20:50]), "a second unit on a fast rank"
    assert np.median(took[150:]) <= 1.05 * np.median(took[20:50])
