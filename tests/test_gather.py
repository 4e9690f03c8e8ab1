"""How long a stage is waited for: every policy is one number."""

from __future__ import annotations

from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpicoded.codes.mds import Mds
from mpicoded.codes.replication import Replication
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.gather import Gather, Verdict

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


def test_an_exact_copy_is_as_good_as_the_data_unit() -> None:
    stage = Gather(Replication(2, 2), 10.0, 2.0, Deadline(inf))
    stage.expected[:] = 1
    assert play(stage, (10.1, 2), (10.2, 0), (10.3, 3)) == [WAIT, 10.3, DONE]
    assert stage.code.used(stage.arrived).tolist() == [True, False, False, True]


def test_a_stage_that_is_over_tells_the_deadline_what_came_and_when() -> None:
    policy = Deadline(None)
    stage = gather(policy)
    stage.tried = [{1}, {2}, {3}, {4}, {5, 6}]
    for unit, now in ((0, 10.1), (1, 10.2), (4, 10.3), (2, 10.4)):
        stage.arrive(unit, now)
    stage.complete = True
    stage.observe()
    stage.observe_late(3, 10.5, skipped=False)
    assert policy.usual == pytest.approx({0: 0.1, 1: 0.2, 2: 0.4, 3: 0.5}), "4 had two ranks"
    stage.again(11.0)
    stage.observe()
    assert policy.stages == 1, "a later round's time says nothing"


def test_data_is_overdue_only_while_others_are_quick() -> None:
    policy = Deadline(None, usual=dict.fromkeys(range(4), 0.2), stages=99)
    stage = gather(policy, k=4, r=0)
    stage.tried = [{1}, {2}, {3}, {4}]
    assert stage.overdue == pytest.approx(10.35)
    assert stage.overdue_units(10.36) == [], "nothing is here: everything is slow"
    assert stage.overdue == pytest.approx(10.385), "look again"
    stage.arrive(0, 10.37)
    stage.arrive(1, 10.37)
    assert stage.overdue_units(10.39) == [], "1.85 times slower than usual, as are the others"
    assert stage.overdue_units(10.61) == [2, 3]
    stage.tried[2].add(1)
    assert stage.overdue_units(10.62) == [3], "each is asked for again once"
    stage.tried[3].add(2)
    assert stage.overdue_units(10.62) == []
    assert stage.overdue == inf


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
