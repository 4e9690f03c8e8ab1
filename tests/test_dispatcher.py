"""Stories of a group: what happens to it, and what the dispatcher then does.

A line of a log is one action: "post 0/2 > 3" sends unit 2 of query 0 to rank 3, "again" sends it
once more; "ready 0 101" decodes query 0 from units 0 and 2. In a plan of several stages a query is
written with its stage, "0.1".
"""

from __future__ import annotations

from math import inf

import numpy as np
import pytest

from mpicoded.codes.mds import Mds
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.dispatcher import (
    Act,
    Dispatcher,
    Extra,
    Late,
    Lost,
    Ping,
    Post,
    Ready,
    Return,
    Suspect,
)
from mpicoded.scheduling.ranks import Ranks, Task


class Story:
    """A dispatcher of k + r units, unit i at home on rank i + 1, whose actions are text."""

    def __init__(
        self,
        k: int,
        r: int,
        workers: int | None = None,
        deadline: float | None = 0.1,
        retries: int = 2,
        stages: int = 1,
        depth: int = 6,
    ) -> None:
        workers = k + r if workers is None else workers
        home = tuple(1 + i % workers for i in range(k + r))
        self.ranks = Ranks(range(1, workers + 1), home, suspect_after=0.5, depth=depth)
        deadlines = [Deadline(deadline) for _ in range(stages)]
        codes = [Mds(k, r)] * stages
        self.dispatcher = Dispatcher(codes, self.ranks, deadlines, 2.0, retries)

    def open(self, query: int, now: float, stage: int = 0) -> list[str]:
        return self.tell(self.dispatcher.open(query, stage, now))

    def answer(
        self,
        rank: int,
        unit: int,
        now: float,
        query: int = 0,
        stage: int = 0,
        skipped: bool = False,
    ) -> list[str]:
        task = Task(query, stage, unit)
        return self.tell(self.dispatcher.answered(rank, task, now, skipped))

    def fail(self, rank: int, now: float) -> list[str]:
        return self.tell(self.dispatcher.failed(rank, now))

    def busy(self, rank: int, now: float) -> list[str]:
        return self.tell(self.dispatcher.spoke(rank, now))

    def idle(self, rank: int, asked: float, now: float) -> list[str]:
        return self.tell(self.dispatcher.nothing_left(rank, asked, now))

    def tick(self, now: float) -> list[str]:
        return self.tell(self.dispatcher.tick(now))

    def tell(self, acts: list[Act]) -> list[str]:
        return [self.line(act) for act in acts]

    def line(self, act: Act) -> str:
        match act:
            case Post(rank, task, again):
                return f"{'again' if again else 'post'} {self.name(*task)} > {rank}"
            case Late(rank, task):
                return f"late {self.name(*task)} < {rank}"
            case Extra(rank, task):
                return f"extra {self.name(*task)} < {rank}"
            case Ready(query, stage, arrived) | Lost(query, stage, arrived):
                bits = "".join(map(str, arrived.astype(int)))
                return f"{type(act).__name__.lower()} {self.name(query, stage)} {bits}"
            case Ping(rank) | Suspect(rank) | Return(rank):
                return f"{type(act).__name__.lower()} {rank}"

    def name(self, query: int, stage: int, unit: int | None = None) -> str:
        name = f"{query}.{stage}" if len(self.dispatcher.codes) > 1 else f"{query}"
        return name if unit is None else f"{name}/{unit}"

    def suspect(self, *ranks: int, now: float) -> None:
        """Bring it about that these ranks, and no other, have become suspect at ``now``."""
        for at in (now - 0.3, now):
            for rank in self.ranks.workers:
                if rank not in ranks:
                    self.dispatcher.spoke(rank, at)
            self.log = self.tick(at)

    def empty(self) -> bool:
        outstanding = any(rank.outstanding for rank in self.ranks.living())
        return not (self.dispatcher.gathers or self.dispatcher.queries or outstanding)


def test_all_is_well() -> None:
    story = Story(2, 1)
    assert story.open(0, 0.0) == ["post 0/0 > 1", "post 0/1 > 2", "post 0/2 > 3"]
    assert story.answer(1, 0, 0.01) == []
    assert story.answer(2, 1, 0.02) == ["ready 0 110"]
    assert story.answer(3, 2, 0.03) == ["extra 0/2 < 3"]
    assert story.empty()


@pytest.mark.parametrize(
    ("deadline", "log"),
    [
        pytest.param(0.0, [(0.2, "ready 0 101")], id="0"),
        pytest.param(0.5, [(0.5, "ready 0 101")], id="0.5"),
        pytest.param(inf, [(2.0, "ready 0 101")], id="inf"),
    ],
)
def test_a_straggler_is_waited_for_until_the_deadline(
    deadline: float, log: list[tuple[float, str]]
) -> None:
    story = Story(2, 1, deadline=deadline)
    story.open(0, 0.0)
    happened = [(0.1, line) for line in story.answer(1, 0, 0.1)]
    happened += [(0.2, line) for line in story.answer(3, 2, 0.2)]
    for now in np.arange(0.25, 2.6, 0.25):
        story.busy(2, float(now))
        happened += [(float(now), line) for line in story.tick(float(now))]
    assert [(now, line) for now, line in happened if "ping" not in line] == log
    assert story.answer(2, 1, 2.6) == ["late 0/1 < 2"]
    assert story.empty()


def test_a_dead_ranks_units_go_to_the_least_loaded_at_once() -> None:
    story = Story(3, 1)
    story.open(0, 0.0)
    story.open(1, 0.1)
    story.answer(1, 0, 0.2)
    story.answer(2, 1, 0.2)
    assert story.fail(3, 0.2) == ["again 0/2 > 1", "again 1/2 > 2"]
    assert story.open(2, 0.3) == [
        "post 2/0 > 1",
        "post 2/1 > 2",
        "post 2/2 > 4",  # a data unit each, and no parity: as fast as before
    ]


def test_a_spare_steps_in_for_a_dead_rank() -> None:
    story = Story(2, 1, workers=4)
    story.open(0, 0.0)
    assert story.fail(2, 0.1) == ["again 0/1 > 4"]
    assert story.open(1, 0.2) == ["post 1/0 > 1", "post 1/1 > 4", "post 1/2 > 3"]


def test_what_a_living_rank_owes_already_is_not_posted_again_when_another_dies() -> None:
    story = Story(3, 0)
    story.open(0, 0.0)
    story.suspect(3, now=0.6)
    assert story.log == ["suspect 3", "again 0/2 > 1"]
    assert story.fail(3, 0.7) == []
    assert story.fail(1, 0.8) == ["again 0/0 > 2", "again 0/2 > 2"]


def test_a_silent_unit_is_written_off_when_its_rank_answers_a_later_one() -> None:
    story = Story(2, 1, deadline=inf)
    story.open(0, 0.0)
    story.open(1, 0.0)
    story.answer(2, 1, 0.1)
    assert story.answer(3, 2, 0.1) == [], "unit 0 may still come"
    assert story.answer(1, 0, 0.2, query=1) == ["ready 0 011"]


def test_if_the_rest_would_not_do_a_silent_unit_is_sent_to_another_rank_at_once() -> None:
    story = Story(3, 0)
    story.open(0, 0.0)
    story.open(1, 0.0)
    assert story.answer(2, 1, 0.1, query=1) == ["again 0/1 > 1"], "not to rank 2, which lost it"
    story.answer(1, 0, 0.2)
    story.answer(3, 2, 0.2)
    story.answer(1, 0, 0.3, query=1)
    assert story.answer(1, 1, 0.4) == ["ready 0 111"]


def test_silence_is_asked_about_then_suspect_then_back() -> None:
    story = Story(2, 1, deadline=inf)
    story.open(0, 0.0)
    story.answer(1, 0, 0.1)
    story.answer(2, 1, 0.1)
    assert story.tick(0.2) == []
    assert story.tick(0.3) == ["ping 3"]
    assert story.tick(0.5) == []
    assert story.tick(0.6) == ["suspect 3"]
    assert story.open(1, 0.7) == ["post 1/0 > 1", "post 1/1 > 2"]
    assert story.answer(3, 2, 3.0) == ["return 3", "extra 0/2 < 3"]
    assert story.open(2, 3.1)[-1] == "post 2/2 > 3"


def test_a_slow_rank_that_gives_signs_of_life_is_left_in_peace() -> None:
    story = Story(2, 0)
    story.open(0, 0.0)
    story.answer(1, 0, 0.1)
    log = []
    for now in (0.3, 0.6, 0.9, 1.2):
        log += story.tick(now) + story.busy(2, now + 0.01)
    assert log == ["ping 2"] * 4
    assert story.answer(2, 1, 1.3) == ["ready 0 11"]


def test_a_suspects_units_are_posted_to_others_only_where_they_are_needed() -> None:
    story = Story(2, 1, deadline=inf)
    story.open(0, 0.0)
    story.open(1, 0.0)
    story.answer(1, 0, 0.1)
    story.answer(3, 2, 0.1)  # query 0 can be decoded, query 1 cannot
    story.suspect(2, now=0.9)
    assert story.log == ["suspect 2", "again 1/1 > 1"]


def test_suspects_do_not_take_one_anothers_units() -> None:
    story = Story(3, 0)
    story.open(0, 0.0)
    story.answer(1, 0, 0.1)
    story.suspect(2, 3, now=0.9)
    assert story.log == ["suspect 2", "again 0/1 > 1", "suspect 3", "again 0/2 > 1"]


def test_if_all_are_suspect_they_are_waited_for() -> None:
    story = Story(2, 1)
    story.open(0, 0.0)
    story.suspect(1, 2, 3, now=0.9)
    assert story.log == ["suspect 1", "suspect 2", "suspect 3"]
    assert story.answer(2, 1, 1.0) == ["return 2"]
    assert story.answer(1, 0, 1.0) == ["return 1", "ready 0 110"]


def test_a_pong_with_nothing_to_do_forgives_what_was_posted_before_the_ping() -> None:
    story = Story(2, 1, deadline=inf)
    story.open(0, 0.0)
    story.answer(2, 1, 0.1)
    story.answer(3, 2, 0.1)
    assert story.dispatcher.tick(0.3) == [Ping(1, asked=0.3)]
    story.open(1, 0.3)  # in the same moment: it may have left after the ping
    assert story.idle(1, asked=0.3, now=0.31) == ["ready 0 011"]
    assert list(story.ranks.workers[1].outstanding) == [Task(1, 0, 0)]


def test_not_decodable_at_give_up_is_sent_to_others_and_then_lost() -> None:
    story = Story(3, 0, workers=4, retries=2)
    story.open(0, 0.0)
    story.answer(1, 0, 0.1)
    story.answer(2, 1, 0.1)
    log: list[tuple[float, str]] = []
    for now in np.arange(0.25, 6.3, 0.25):
        for rank in story.ranks.workers:
            story.busy(rank, float(now))  # all are there, but unit 2 never comes
        log += [(float(now), line) for line in story.tick(float(now))]
    assert log == [(2.0, "again 0/2 > 4"), (4.0, "again 0/2 > 1"), (6.0, "lost 0 110")]
    assert not story.dispatcher.gathers


def test_a_round_that_finds_no_rank_waits_for_those_that_owe() -> None:
    story = Story(2, 0, workers=1)
    story.open(0, 0.0)
    story.busy(1, 2.0)
    assert story.tick(2.0) == []
    assert story.answer(1, 0, 2.5) == []
    assert story.answer(1, 1, 3.0) == ["ready 0 11"]


def test_sharing_one_worker_has_all_units() -> None:
    story = Story(2, 1, workers=1)
    assert story.open(0, 0.0) == ["post 0/0 > 1", "post 0/1 > 1", "post 0/2 > 1"]
    assert story.answer(1, 0, 0.1) + story.answer(1, 1, 0.2) == ["ready 0 110"]


def test_no_worker_left() -> None:
    story = Story(2, 0)
    story.open(0, 0.0)
    assert story.fail(1, 0.1) == ["again 0/0 > 2"]
    assert story.fail(2, 0.2) == ["lost 0 00"]
    assert story.open(1, 0.3) == ["lost 1 00"]
    assert story.empty()


def test_the_last_worker_dies_but_what_came_will_do() -> None:
    story = Story(1, 1, deadline=inf)
    story.open(0, 0.0)
    assert story.answer(2, 1, 0.1) == []
    assert story.fail(2, 0.2) == []
    assert story.fail(1, 0.2) == ["ready 0 01"]


def test_a_rank_deep_in_debt_does_not_get_its_own_unit() -> None:
    story = Story(2, 1, depth=2, deadline=0.0)
    log = []
    for query in range(3):
        log.append(story.open(query, query * 0.1)[-1])
        for rank in (1, 2):
            story.answer(rank, rank - 1, query * 0.1 + 0.05, query=query)
    assert log == ["post 0/2 > 3", "post 1/2 > 3", "post 2/1 > 2"]


def test_the_same_unit_counts_once() -> None:
    story = Story(3, 0)
    story.open(0, 0.0)
    story.suspect(1, now=0.6)
    assert story.log == ["suspect 1", "again 0/0 > 2"]
    assert story.answer(1, 0, 0.7) == ["return 1"]
    assert story.answer(2, 1, 0.7) == []
    assert story.answer(2, 0, 0.8) == ["extra 0/0 < 2"]
    assert story.answer(3, 2, 0.9) == ["ready 0 111"]
    assert story.empty()


def test_answers_of_closed_stages_are_late_and_nothing_else() -> None:
    story = Story(1, 2, deadline=0.0, stages=2)
    story.open(0, 0.0)
    assert story.answer(2, 1, 0.1) == ["ready 0.0 010"]
    story.open(0, 0.2, stage=1)
    assert story.answer(1, 0, 0.3) == ["late 0.0/0 < 1"]
    assert story.answer(1, 0, 0.3) == ["late 0.0/0 < 1"]
    assert story.answer(3, 2, 0.3, skipped=True) == ["late 0.0/2 < 3"]
    assert story.answer(1, 0, 0.4, stage=1) == ["ready 0.1 100"]


def test_a_query_between_two_stages_is_still_in_flight() -> None:
    story = Story(1, 0, stages=2)
    story.open(0, 0.0)
    story.answer(1, 0, 0.1)  # is being decoded
    story.open(1, 0.2)
    assert story.dispatcher.oldest() == 0, "or workers would skip its second stage"
    story.open(0, 0.3, stage=1)
    story.answer(1, 0, 0.4, query=1)
    assert story.answer(1, 0, 0.5, stage=1) == ["ready 0.1 1"]
    assert story.dispatcher.oldest() == 1


def test_only_first_rounds_teach_the_deadline() -> None:
    story = Story(1, 0, workers=2, deadline=None)
    deadline = story.dispatcher.deadlines[0]
    story.open(0, 0.0)
    story.answer(1, 0, 0.5)
    story.open(1, 1.0)
    story.idle(1, asked=1.3, now=1.3)  # it was lost; rank 2 has it now
    assert story.answer(2, 0, 1.4, query=1) == ["ready 1 1"]
    assert (deadline.stages, deadline.usual) == (1, {0: 0.5})


def test_a_ping_between_two_queries_does_not_make_the_next_one_old() -> None:
    story = Story(1, 1, deadline=0.0)
    story.open(0, 0.0)
    assert story.answer(2, 1, 0.1) == ["ready 0 01"]
    assert story.tick(0.4) == ["ping 1"]
    assert story.dispatcher.oldest() == 1


def test_both_rounds_do_not_go_to_the_same_silent_ranks() -> None:
    story = Story(4, 0, workers=6, retries=2)
    story.open(0, 0.0)
    for rank in (1, 2):
        story.answer(rank, rank - 1, 0.1)  # ranks 3 and 4 never answer
    log = []
    for now in (2.0, 4.0):
        for rank in story.ranks.workers:
            story.busy(rank, now)
        log += story.tick(now)
    assert log == [
        *("again 0/2 > 5", "again 0/3 > 6"),  # nor do the spares
        *("again 0/2 > 1", "again 0/3 > 2"),  # not 3 and 4 crosswise
    ]


class Copies(Mds):
    """One copy of each of k data units: any is as good as the other."""

    def complete(self, arrived: np.ndarray) -> bool:
        return bool((arrived[: self.k] | arrived[self.k :]).all())

    def decodable(self, arrived: np.ndarray) -> bool:
        return self.complete(arrived)


def test_with_an_exact_copy_nobody_waits_for_the_data_unit() -> None:
    story = Story(2, 2, deadline=inf)
    story.dispatcher.codes = [Copies(2, 2)]
    story.open(0, 0.0)
    assert story.answer(1, 0, 0.1) == []
    assert story.answer(4, 3, 0.1)[-1].startswith("ready 0")
    assert story.answer(2, 1, 0.2) == ["extra 0/1 < 2"], "and not late"


def warm(story: Story, queries: int = 20, seconds: float = 1.0) -> None:
    """Serve queries, every answer after 0.2 s."""
    for query in range(queries):
        for act in story.dispatcher.open(query, 0, float(query)):
            assert isinstance(act, Post)
            now = query + 0.2
            story.dispatcher.answered(act.rank, act.task, now, seconds=0.1 * seconds)


def test_a_slow_rank_gets_a_parity_unit() -> None:
    story = Story(2, 1, deadline=None)
    warm(story)
    assert story.open(20, 20.0) == ["post 20/0 > 1", "post 20/1 > 2", "post 20/2 > 3"]
    story.dispatcher.answered(1, Task(20, 0, 0), 20.2, seconds=0.1)
    story.dispatcher.answered(3, Task(20, 0, 2), 20.2, seconds=0.1)
    story.tick(20.3)
    story.dispatcher.answered(2, Task(20, 0, 1), 20.9, seconds=0.8)
    assert story.open(21, 21.0) == ["post 21/0 > 1", "post 21/1 > 3", "post 21/2 > 2"]


def test_a_data_unit_that_is_overdue_is_tried_by_an_idle_rank_too() -> None:
    story = Story(2, 0, workers=3)
    warm(story)
    assert story.open(20, 20.0) == ["post 20/0 > 1", "post 20/1 > 2"]
    assert story.answer(1, 0, 20.2, query=20) == []
    assert story.tick(20.34) == ["ping 2"]
    assert story.tick(20.36) == ["again 20/1 > 1"]
    assert [line for line in story.tick(20.4) if "again" in line] == [], "once"
    assert story.answer(1, 1, 20.5, query=20) == ["ready 20 11"]
    assert story.answer(2, 1, 20.9, query=20) == ["extra 20/1 < 2"]
    assert story.empty()
    assert story.dispatcher.over == {}


def test_a_slow_rank_without_work_is_probed() -> None:
    story = Story(1, 0, workers=2)
    warm(story)
    story.ranks.move(0, 2)
    for rank, pace in ((1, 4.0), (2, 1.0)):
        story.ranks.workers[rank].pace, story.ranks.workers[rank].timed = pace, 20.0
    assert story.open(20, 21.0) == ["post 20/0 > 2"]
    story.answer(2, 0, 21.2, query=20)
    assert story.open(21, 23.0) == ["post 21/0 > 2", "again 21/0 > 1"]
    assert story.answer(1, 0, 23.1, query=21) == ["ready 21 1"]
    assert story.answer(2, 0, 23.2, query=21) == ["extra 21/0 < 2"]
    assert story.open(22, 23.3) == ["post 22/0 > 2"], "not again so soon"
