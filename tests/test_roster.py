"""Who gets a unit, who owes what, who is believed to be there."""

from __future__ import annotations

import pytest

from mpicoded.roster import Debt, Roster, State


def roster(workers: int = 4, units: int | None = None, depth: int = 6) -> Roster:
    """Ranks 1 …; unit i is at home on rank 1 + i mod workers; silence is half a second."""
    homes = tuple(1 + i % workers for i in range(workers if units is None else units))
    return Roster(range(1, workers + 1), homes, suspect_after=0.5, depth=depth)


def debt(query: int, unit: int = 0) -> Debt:
    return Debt(query, 0, unit)


def place_all(ranks: Roster, query: int, units: int) -> list[int | None]:
    """Place and post all units of a query."""
    chosen = []
    for unit in range(units):
        rank = ranks.place(debt(query, unit))
        if rank is not None:
            ranks.post(rank, debt(query, unit), 0.0)
        chosen.append(rank)
    return chosen


def test_every_unit_goes_home() -> None:
    assert place_all(roster(), 0, 4) == [1, 2, 3, 4]


def test_fewer_workers_than_units_share_them() -> None:
    ranks = roster(workers=3, units=8)
    assert place_all(ranks, 0, 8) == [1, 2, 3, 1, 2, 3, 1, 2]
    assert [ranks.ranks[p].homes for p in (1, 2, 3)] == [3, 3, 2]


def test_a_spare_steps_in_before_a_loaded_rank() -> None:
    ranks = roster(workers=6, units=4)
    ranks.fail(2)
    assert place_all(ranks, 0, 4) == [1, 5, 3, 4]
    assert place_all(ranks, 1, 4) == [1, 6, 3, 4], "the other spare in turn"


def test_without_spares_the_least_loaded_in_turn() -> None:
    ranks = roster()
    ranks.fail(4)
    assert [place_all(ranks, q, 4)[3] for q in range(4)] == [1, 2, 3, 1]


def test_a_rank_that_owes_more_than_its_depth_does_not_get_its_own_unit() -> None:
    ranks = roster(workers=2, depth=3)
    for query in range(3):
        ranks.post(1, debt(query), 0.0)
    assert ranks.place(debt(3)) == 2
    ranks.settle(1, debt(0))
    assert ranks.place(debt(3)) == 1


def test_depth_counts_for_each_unit_of_its_own() -> None:
    ranks = roster(workers=1, units=3, depth=2)
    for query in range(5):
        ranks.post(1, debt(query), 0.0)
    assert ranks.at_home(debt(6))
    ranks.post(1, debt(6), 0.0)
    assert not ranks.at_home(debt(7))
    assert ranks.place(debt(7)) == 1, "but there is nobody else"


def test_a_rank_is_not_asked_twice_for_what_it_owes() -> None:
    ranks = roster(workers=2)
    ranks.post(1, debt(0), 0.0)
    assert ranks.place(debt(0)) == 2
    ranks.post(2, debt(0), 0.0)
    assert ranks.place(debt(0)) is None


def test_others_are_tried_before_one_that_was() -> None:
    ranks = roster(workers=3)
    assert ranks.place(debt(0), tried={1}) == 2
    assert ranks.place(debt(0), tried={1, 2, 3}) == 1
    ranks.fail(2)
    ranks.fail(3)
    assert ranks.place(debt(0), tried={1}) == 1, "it alone is left"


def test_nobody_left() -> None:
    ranks = roster(workers=2)
    ranks.fail(1)
    ranks.fail(2)
    assert ranks.place(debt(0)) is None
    assert ranks.living() == []


def test_an_answer_writes_off_what_the_rank_was_asked_before() -> None:
    ranks = roster()
    for query in range(4):
        ranks.post(1, debt(query), 0.0)
    assert ranks.settle(1, debt(2)) == [debt(0), debt(1), debt(2)]
    assert list(ranks.ranks[1].owes) == [debt(3)]
    assert ranks.settle(1, debt(2)) == [], "nothing twice"


def test_a_unit_posted_again_to_the_same_rank_is_its_youngest_debt() -> None:
    ranks = roster()
    ranks.post(1, debt(0), 0.0)
    ranks.forgive(1, before=1.0)
    ranks.post(1, debt(1), 1.0)
    ranks.post(1, debt(0), 1.1)
    assert ranks.settle(1, debt(1)) == [debt(1)]
    assert list(ranks.ranks[1].owes) == [debt(0)]


def test_a_pong_forgives_only_what_was_posted_before_the_ping() -> None:
    ranks = roster()
    for query, now in ((0, 0.1), (1, 0.2), (2, 0.3)):
        ranks.post(1, debt(query), now)
    assert ranks.forgive(1, before=0.3) == [debt(0), debt(1)]
    assert list(ranks.ranks[1].owes) == [debt(2)]


def watch(ranks: Roster, *times: float) -> list[object]:
    """Look at some times; return (time, who is asked, who is suspect) where something happens."""
    looks = ((now, ranks.silent(now), ranks.overdue(now)) for now in times)
    return [look for look in looks if look[1] or look[2]]


def test_silence_is_asked_about_and_then_suspect() -> None:
    ranks = roster()
    ranks.post(2, debt(0), 0.0)
    log = watch(ranks, 0.2, 0.25, 0.26, 0.3, 0.51, 0.52, 1.0, 9.0)
    assert log == [(0.26, [2], []), (0.52, [], [2])]


def test_a_slow_rank_that_gives_signs_of_life_is_not_suspect() -> None:
    ranks = roster()
    ranks.post(2, debt(0), 0.0)
    for now in (0.26, 0.53, 0.80, 1.07):
        assert watch(ranks, now) == [(now, [2], [])]
        ranks.hear(2, now)


def test_a_rank_that_owes_nothing_may_be_silent() -> None:
    assert watch(roster(), 5.0, 10.0) == []


def test_a_leader_that_was_frozen_itself_suspects_nobody_at_once() -> None:
    ranks = roster()
    ranks.post(1, debt(0), 0.0)
    assert watch(ranks, 60.0) == [(60.0, [1], [])]


def test_a_suspect_gets_nothing_until_it_speaks() -> None:
    ranks = roster(workers=2)
    ranks.post(1, debt(0), 0.0)
    assert watch(ranks, 0.3, 0.6) == [(0.3, [1], []), (0.6, [], [1])]
    assert ranks.place(debt(1)) == 2
    assert ranks.hear(1, 0.7) and not ranks.hear(1, 0.8), "it comes back once"
    assert ranks.place(debt(1)) == 1


def test_if_all_are_suspect_they_are_asked_nevertheless() -> None:
    ranks = roster(workers=2)
    ranks.post(1, debt(0), 0.0)
    ranks.post(2, debt(1), 0.0)
    watch(ranks, 0.3, 0.6)
    assert [rank.state for rank in ranks.living()] == [State.SUSPECT] * 2
    assert ranks.place(debt(2)) == 1


@pytest.mark.parametrize("suspect", [True, False], ids=["suspect", "alive"])
def test_a_failed_rank_never_comes_back(suspect: bool) -> None:
    ranks = roster(workers=2)
    ranks.post(1, debt(0), 0.0)
    ranks.post(1, debt(1), 0.1)
    if suspect:
        watch(ranks, 0.4, 0.7)
    assert ranks.fail(1) == [debt(0), debt(1)]
    assert ranks.fail(1) == []
    assert not ranks.hear(1, 0.8)
    assert ranks.place(debt(2)) == 2
    assert watch(ranks, 5.0, 9.0) == []
