"""Large messages take turns on the leader's link."""

from __future__ import annotations

from mpicoded.scheduling.turns import LEAST, SHORT, Turns

LARGE, TINY = SHORT + 1, 32


def started(turns: Turns[int], now: float = 0.0) -> list[int]:
    return [start.message for start in turns.start(now)]


def filled(*ranks: int, nbytes: int = LARGE) -> Turns[int]:
    """A message to every rank, named as the rank."""
    turns: Turns[int] = Turns()
    for rank in ranks:
        turns.add(rank, rank, nbytes)
    return turns


def test_two_abreast_and_the_next_when_one_is_taken() -> None:
    turns = filled(1, 2, 3, 4)
    assert [(start.message, start.paced) for start in turns.start(0.0)] == [(1, True), (2, True)]
    assert started(turns) == []
    turns.taken(2, 0.01)
    assert started(turns, 0.01) == [3]


def test_parity_goes_alone() -> None:
    turns = filled(1, 2)
    turns.add(3, 3, LARGE, exclusive=True)
    assert started(turns) == [1, 2]
    turns.taken(1, 0.01)
    assert started(turns, 0.01) == [], "one data unit is still on the link"
    turns.taken(2, 0.01)
    assert started(turns, 0.01) == [3]


def test_short_messages_wait_for_no_turn() -> None:
    turns: Turns[int] = Turns()
    for rank in (1, 2, 3, 4):
        turns.add(rank, rank, TINY, exclusive=rank > 2)
    assert [(start.message, start.paced) for start in turns.start(0.0)] == [
        (rank, False) for rank in (1, 2, 3, 4)
    ]


def test_messages_to_one_rank_keep_their_order() -> None:
    """A short one does not overtake the large one that waits for its turn."""
    turns = filled(1, 2, 3)
    turns.add(3, 33, TINY)
    assert started(turns) == [1, 2]
    assert turns.waiting(0.0) == {3}
    turns.taken(1, 0.01)
    turns.taken(2, 0.01)
    assert started(turns, 0.01) == [3, 33]


def test_a_rank_that_does_not_take_its_message_keeps_no_other_waiting() -> None:
    turns = filled(1, 2, 3)
    assert started(turns) == [1, 2]
    turns.add(1, 11, LARGE)
    assert turns.waiting(LEAST + 1.0) == {3}, "the second one of rank 1 is held up by itself"
    assert started(turns, LEAST + 1.0) == [3, 11]


def test_the_limit_follows_the_usual_pace() -> None:
    turns: Turns[int] = Turns()
    for query in range(20):
        turns.add(1, query, LARGE)
        started(turns, float(query))
        turns.taken(1, query + 0.5)
    for rank in (1, 2, 3):
        turns.add(rank, rank, LARGE)
    assert started(turns, 100.0) == [1, 2]
    assert started(turns, 101.0) == [], "half a second is usual, three times that is borne"
    assert started(turns, 102.0) == [3]


def test_what_is_not_needed_any_more_is_not_sent() -> None:
    turns = filled(1, 2, 3, 4)
    assert started(turns) == [1, 2]
    assert turns.withdraw(lambda message: message == 3) == [3]
    turns.taken(1, 0.01)
    assert started(turns, 0.01) == [4]


def test_a_dead_rank_holds_nothing() -> None:
    turns = filled(1, 2, 3, 4)
    assert started(turns) == [1, 2]
    turns.drop(1)
    turns.drop(3)
    assert started(turns) == [4]
