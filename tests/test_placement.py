"""Which rank computes which unit: drawn as the ranks of units 0, 1, …, a dot where nobody does."""

from __future__ import annotations

import pytest

from mpicoded.scheduling.placement import PROBE, Placement
from mpicoded.scheduling.ranks import Ranks, Rate, State, Task


class Group:
    """k + r units at home on ranks 1, 2, …; a unit takes 0.1 s and a stage 0.2 s."""

    def __init__(self, k: int, r: int, workers: int | None = None, depth: int = 9) -> None:
        self.k, self.n, self.query = k, k + r, 0
        workers = workers or self.n
        home = tuple((u + u // workers) % workers + 1 for u in range(self.n))
        self.ranks = Ranks(range(1, workers + 1), home, 0.5, depth)
        self.ranks.rates = {(0, parity): Rate(0.1, 999) for parity in (False, True)}

    def pace(self, **paces: float) -> None:
        """Set measured paces: r3=4.0; all others are 1."""
        for rank in self.ranks.workers.values():
            rank.pace, rank.timed = paces.get(f"r{rank.number}", 1.0), 0.0

    def placement(self, now: float = 0.0, oldest: int = 0, owed: bool = False) -> Placement:
        return Placement(self.ranks, (self.query, 0), self.k, oldest, now, 0.2, owed)

    def assign(self, now: float = 0.0, post: bool = False) -> list[int | str]:
        """Place a query's units; the ranks by unit. With ``post`` they owe them from now on."""
        assigned = dict(self.placement(now).assign())
        if post:
            for unit, rank in assigned.items():
                self.ranks.post(rank, Task(self.query, 0, unit), now)
        self.query += 1
        return [assigned.get(unit, ".") for unit in range(self.n)]

    def state(self, state: State, *ranks: int) -> None:
        for rank in ranks:
            self.ranks.workers[rank].state = state


def test_every_unit_at_home_while_all_are_about_equally_fast() -> None:
    group = Group(4, 2)
    assert group.assign() == [1, 2, 3, 4, 5, 6], "nothing is measured"
    group.pace(r1=1.2, r3=1.2, r5=0.95)
    assert [group.assign() for _ in range(3)] == [[1, 2, 3, 4, 5, 6]] * 3


def test_data_is_dealt_before_parity() -> None:
    group = Group(2, 1)
    assert [unit for unit, _ in group.placement().assign()] == [0, 1, 2]


def test_a_slow_rank_has_parity_and_keeps_it_when_it_is_fast_again() -> None:
    group = Group(4, 2)
    group.pace(r2=4.0, r5=1.1)
    assert group.assign() == [1, 6, 3, 4, 5, 2], "swapped with the fastest that had parity"
    group.pace()
    assert group.assign() == [1, 6, 3, 4, 5, 2]
    group.pace(r6=1.25)
    assert group.assign() == [1, 6, 3, 4, 5, 2], "a little slower is no reason"
    group.pace(r6=4.0)
    assert group.assign() == [1, 2, 3, 4, 5, 6]


def test_what_would_gain_next_to_nothing_stays() -> None:
    group = Group(4, 2)
    group.ranks.rates = {(0, parity): Rate(0.001, 999) for parity in (False, True)}
    group.pace(r2=4.0)
    assert group.assign() == [1, 2, 3, 4, 5, 6], "3 ms of 200 ms"


def test_two_slow_ranks_have_both_parity_units() -> None:
    group = Group(4, 2)
    group.pace(r1=10.0, r2=10.0)
    assert sorted(group.assign()[4:]) == [1, 2]
    group.pace(r1=10.0, r2=10.0, r3=10.0)
    assigned = group.assign()
    assert 3 not in assigned, "a third one has nothing"
    assert sorted(assigned[4:]) == [1, 2]
    assert sorted(assigned[:4])[-3:] in ([4, 5, 6], [5, 5, 6], [5, 6, 6]), "data is doubled up"


def test_a_spare_is_taken_first() -> None:
    group = Group(3, 1, workers=5)
    group.pace(r1=4.0)
    assert group.assign() == [5, 2, 3, 4]
    group.pace(r1=4.0, r4=4.0)
    assert group.assign() == [5, 2, 3, 4], "the spare is as slow"
    group.pace(r4=4.0)
    assert group.assign() == [5, 2, 3, 1], "parity on the faster spare"


def test_one_that_owes_for_long_is_slow_before_it_is_measured() -> None:
    group = Group(3, 1)
    group.pace()
    group.ranks.post(2, Task(0, 0, 1), 0.0)
    group.query = 1
    assert group.assign(now=0.4) == [1, 2, 3, 4]
    assert group.assign(now=0.5) == [1, 4, 3, 2]


def test_dead_ranks_take_parity_with_them() -> None:
    group = Group(4, 2)
    group.state(State.FAILED, 2)
    assert [group.assign() for _ in range(2)] == [[1, 5, 3, 4, ".", 6]] * 2
    group.state(State.FAILED, 6)
    assert group.assign() == [1, 5, 3, 4, ".", "."], "one unit a rank, as fast as ever"
    group.pace(r5=0.6, r1=1.2, r3=1.2, r4=1.2)
    group.state(State.FAILED, 4)
    assert group.assign() == [1, 5, 3, 5, ".", "."], "two on the fastest"
    group.state(State.FAILED, 1, 3, 5)
    assert group.assign() == ["."] * 6


def test_a_spare_replaces_a_dead_rank_for_good() -> None:
    group = Group(2, 1, workers=5)
    group.state(State.FAILED, 2)
    assert [group.assign() for _ in range(3)] == [[1, 4, 3]] * 3
    group.state(State.FAILED, 3)
    assert group.assign() == [1, 4, 5]
    assert group.ranks.home == [1, 4, 5]


def test_a_suspects_unit_comes_home_with_it() -> None:
    group = Group(3, 1)
    group.state(State.SUSPECT, 2)
    assert group.assign() == [1, 4, 3, "."]
    group.state(State.ALIVE, 2)
    assert group.assign() == [1, 2, 3, 4]
    group.state(State.SUSPECT, 1, 2, 3, 4)
    assert group.assign()[:3] == [1, 2, 3], "if all are, they are asked nevertheless"


def test_a_rank_deep_in_debt_does_without_its_own_unit() -> None:
    group = Group(2, 1, depth=2)
    for query in (7, 8):
        group.ranks.post(2, Task(query, 0, 1), 0.0)
    assert group.assign() == [1, 3, "."]


def loads(assigned: list[int | str], workers: int) -> list[int]:
    return [assigned.count(rank) for rank in range(1, workers + 1)]


def test_sharing_gives_slow_ranks_fewer_units() -> None:
    group = Group(16, 0, workers=4)
    group.pace()
    assert loads(group.assign(), 4) == [4, 4, 4, 4]
    group.pace(r1=4.0, r2=4.0)
    assert loads(group.assign(), 4) == [1, 1, 7, 7], "all are done after about 0.7 s"
    group.pace(r1=20.0)
    assert loads(group.assign(), 4)[0] == 0
    group.pace()
    assert loads(group.assign(), 4) == [4, 4, 4, 4]


def test_sharing_looks_at_what_is_owed_but_not_at_what_will_be_skipped() -> None:
    group = Group(8, 0, workers=2)
    group.pace()
    for unit in range(3):
        group.ranks.post(1, Task(5, 0, unit), 0.0)
    group.query = 6
    assert loads([rank for _, rank in group.placement(oldest=5).assign()], 2) in ([3, 5], [2, 6])
    assert loads([rank for _, rank in group.placement(oldest=6).assign()], 2) == [4, 4]


def test_sharing_keeps_copies_apart() -> None:
    group = Group(4, 4, workers=4)
    for slow in (1.0, 3.0):
        group.pace(r1=slow, r2=slow)
        assigned = group.assign()
        assert all(a != b for a, b in zip(assigned[:4], assigned[4:], strict=True))


def again(group: Group, unit: int, tried: set[int], unanswered: set[int]) -> int | None:
    return group.placement(owed=True).again(unit, tried, unanswered)


def test_again_to_those_that_have_answered() -> None:
    group = Group(4, 0)
    assert again(group, 0, {1}, {1, 2}) == 3
    assert again(group, 0, {1}, {1, 2, 3, 4}) == 2, "else to one that was not asked for this unit"
    assert again(group, 0, {1, 2, 3, 4}, {1, 2, 3, 4}) == 1
    group.state(State.SUSPECT, 1, 2)
    assert again(group, 0, {3, 4}, {3, 4}) == 3, "a suspect only if there is nobody else"
    group.state(State.FAILED, 3, 4)
    assert again(group, 0, {1}, {1}) == 2


def test_again_prefers_who_owes_least_and_never_who_owes_this_very_unit() -> None:
    group = Group(3, 0)
    group.query = 4
    group.ranks.post(2, Task(3, 0, 0), 0.0)
    assert again(group, 0, {1}, {1}) == 3
    for rank in (1, 2, 3):
        group.ranks.post(rank, Task(4, 0, 0), 0.0)
    assert again(group, 0, {1}, {1}) is None


def test_parity_again_only_to_a_rank_that_has_no_unit_of_the_stage() -> None:
    group = Group(2, 1, workers=4)
    for unit, rank in enumerate((1, 2, 3)):
        group.ranks.post(rank, Task(0, 0, unit), 0.0)
    assert again(group, 2, {3}, {3}) == 4
    group.ranks.post(4, Task(0, 0, 2), 0.0)
    assert again(group, 2, {3, 4}, {3, 4}) is None


@pytest.mark.parametrize(
    ("pace", "outstanding", "now", "probed"),
    [
        pytest.param(4.0, False, PROBE + 0.1, [2], id="slow, idle, long ago"),
        pytest.param(1.1, False, PROBE + 0.1, [], id="not slow"),
        pytest.param(4.0, True, PROBE + 0.1, [], id="its answer will tell"),
        pytest.param(4.0, False, PROBE - 0.1, [], id="measured just now"),
    ],
)
def test_probes(pace: float, outstanding: bool, now: float, probed: list[int]) -> None:
    group = Group(2, 0, workers=4)
    group.pace(r2=pace)
    if outstanding:
        group.ranks.post(2, Task(0, 0, 0), now)
    group.query = 1
    placement = group.placement(now)
    placement.assign()
    if pace < 2:
        assert 2 in placement.given
    assert placement.probes(now) == probed


def test_fixed_units_stay_at_home_whatever_the_pace() -> None:
    for group, assigned in ((Group(3, 1), [1, 2, 3, 4]), (Group(4, 0, workers=2), [1, 2, 2, 1])):
        group.ranks.adaptive = False
        group.pace(r2=9.0)
        group.ranks.post(2, Task(0, 0, 1), 0.0)
        group.query = 1
        assert group.assign(now=0.5) == assigned
        assert group.placement(now=9.9).probes(9.9) == []
