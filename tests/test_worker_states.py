"""Who gets a unit, who outstanding what, who is believed to be there."""

from __future__ import annotations

import pytest

from mpicoded.scheduling.ranks import Ranks, Task


def some_ranks(workers: int = 4, units: int | None = None, depth: int = 6) -> Ranks:
    """Ranks 1 …; unit i is at home on rank 1 + i mod workers; silence is half a second."""
    homes = tuple(1 + i % workers for i in range(workers if units is None else units))
    return Ranks(range(1, workers + 1), homes, suspect_after=0.5, depth=depth)


def task(query: int, unit: int = 0) -> Task:
    return Task(query, 0, unit)


def test_a_rank_that_owes_much_is_not_ready_for_more() -> None:
    ranks = some_ranks(workers=2, units=4, depth=2)
    for query in range(4):
        assert ranks.ready(ranks.workers[1])
        ranks.post(1, task(query), 0.0)
    assert not ranks.ready(ranks.workers[1]), "twice two units of its own"
    ranks.complete(1, task(0))
    assert ranks.ready(ranks.workers[1])


def test_a_unit_moves_and_what_was_there_goes_to_its_old_home() -> None:
    ranks = some_ranks(workers=5, units=4)
    ranks.move(1, 4)
    assert ranks.home == [1, 4, 3, 2]
    ranks.move(0, 5)
    assert ranks.home == [5, 4, 3, 2]
    assert [rank.homes for rank in ranks.workers.values()] == [0, 1, 1, 1, 1]


def time_all(ranks: Ranks, times: int, seconds: dict[int, float], parity: bool = False) -> None:
    """Every rank says ``times`` times that a unit took it so many seconds."""
    for _ in range(times):
        for rank, took in seconds.items():
            ranks.time(rank, 0, 0, parity, took, 1.0)


def paces(ranks: Ranks) -> list[float]:
    """Relative to the first rank's."""
    return [rank.pace / ranks.workers[1].pace for rank in ranks.workers.values()]


def test_paces_follow_what_the_ranks_say() -> None:
    ranks = some_ranks()
    time_all(ranks, 30, {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.4})
    assert paces(ranks) == pytest.approx([1, 1, 1, 4], rel=0.1)
    time_all(ranks, 12, {1: 0.1, 2: 0.1, 3: 0.1, 4: 0.1})
    assert paces(ranks) == pytest.approx([1, 1, 1, 1], rel=0.1), "it recovers"
    assert ranks.takes(0, 0, parity=False) == pytest.approx(0.1, rel=0.3)


def test_one_long_pause_is_not_slowness() -> None:
    ranks = some_ranks()
    time_all(ranks, 30, dict.fromkeys(range(1, 5), 0.1))
    ranks.time(2, 0, 0, False, 50.0, 1.0)
    assert paces(ranks)[1] < 1.6


def test_a_straggler_that_computes_all_parity_units_stays_slow() -> None:
    ranks = some_ranks()
    time_all(ranks, 30, {1: 0.1, 2: 0.1, 3: 0.1, 4: 1.0})
    for _ in range(100):
        time_all(ranks, 1, {1: 0.1, 2: 0.1, 3: 0.1})
        time_all(ranks, 1, {4: 3.0}, parity=True)  # a parity unit takes three times as long
    assert paces(ranks)[3] > 5


def test_work_and_stages_are_divided_out() -> None:
    ranks = Ranks([1, 2], [1, 2], 0.5, 9, work=[[2e6, 1e6], [8e6, 4e6]])
    for _ in range(30):
        for stage, seconds in ((0, 0.02), (1, 0.03)):
            ranks.time(1, stage, 0, False, seconds, 1.0)
            ranks.time(2, stage, 1, False, seconds, 1.0)  # as long, for half the work
    assert paces(ranks)[1] == pytest.approx(2, rel=0.1)
    takes = [ranks.takes(stage, 0, parity=False) for stage in (0, 1)]
    assert takes[1] / takes[0] == pytest.approx(1.5, rel=0.2)


def test_an_answer_writes_off_what_the_rank_was_asked_before() -> None:
    ranks = some_ranks()
    for query in range(4):
        ranks.post(1, task(query), 0.0)
    assert ranks.complete(1, task(2)) == [task(0), task(1), task(2)]
    assert list(ranks.workers[1].outstanding) == [task(3)]
    assert ranks.complete(1, task(2)) == [], "nothing twice"


def test_a_unit_posted_again_to_the_same_rank_is_its_youngest_debt() -> None:
    ranks = some_ranks()
    ranks.post(1, task(0), 0.0)
    ranks.drop_lost(1, before=1.0)
    ranks.post(1, task(1), 1.0)
    ranks.post(1, task(0), 1.1)
    assert ranks.complete(1, task(1)) == [task(1)]
    assert list(ranks.workers[1].outstanding) == [task(0)]


def test_a_pong_forgives_only_what_was_posted_before_the_ping() -> None:
    ranks = some_ranks()
    for query, now in ((0, 0.1), (1, 0.2), (2, 0.3)):
        ranks.post(1, task(query), now)
    assert ranks.drop_lost(1, before=0.3) == [task(0), task(1)]
    assert list(ranks.workers[1].outstanding) == [task(2)]


def watch(ranks: Ranks, *times: float) -> list[object]:
    """Look at some times; return (time, who is asked, who is suspect) where something happens."""
    looks = ((now, ranks.silent(now), ranks.overdue(now)) for now in times)
    return [look for look in looks if look[1] or look[2]]


def test_silence_is_asked_about_and_then_suspect() -> None:
    ranks = some_ranks()
    ranks.post(2, task(0), 0.0)
    log = watch(ranks, 0.2, 0.25, 0.26, 0.3, 0.51, 0.52, 1.0, 9.0)
    assert log == [(0.26, [2], []), (0.52, [], [2])]


def test_a_slow_rank_that_gives_signs_of_life_is_not_suspect() -> None:
    ranks = some_ranks()
    ranks.post(2, task(0), 0.0)
    for now in (0.26, 0.53, 0.80, 1.07):
        assert watch(ranks, now) == [(now, [2], [])]
        ranks.hear(2, now)


def test_a_rank_that_owes_nothing_may_be_silent() -> None:
    assert watch(some_ranks(), 5.0, 10.0) == []


def test_a_leader_that_was_frozen_itself_suspects_nobody_at_once() -> None:
    ranks = some_ranks()
    ranks.post(1, task(0), 0.0)
    assert watch(ranks, 60.0) == [(60.0, [1], [])]


def test_a_suspect_is_not_ready_until_it_speaks() -> None:
    ranks = some_ranks(workers=2)
    ranks.post(1, task(0), 0.0)
    assert watch(ranks, 0.3, 0.6) == [(0.3, [1], []), (0.6, [], [1])]
    assert not ranks.ready(ranks.workers[1])
    assert ranks.hear(1, 0.7) and not ranks.hear(1, 0.8), "it comes back once"
    assert ranks.ready(ranks.workers[1])


@pytest.mark.parametrize("suspect", [True, False], ids=["suspect", "alive"])
def test_a_failed_rank_never_comes_back(suspect: bool) -> None:
    ranks = some_ranks(workers=2)
    ranks.post(1, task(0), 0.0)
    ranks.post(1, task(1), 0.1)
    if suspect:
        watch(ranks, 0.4, 0.7)
    assert ranks.fail(1) == [task(0), task(1)]
    assert ranks.fail(1) == []
    assert not ranks.hear(1, 0.8)
    assert ranks.living() == [ranks.workers[2]]
    assert watch(ranks, 5.0, 9.0) == []


def test_work_without_flops_takes_time():
    ranks = Ranks([1, 2], (1, 2), 1.0, 4, [[0.0, 0.0]])
    ranks.time(1, 0, 0, False, 0.1, now=1.0)
    assert ranks.takes(0, 0, False) > 0


def test_a_rank_is_not_suspect_for_what_has_not_been_sent():
    ranks = Ranks([1, 2], (1, 2), suspect_after=1.0, depth=4)
    for rank in (1, 2):
        ranks.post(rank, Task(0, 0, rank - 1), now=0.0)
    assert ranks.silent(0.6) == [1, 2]
    ranks.defer([2], now=0.9)
    assert ranks.overdue(1.2) == [1]


def test_nobody_is_suspect_while_messages_take_the_link() -> None:
    ranks = some_ranks(workers=2)
    ranks.traffic = [[4_000_000, 1_000_000], [10, 10]]
    for stage, seconds in ((1, 9.0), (0, 1.0), (1, 9.0)):
        ranks.passed(stage, seconds)  # stage 0 tells the link's rate, 5 MB/s, which fades a little
    for rank in (1, 2):
        ranks.post(rank, task(0, rank - 1), 0.0)
    assert ranks.silent(0.3) == [1, 2], "asking costs little"
    assert not ranks.overdue(1.6) and ranks.look_at == pytest.approx(0.3 + 0.25 + 1.1)
    ranks.hear(2, 1.4)
    ranks.complete(2, task(0, 1))
    assert ranks.overdue(1.7) == [1], "half of suspect_after, and 5 MB at 4.5 MB/s"
