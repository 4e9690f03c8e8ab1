"""Schedules that cannot work are refused, with rank, step and the way out."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from mpicoded.dry_run import check
from mpicoded.errors import PlanError
from mpicoded.moves import schedule
from mpicoded.steps import Kind, Step
from test_steps import DRAWINGS, plan

PLAN = plan(direct=True)  # two strips, two stages, one row of halo each way
Steps = dict[int, list[Step]]


def steps() -> Steps:
    """Return what every rank does; rank 1:

    0  <0 0.0 input_1 0:5,0:8       4  <2 1.0 _0 4:5,0:8
    1  run 0.0                      5  run 1.0
    2  >2 1.1 _0 3:4,0:8            6  >0 1.0 _1 0:4,0:8
    3  <1 1.0 _0 0:4,0:8
    """
    return {rank: list(own) for rank, own in schedule(PLAN).items()}


def test_the_steps_are_those_of_the_docstring() -> None:
    lines = [line for line in (steps.__doc__ or "").splitlines() if line[4:5].isdigit()]
    cells = [line[4:36].strip() for line in lines] + [line[36:].strip() for line in lines]
    assert list(filter(None, cells)) == [f"{i}  {step!r}" for i, step in enumerate(steps()[1])]


@pytest.mark.parametrize("name", DRAWINGS)
def test_what_is_derived_passes(name: str) -> None:
    its_plan, _ = DRAWINGS[name]
    assert check(schedule(its_plan)).keys() == check(schedule(its_plan), its_plan).keys()


def swap(rank: int, i: int, j: int) -> Callable[[Steps], None]:
    def change(given: Steps) -> None:
        given[rank][i], given[rank][j] = given[rank][j], given[rank][i]

    return change


def move(rank: int, i: int, j: int) -> Callable[[Steps], None]:
    return lambda given: given[rank].insert(j, given[rank].pop(i))


def drop(rank: int, i: int) -> Callable[[Steps], None]:
    return lambda given: given[rank].pop(i) and None


def put(rank: int, i: int, text: str) -> Callable[[Steps], None]:
    return lambda given: given[rank].insert(i, Step.parse(text))


def both(*changes: Callable[[Steps], None]) -> Callable[[Steps], None]:
    def change(given: Steps) -> None:
        for each in changes:
            each(given)

    return change


REFUSED = {
    "sent, not received": (
        drop(2, 3),
        r"rank 1 has step 2, >2 1\.1 _0 3:4,0:8, to rank 2, and that receives nothing more from it",
    ),
    "received, not sent": (
        drop(1, 2),
        r"rank 1 sends nothing more to rank 2, and that has step \d, <1 1\.1 _0 3:4,0:8, from it",
    ),
    "another box": (
        both(drop(1, 2), put(1, 2, ">2 1.1 _0 2:4,0:8")),
        r"rank 1 has step 2, >2 1\.1 _0 2:4,0:8, to rank 2, and that has step \d, <1 1\.1 _0 3:4",
    ),
    "each waits for the other": (
        both(move(1, 2, 5), move(2, 2, 5)),
        r"rank 1 has .* waits for rank 2; rank 2 has .* waits for rank 1, and so on for ever",
    ),
    "a hole": (
        both(drop(1, 2), drop(2, 3)),
        r"rank 2, step \d, run 1\.1, reads 3:8,0:8 of _0, and what comes is 4:8,0:8: derive",
    ),
    "nothing kept": (
        drop(1, 3),
        r"rank 1, step 4, run 1\.0, reads 0:5,0:8 of _0, and what comes is 4:5,0:8",
    ),
    "twice": (
        put(1, 3, "<1 1.0 _0 0:4,0:8"),
        r"rank 1, step 6, run 1\.0, reads 0:5,0:8 of _0, .*0:4,0:8 0:4,0:8.*, some of it twice",
    ),
    "never run": (drop(1, 5), r"rank 1 receives for 1\.0, which never runs after that"),
    "no answer": (
        both(drop(1, 6), drop(0, 3)),
        r"rank 0, step 4, run 1\.gather, has 1 answers, twice of none, not at all of 1\.0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    change, text = REFUSED[case]
    given = steps()
    change(given)
    with pytest.raises(PlanError, match=text + r".*schedule\(\)"):
        check(given, PLAN)


def test_one_of_two_neighbours_may_send_later() -> None:
    given = steps()
    move(1, 2, 5)(given)  # behind its run, of which the other waits for nothing
    check(given, PLAN)


def test_bytes_held_at_a_time() -> None:
    """In float32, images of one channel and maps of two; scattered and gathered in one go."""
    scattered, gathered = 4 * 2 * 5 * 8, 4 * 8 * 8 * 2
    held = check(steps(), PLAN)
    assert held == {0: scattered + gathered, 1: gathered // 2, 2: gathered // 2}
    check(steps(), PLAN, limit=832)
    text = r"rank 0 holds 832 bytes of messages at step 4, <2 1\.1 _1 4:8,0:8, and may hold 831: "
    with pytest.raises(PlanError, match=text):
        check(steps(), PLAN, limit=831)


def test_what_a_stage_held_is_free_in_the_next() -> None:
    """Two stars: the leader holds the answers of one stage, then what it sends for the next."""
    its_plan = plan()
    sent, came = its_plan.bytes_in(1, 0) + its_plan.bytes_in(1, 1), 4 * 8 * 8 * 2
    assert check(schedule(its_plan), its_plan)[0] == sent + came


def test_a_hole_between_two_halos() -> None:
    """Of three strips the middle one gets a row from either side, and nothing of its own."""
    its_plan = plan(k=3, direct=True)
    given = {rank: list(own) for rank, own in schedule(its_plan).items()}
    kept = next(step for step in given[2] if step.kind is Kind.RECV and step.peer == 2)
    given[2].remove(kept)
    for known in (its_plan, None):
        with pytest.raises(PlanError, match=r"reads 2:7,0:8 .* comes is 2:3,0:8 6:7,0:8: "):
            check(given, known)


def test_every_lost_or_moved_message_is_found() -> None:
    """Whatever step is left out, and of a message either end or both."""
    for rank, own in steps().items():
        for i, step in enumerate(own):
            if step.kind is Kind.RUN and step.node.unit < 0:
                continue
            given = steps()
            del given[rank][i]
            with pytest.raises(PlanError):
                check(given, PLAN)
            if step.kind is Kind.SEND:
                other = given[step.peer]
                other.remove(Step(Kind.RECV, step.node, rank, step.value, step.box))
                with pytest.raises(PlanError):
                    check(given, PLAN)


def test_ranks_that_swap_steps_end_or_are_refused() -> None:
    """No order of two steps is taken for good that leaves a rank waiting."""
    r = random.Random(0)
    ended = 0
    for _ in range(200):
        given = steps()
        rank = r.choice([1, 2])
        i = r.randrange(len(given[rank]) - 1)
        swap(rank, i, i + 1)(given)
        try:
            check(given, PLAN)
            ended += 1
        except PlanError:
            pass
    assert 0 < ended < 200
