"""How long a stage is waited for: every policy is one number."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mds import Mds
from mpicoded.gather import Deadline, Gather, Verdict

WAIT, DONE, RESEND = Verdict.WAIT, Verdict.DONE, Verdict.RESEND


def gather(deadline: float | Deadline, k: int = 3, r: int = 2, give_up: float = 2.0) -> Gather:
    """A stage posted at 10 s, every unit to one rank."""
    policy = deadline if isinstance(deadline, Deadline) else Deadline(deadline)
    stage = Gather(Mds(k, r), 10.0, give_up, policy)
    stage.expected[:] = 1
    return stage


def play(stage: Gather, *arrivals: tuple[float, int], until: float = 99.0) -> list[object]:
    """Let units arrive at times; return (time, verdict) whenever the verdict changes.

    Between the events it is asked only when it says that time matters: at ``due``.
    """
    log: list[object] = [WAIT]
    for now, unit in [*arrivals, (until, -1)]:
        for at in sorted({min(stage.due, now), now}):
            if at == now and unit >= 0:
                stage.expected[unit] -= 1
                stage.arrive(unit, now)
            if (verdict := stage.verdict(at)) is not log[-1]:
                log += [at, verdict]
            if verdict is DONE:
                return log
    return log


THREE_DATA = [(10.1, 0), (10.2, 1), (10.7, 2)]
PARITY_FIRST = [(10.1, 3), (10.2, 4), (10.3, 0), (10.9, 1), (11.0, 2)]


@pytest.mark.parametrize(
    ("deadline", "arrivals", "over"),
    [
        pytest.param(0.0, PARITY_FIRST, 10.3, id="0: the first decodable set"),
        pytest.param(0.0, THREE_DATA, 10.7, id="0: nothing is decodable before the third"),
        pytest.param(inf, PARITY_FIRST, 11.0, id="inf: every data unit"),
        pytest.param(inf, PARITY_FIRST[:4], 12.0, id="inf: until give_up"),
        pytest.param(0.5, PARITY_FIRST, 10.5, id="between: the time-out"),
        pytest.param(0.5, [*PARITY_FIRST[:2], (10.8, 0)], 10.8, id="between: at once if later"),
        pytest.param(0.5, [(10.1, 0), (10.2, 1), (10.3, 2)], 10.3, id="complete: no wait"),
        pytest.param(5.0, PARITY_FIRST[:3], 12.0, id="a deadline after give_up"),
    ],
)
def test_a_stage_is_done(deadline: float, arrivals: list[tuple[float, int]], over: float) -> None:
    assert play(gather(deadline), *arrivals) == [WAIT, over, DONE]


def test_not_decodable_at_give_up_is_sent_again() -> None:
    stage = gather(0.0)
    assert play(stage, (10.1, 0), (10.2, 4), until=12.0) == [WAIT, 12.0, RESEND]
    assert stage.again(12.0) == [1, 2, 3], "all that is missing, though it is owed"
    assert (stage.rounds, stage.posted, stage.due) == (2, 12.0, 14.0)
    assert stage.verdict(13.9) is WAIT


def test_what_nobody_owes_is_sent_again_as_soon_as_the_rest_would_not_do() -> None:
    stage = gather(0.0)
    stage.arrive(0, 10.1)
    stage.expected[:] = [0, 0, 1, 1, 0]
    assert stage.verdict(10.1) is WAIT, "units 2 and 3 make three"
    stage.expected[3] = 0
    assert stage.verdict(10.2) is RESEND
    assert stage.again(10.2) == [1, 3, 4], "unit 2 is still on its way"


def test_when_nothing_more_can_come_waiting_is_over() -> None:
    stage = gather(inf)
    for unit in (1, 2, 3):
        stage.arrive(unit, 10.1)
    stage.expected[:] = [0, 0, 0, 0, 1]
    assert stage.verdict(10.2) is WAIT, "one more parity unit may come"
    stage.expected[4] = 0
    assert stage.verdict(10.3) is DONE


def test_a_late_unit_does_not_move_the_deadline() -> None:
    stage = gather(Deadline(None, patience=2, cold=0.0))
    for unit, now in ((0, 10.1), (1, 10.2), (3, 10.3), (4, 10.5)):
        stage.arrive(unit, now)
    assert stage.decodable_after == pytest.approx(0.3)
    assert stage.due == pytest.approx(10.6)


def test_the_deadline_is_cold_at_first_and_then_follows_the_median() -> None:
    deadline = Deadline(None, patience=2)
    assert deadline.seconds(0.01) == 0.2
    assert deadline.seconds(0.30) == 0.6
    for _ in range(8):
        deadline.observe(0.04)
    assert deadline.seconds(0.01) == 0.08, "twice the usual"
    assert deadline.seconds(0.06) == 0.12, "twice its own, if that is later"


def test_the_deadline_has_a_floor() -> None:
    deadline = Deadline(None, patience=2)
    for _ in range(8):
        deadline.observe(1e-5)
    assert deadline.seconds(1e-5) == 0.002


def test_some_stages_that_took_very_long_do_not_move_the_deadline() -> None:
    deadline = Deadline(None, patience=2)
    for i in range(64):
        deadline.observe(5.0 if i % 3 == 0 else 0.04)
    assert deadline.seconds(0.03) == 0.08


def test_the_deadline_adapts_within_half_of_its_memory() -> None:
    deadline = Deadline(None, patience=2)
    for seconds in [0.01] * 64 + [0.05] * 33:
        deadline.observe(seconds)
    assert deadline.seconds(0.01) == 0.10


@given(st.permutations(range(7)), st.integers(1, 7), st.sampled_from([0.0, 0.35, inf]))
def test_done_means_decodable_and_due_is_never_late(
    order: list[int], k: int, deadline: float
) -> None:
    stage = gather(deadline, k, 7 - k)
    log = play(stage, *[(10.1 + 0.1 * i, unit) for i, unit in enumerate(order)])
    assert log[-1] is DONE
    assert stage.code.decodable(stage.arrived)
    latest = 10.0 + min(max(deadline, stage.decodable_after or 0.0), stage.give_up)
    assert float(log[-2]) <= latest + 1e-9  # type: ignore[arg-type]
    assert np.all(stage.expected >= 0)
