"""When decoding may start: what is learned from arrivals."""

from __future__ import annotations

from math import inf
from random import Random

import pytest

from mpicoded.scheduling.deadline import COLD, Deadline

K, R = 3, 2


def taught(stages: int, *seconds: float, policy: Deadline | None = None) -> Deadline:
    """A deadline after some stages in which unit i came from rank i + 1 after ``seconds[i]``."""
    policy = policy or Deadline(None)
    for _ in range(stages):
        policy.stages += 1
        for unit, after in enumerate(seconds):
            policy.observe(unit, unit + 1, after, 1.0, K)
    return policy


def wait(policy: Deadline, decodable_after: float = 0.1, pace: float = 1.0) -> float:
    return policy.seconds(decodable_after, pace, K, R)[0]


@pytest.mark.parametrize("fixed", [0.0, 0.5, inf])
def test_a_number_is_kept(fixed: float) -> None:
    assert wait(taught(99, 1.0, 1.0, 1.0, policy=Deadline(fixed))) == fixed


def test_it_is_cold_at_first_and_then_close_to_the_usual_time() -> None:
    policy = taught(COLD - 1, 1.0, 1.1, 1.2, 1.3, 1.4)
    assert wait(policy, 0.01) == 0.2
    assert wait(policy, 0.30) == 0.6
    taught(50, 1.0, 1.1, 1.2, 1.3, 1.4, policy=policy)
    assert 1.2 < wait(policy) < 1.2 * 1.08, "the third of five arrivals, and a little"


def test_scale_free() -> None:
    waits = [
        wait(taught(60, *(t * scale for t in (1.0, 1.1, 1.2, 1.3, 1.4)))) for scale in (1.0, 100.0)
    ]
    assert waits[1] - 0.002 == pytest.approx(100 * (waits[0] - 0.002))


def test_it_has_a_floor() -> None:
    assert wait(taught(60, 1e-5, 1e-5, 1e-5), 1e-5) == 0.002


def test_up_to_r_stragglers_do_not_move_it() -> None:
    calm = wait(taught(100, 1.0, 1.0, 1.0, 1.0, 1.0))
    slow = wait(taught(100, 1.0, 10.0, 1.0, 1.0, 9.0))
    assert slow == pytest.approx(calm, rel=0.02)
    assert wait(taught(100, 1.0, 10.0, 9.0, 1.0, 9.0)) > 2 * calm, "three do"


def test_a_rank_that_is_a_little_late_is_waited_for() -> None:
    assert 1.2 < wait(taught(100, 1.0, 1.2, 1.0, 1.0, 1.0)) < 1.4


def test_units_that_never_come_do_not_move_it() -> None:
    random, policy = Random(4), Deadline(None)
    for _ in range(200):
        policy.stages += 1
        for unit in random.sample(range(5), 3):
            policy.observe(unit, unit + 1, 1.0 + 0.02 * unit, 1.0, K)
        policy.waited(paid=False)
    assert wait(policy) < 1.04 * 1.04


def test_when_all_is_slow_it_grows_with_the_stage() -> None:
    policy = taught(60, 1.0, 1.1, 1.2, 1.3, 1.4)
    pace = policy.pace({0: 3.0, 1: 3.3, 3: 3.9})
    assert pace == pytest.approx(3.0)
    assert 3.6 < wait(policy, 3.5, pace) < 3.6 * 1.08
    assert policy.pace({0: 1.0, 1: 1.1, 3: 8.0}) == pytest.approx(1.0), "one straggler is not all"
    assert policy.pace({0: 0.1}) == 1.0


def test_answers_that_came_late_make_it_longer() -> None:
    policy = taught(300, 1.0, 1.0, 1.0, 1.0, 1.0)
    before = wait(policy)
    for rank in (1, 2, 3):
        policy.observe_lateness(0, rank, 1.25, 1.0, K)
    assert wait(policy) > 1.25 > before
    taught(300, 1.0, 1.0, 1.0, 1.0, 1.0, policy=policy)
    assert wait(policy) == pytest.approx(before, rel=0.02), "it is forgotten"


def test_patience_is_the_limit() -> None:
    policy = taught(60, 1.0, 1.0, 1.0, 1.0, 1.0, policy=Deadline(None, patience=1.5))
    for rank in range(1, 6):
        policy.observe_lateness(0, rank, 50.0, 1.0, K)
    assert wait(policy) == 1.5 * policy.usual[0]
    assert wait(policy, 2.0, pace=3.0) == 3.0, "or that of a stage that became decodable late"


def test_waiting_that_never_pays_becomes_short_and_long_again_when_it_does() -> None:
    policy = taught(60, 1.0, 1.0, 1.0, 1.0, 1.0)
    for rank in (1, 2, 3):
        policy.observe_lateness(0, rank, 1.3, 1.0, K)
    full = policy.seconds(0.1, 1.0, K, R)[1]
    for _ in range(40):
        policy.waited(paid=False)
    short, patient = policy.seconds(0.1, 1.0, K, R)
    assert short - 1 < 0.1 * (full - 1)
    assert patient == full
    for _ in range(6):
        policy.waited(paid=True)
    assert wait(policy) - 1 > 0.85 * (full - 1)


def test_a_first_stage_that_took_very_long_is_forgotten() -> None:
    policy = taught(1, 50.0, 50.0, 50.0, 50.0, 50.0)
    taught(100, 1.0, 1.0, 1.0, 1.0, 1.0, policy=policy)
    assert wait(policy) < 1.1
