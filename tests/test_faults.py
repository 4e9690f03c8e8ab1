"""Injected faults are the same for the same seed, and strike who and when they should."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mpicoded.errors import JobError
from mpicoded.faults import KINDS, Effect, Fault, assign, schedule


def fault(kind: str = "silence", rank: int | None = None, **fields: float) -> Fault:
    """A fault that strikes in queries 10 to 19."""
    return Fault(kind, rank, 10, 20, **fields)


@pytest.mark.parametrize(
    ("given", "effect"),
    [
        pytest.param(fault("crash", 3), Effect(crash=True), id="crash"),
        pytest.param(fault("silence", 3), Effect(silent=True), id="silence"),
        pytest.param(fault("slow", 3, factor=10.0), Effect(factor=10.0), id="slow"),
        pytest.param(fault("delay", 3, seconds=0.05), Effect(seconds=0.05), id="delay"),
    ],
)
def test_a_fault_strikes_its_rank_in_its_queries(given: Fault, effect: Effect) -> None:
    struck = schedule([given], 3, seed=7)
    assert [q for q in range(30) if struck.at(q) == effect] == list(range(10, 20))
    assert struck.at(9) == struck.at(20) == Effect()
    assert all(schedule([given], 4, seed=7).at(q) == Effect() for q in range(30))


def test_a_freeze_is_told_with_its_number() -> None:
    freeze = [fault("crash", 1), fault("freeze", 3, seconds=2.0), fault("freeze", 3, seconds=0.5)]
    assert schedule(freeze, 3, seed=0).at(12) == Effect(freezes=((0, 2.0), (1, 0.5)))
    assert all(f.once for f in freeze)


def test_patterns_of_silent_workers_take_turns() -> None:
    faults = assign([Fault("pattern", None, 0, 60, missing=2)], range(1, 7), seed=7)
    silent = [
        tuple(p for p in range(1, 7) if schedule(faults, p, 7).at(query).silent)
        for query in range(30)
    ]
    assert silent[:15] == list(combinations(range(1, 7), 2))
    assert silent[15:] == silent[:15]


def test_an_exponential_delay_has_that_mean() -> None:
    delay = Fault("delay", 1, 0, 4000, seconds=0.05, tail=True)
    delays = [schedule([delay], 1, 7).at(q).seconds for q in range(4000)]
    assert np.mean(delays) == pytest.approx(0.05, rel=0.06)
    assert np.std(delays) == pytest.approx(0.05, rel=0.1), "of an exponential it is the mean"


@pytest.mark.parametrize("kind", [name for name, each in KINDS.items() if each.by_lab])
def test_a_worker_leaves_to_the_lab_what_is_the_labs(kind: str) -> None:
    given = fault(kind, 3, seconds=1.0, value=0.5)
    assert given.by_lab
    assert given.once
    assert all(schedule([given], 3, seed=7).at(q) == Effect() for q in range(30))


def test_faults_of_one_rank_add_up() -> None:
    faults = [
        fault("slow", 1, factor=3.0),
        fault("slow", 1, factor=2.0),
        fault("delay", 1, seconds=0.25),
        fault("delay", 1, seconds=0.5),
        fault("crash", 1),
    ]
    assert schedule(faults, 1, seed=0).at(15) == Effect(crash=True, factor=6.0, seconds=0.75)


def struck_queries(seed: int, rank: int, probability: float, queries: int = 4000) -> list[int]:
    silence = Fault("silence", rank, 0, queries, probability=probability)
    struck = schedule([silence], rank, seed)
    return [q for q in range(queries) if struck.at(q).silent]


def test_the_same_seed_strikes_the_same_queries_in_any_order() -> None:
    assert struck_queries(7, 2, 0.25) == struck_queries(7, 2, 0.25)
    silence = schedule([fault("silence", 2, probability=0.5)], 2, seed=7)
    forward = [silence.at(q) for q in range(30)]
    assert [silence.at(q) for q in reversed(range(30))] == forward[::-1]


def test_two_faults_of_a_rank_strike_independently() -> None:
    delays = [fault("delay", 1, seconds=s, probability=0.5) for s in (1.0, 2.0)]
    suffered = {schedule(delays, 1, seed).at(15).seconds for seed in range(40)}
    assert suffered == {0.0, 1.0, 2.0, 3.0}


def test_seeds_and_ranks_differ() -> None:
    assert struck_queries(7, 2, 0.25) != struck_queries(8, 2, 0.25)
    assert struck_queries(7, 2, 0.25) != struck_queries(7, 3, 0.25)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_struck_queries(probability: float) -> None:
    share = len(struck_queries(7, 2, probability)) / 4000
    assert share == pytest.approx(probability, abs=0.03 if 0 < probability < 1 else 0)


def test_ranks_are_drawn_from_the_seed_none_twice() -> None:
    drawn = [
        tuple(f.rank for f in assign([fault(), fault(), fault()], range(1, 9), seed))
        for seed in range(50)
    ]
    assert all(len(set(ranks)) == 3 and set(ranks) <= set(range(1, 9)) for ranks in drawn)
    assert {rank for ranks in drawn for rank in ranks} == set(range(1, 9)), "anybody may be struck"
    again = assign([fault(), fault(), fault()], range(1, 9), 49)
    assert tuple(f.rank for f in again) == drawn[-1]


def test_a_named_rank_keeps_its_faults_and_none_is_drawn_for_it() -> None:
    faults = [fault("slow", 2), fault(), fault("crash", 2), fault()]
    for seed in range(20):
        ranks = [f.rank for f in assign(faults, range(1, 4), seed)]
        assert ranks[0] == ranks[2] == 2
        assert {ranks[1], ranks[3]} == {1, 3}


def test_without_workers_nobody_is_struck() -> None:
    assert assign([fault(), fault("crash", 3)], [], seed=1) == ()


def test_a_rank_that_is_no_worker() -> None:
    with pytest.raises(JobError, match=r"rank = 9 is no worker: name one of ranks 1 to 8"):
        assign([fault("crash", 9)], range(1, 9), seed=1)


def test_more_faults_than_workers() -> None:
    with pytest.raises(JobError, match=r"3 without a rank .* one worker each, 2 are free"):
        assign([fault(), fault(), fault(), fault("crash", 1)], range(1, 4), seed=1)
