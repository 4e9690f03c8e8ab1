"""Decisions of the leader and its workers in a direct segment, passed by hand from one to another.

Tensors are left out: a handle is a word. Time stands still unless a test says otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from mpicoded.answer import Mode
from mpicoded.cluster import Cluster
from mpicoded.codes.mds import Mds
from mpicoded.geometry import Range
from mpicoded.moves import routes
from mpicoded.network.graph import trace
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.runtime.leader import new_rank
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.dispatcher import Dispatcher
from mpicoded.scheduling.events import (
    Alive,
    Answered,
    Asked,
    Came,
    Event,
    Finish,
    Gone,
    Offered,
    Placed,
    Ran,
    RanPart,
    Release,
    Reply,
    Run,
    RunUnit,
    Send,
    SendAlive,
    SendLayout,
    SendPiece,
    SendPing,
    SendTimes,
    Span,
    Taken,
    Tick,
    Times,
)
from mpicoded.scheduling.layout import Layout, lay_out
from mpicoded.scheduling.leader import LeaderRank
from mpicoded.scheduling.ranks import Ranks, Task
from mpicoded.scheduling.worker import WorkerRank
from mpicoded.settings import Settings
from mpicoded.split import SPLITS, Request
from mpicoded.steps import CUT, ENCODE, GATHER, HEAD, Node
from mpicoded.trace import Action

K = 3


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    torch.manual_seed(0)
    convs = [nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)]
    chain = trace(nn.Sequential(*convs, nn.Flatten(), nn.Linear(2 * 8 * 12, 4)), (2, 8, 12))
    plan = SPLITS["width"].plan(Request(chain, K, 0, stages=("0", "1", "2"), direct=True))
    return uncoded(chain, plan, None)


@dataclass
class Cooperation:
    """A leader and its workers; messages lie in ``mail``, ``held`` is what a test keeps back."""

    deployment: Deployment
    workers: int = K
    queue: float = inf
    now: float = 0.0
    dead: set[int] = field(default_factory=set)
    frozen: set[int] = field(default_factory=set)
    mail: deque[tuple[int, Event]] = field(default_factory=deque)
    finished: list[Finish] = field(default_factory=list)
    runs: list[tuple[int, Task, int]] = field(default_factory=list)
    sent: set[tuple[Any, ...]] = field(default_factory=set)
    early: int = 0  # pieces that left before their unit was done

    def __post_init__(self) -> None:
        self.parts = self.deployment.parts()
        cluster = Cluster.local(self.workers + 1)
        settings = Settings(window=4, suspect_after=0.5, give_up=5.0)
        self.leader = new_rank(self.deployment, cluster, settings, self.queue)
        self.ranks = {p: WorkerRank(self.routes_of(p)) for p in cluster.workers}

    def routes_of(self, rank: int) -> Callable[[int, Layout], Any]:
        plan: Plan = self.deployment.plan
        return lambda last, layout: routes(plan, layout.ranks).get(rank, {})

    def offer(self, *queries: int) -> None:
        for query in queries:
            self.tell(Offered(query, self.now))

    def tell(self, event: Event) -> None:
        for action in self.leader.on(event, self.now):
            match action:
                case Run(task):
                    span = Span(Action.ENCODE, self.now, self.now)
                    self.mail.append((0, Ran(task, (span,))))
                case Send(rank, (query, _, _), node, epoch):
                    came = Came(
                        0, Task(query, *node), epoch, Node(node.stage, CUT),
                        self.leader.oldest, self.now, "input",
                    )  # fmt: skip
                    self.mail.append((rank, came))
                    self.mail.append((0, Taken(rank)))
                case SendLayout(rank, stage, layout):
                    self.mail.append((rank, Placed(stage, layout)))
                case SendPing(rank, asked):
                    self.mail.append((rank, Asked(asked, self.leader.oldest)))
                case Finish():
                    self.finished.append(action)

    def deliver(self, rank: int, event: Event) -> None:
        if rank in self.dead:
            return
        if rank == 0:
            self.tell(event)
            return
        for action in self.ranks[rank].on(event, self.now):
            self.carry_out(rank, action)

    def carry_out(self, rank: int, action: Any) -> None:
        clock = (self.now, self.now, self.now)
        match action:
            case RunUnit(task, epoch, pieces):
                assert all(piece.handle is not None for piece in pieces)
                self.runs.append((rank, task, epoch))
                span = Span(Action.COMPUTE, self.now, self.now)
                output = "output" if self.ranks[rank].wanted(task, epoch) else None
                parts = self.parts.get((task.stage, task.unit))
                for part in parts.parts[:-1] if parts else ():
                    self.mail.append((rank, RanPart(task, epoch, part.writes, "part")))
                self.mail.append((rank, Ran(task, (span,), output, epoch)))
            case SendPiece(target, task, epoch, origin, _, output):
                message = rank, target, task, epoch, origin
                assert message not in self.sent, "once"
                self.sent.add(message)
                self.early += output == "part"
                oldest = self.ranks[rank].oldest
                came = Came(rank, task, epoch, origin, oldest, self.now, "piece")
                self.mail.append((target, came))
            case Reply(task, output):
                self.mail.append((0, Answered(rank, task, output is None, clock, self.now)))
            case SendTimes(task, clocks):
                self.mail.append((0, Times(rank, task, clocks)))
            case SendAlive(asked, todo):
                self.mail.append((0, Alive(rank, asked, todo)))
            case Release():
                pass

    def run(self, steps: int = 100_000) -> None:
        """Deliver the mail, at most so many messages; a frozen rank's waits."""
        waiting: deque[tuple[int, Event]] = deque()
        while self.mail and steps:
            rank, event = self.mail.popleft()
            if rank in self.frozen:
                waiting.append((rank, event))
            else:
                self.deliver(rank, event)
            steps -= 1
        self.mail.extendleft(reversed(waiting))

    def wait(self, seconds: float) -> None:
        """Let time pass in small steps, with the mail delivered after each."""
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            self.tell(Tick())
            self.run()

    def kill(self, rank: int) -> None:
        self.dead.add(rank)
        self.tell(Gone(rank))
        for other in self.ranks.keys() - self.dead:
            self.deliver(other, Gone(rank))

    def answered(self) -> list[int]:
        assert not any(each.lost or each.refused for each in self.finished)
        return [each.query for each in self.finished]

    def books_are_closed(self) -> None:
        """Nothing is owed, held or waited for once all queries are over."""
        dispatcher = self.leader.dispatcher
        assert not dispatcher.gathers and not self.leader.flights
        assert not any(p.outstanding for p in dispatcher.ranks.alive())
        self.offer(10_000)  # ranks hear that all others are over
        self.run()
        for rank in self.ranks.keys() - self.dead - self.frozen:
            worker = self.ranks[rank]
            assert (worker.todo, len(worker._slots), len(worker._clocks)) == (0, 0, 0)
            assert not worker._sent


def test_each_unit_runs_once_where_it_lives(deployment: Deployment) -> None:
    all_ = Cooperation(deployment)
    all_.offer(0)
    all_.run()
    assert all_.answered() == [0]
    assert sorted((rank, task.stage) for rank, task, _ in all_.runs) == [
        (rank, stage) for rank in (1, 2, 3) for stage in (0, 1, 2)
    ]
    assert all(task.unit == rank - 1 for rank, task, _ in all_.runs)
    assert all_.early == len(all_.sent) == 2 * 4, "each border leaves before its unit is done"
    all_.books_are_closed()


def test_spans_of_all_stages_are_in_the_trace(deployment: Deployment) -> None:
    all_ = Cooperation(deployment)
    all_.offer(0)
    all_.run()
    events = all_.leader.trace.drain()
    computed = events[(events["action"] == Action.COMPUTE) & (events["stage"] < 2)]
    assert sorted(zip(computed["rank"].tolist(), computed["stage"].tolist(), strict=True)) == [
        (rank, stage) for rank in (1, 2, 3) for stage in (0, 1)
    ]


@pytest.mark.parametrize("steps", range(0, 60, 3))
@pytest.mark.parametrize("spares", [0, 1])
def test_a_death_at_any_moment_restarts_and_loses_nothing(
    deployment: Deployment, steps: int, spares: int
) -> None:
    all_ = Cooperation(deployment, K + spares)
    all_.offer(0, 1)
    all_.run(steps)
    all_.kill(2)
    all_.run()
    assert sorted(all_.answered()) == [0, 1]
    assert all(task.query < 2 for _, task, _ in all_.runs)
    all_.books_are_closed()


@pytest.mark.parametrize("order", [(1, 2), (3, 2), (2, 1)])
def test_the_last_rank_does_it_alone(deployment: Deployment, order: Sequence[int]) -> None:
    all_ = Cooperation(deployment)
    all_.offer(0, 1, 2)
    all_.run(20)
    for rank in order:
        all_.kill(rank)
        all_.run(10)
    all_.run()
    assert sorted(all_.answered()) == [0, 1, 2]
    all_.books_are_closed()


def test_without_a_worker_the_leader_goes_on_by_itself(deployment: Deployment) -> None:
    all_ = Cooperation(deployment)
    all_.offer(0)
    all_.run(15)
    for rank in (1, 2, 3):
        all_.kill(rank)
    all_.run()
    assert all_.answered() == [0]


@pytest.mark.parametrize("steps", range(0, 45, 5))
def test_a_frozen_rank_is_left_out_after_a_while_and_comes_back(
    deployment: Deployment, steps: int
) -> None:
    all_ = Cooperation(deployment)
    all_.offer(0, 1)
    all_.run(steps)
    all_.frozen.add(1)
    all_.wait(2.5)
    assert sorted(all_.answered()) == [0, 1]
    all_.frozen.clear()
    all_.run()
    all_.offer(2)
    all_.run()
    assert all_.answered()[-1] == 2
    assert {rank for rank, task, _ in all_.runs if task.query == 2} == {1, 2, 3}
    all_.books_are_closed()


def test_a_rank_that_is_silent_for_a_moment_restarts_nothing(deployment: Deployment) -> None:
    all_ = Cooperation(deployment)
    all_.offer(0)
    all_.run(12)
    all_.frozen.add(2)
    all_.wait(0.9)
    all_.frozen.clear()
    all_.wait(0.1)
    assert all_.answered() == [0]
    assert {epoch for _, _, epoch in all_.runs} == {1}


@pytest.mark.parametrize("queue", [1, 2, 7])
def test_a_query_is_refused_exactly_when_window_and_queue_are_full(
    deployment: Deployment, queue: int
) -> None:
    all_, draw, refused = Cooperation(deployment, queue=queue), Random(queue), set[int]()
    for query in range(300):
        if len(all_.finished) + 4 + queue == query:
            refused.add(query)
        all_.offer(query)
        assert {each.query for each in all_.finished if each.refused} == refused
        all_.run(draw.choice((0, 0, 10, 20, 60)))
    all_.run()
    assert 20 < len(refused) < 280
    assert sorted(each.query for each in all_.finished) == list(range(300))
    assert {each.query for each in all_.finished if not each.refused}.isdisjoint(refused)
    assert not any(query in refused for _, (query, _, _), _ in all_.runs)
    all_.books_are_closed()


def test_latency_counts_from_the_schedule_also_of_a_query_that_came_late(
    deployment: Deployment,
) -> None:
    all_ = Cooperation(deployment, queue=1)
    for query in range(6):
        all_.now = 10.0 + query
        all_.tell(Offered(query, since=1.0 + query))
    all_.run()
    answers = {
        each.query: each.flight.answer(None, each.lost, all_.now, refused=each.refused)
        for each in all_.finished
    }
    assert [answers[query].submitted for query in range(6)] == [1, 2, 3, 4, 5, 6]
    assert [answers[query].latency for query in range(5)] == [14, 13, 12, 11, 10]
    assert (answers[5].mode, answers[5].attempts) == (Mode.REFUSED, 0)
    assert not answers[5].arrived.any()


def test_layouts() -> None:
    homes = ((1, 2, 3, 4), (1, 2, 3, 4))
    assert lay_out(homes, [1, 2, 3, 4, 5]) == homes
    assert lay_out(homes, [1, 3, 4, 5]) == ((1, 5, 3, 4),) * 2
    assert lay_out(homes, [1, 3, 4]) == ((1, 1, 3, 4),) * 2
    assert lay_out(homes, [4]) == ((4, 4, 4, 4),) * 2
    assert lay_out(homes, []) == homes
    assert lay_out(((1, 2), (3, 4)), [1, 2, 4]) == ((1, 2), (2, 4))


def test_parity_that_is_never_sent_is_not_owed() -> None:
    """Data is here before parity is encoded, query after query: its rank stays ready for units."""
    code = Mds(2, 1)
    ranks = Ranks((1, 2, 3), (1, 2, 3), 0.5, 4)
    dispatcher = Dispatcher([code], ranks, [Deadline()], 5.0, 2)
    leader = LeaderRank(dispatcher, [code], [Range(0, 1)], [[100] * 3], 1)
    span = (Span(Action.ENCODE, 0.0, 0.0),)
    for query in range(10):
        leader.on(Offered(query, 0.0), 0.0)
        sent = leader.on(Ran(Task(query, 0, CUT), span), 0.0)
        assert [each.rank for each in sent if isinstance(each, Send)] == [1, 2]
        assert [each.task.unit for each in sent if isinstance(each, Run)] == [ENCODE]
        assert leader.wanted(Task(query, 0, ENCODE))
        for unit in (0, 1):
            leader.on(Answered(unit + 1, Task(query, 0, unit), False, (0.0,) * 3, 0.0), 0.0)
        assert not leader.wanted(Task(query, 0, ENCODE)), "the data is here"
        late = leader.on(Ran(Task(query, 0, ENCODE), ()), 0.0)
        assert not any(isinstance(each, Send) for each in late)
        assert not any(rank.outstanding for rank in ranks.alive())
        leader.on(Ran(Task(query, 0, GATHER), span), 0.0)
        assert leader.on(Ran(Task(query, 0, HEAD), span), 0.0)
    assert not leader.flights
