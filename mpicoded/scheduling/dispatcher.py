"""Decides, for every query in flight, who gets which unit and when a stage is done.

It owns neither a clock nor a communicator: the leader (or a simulator) tells it what happened and
when, and carries out the actions that it returns, in their order.

    actions = dispatcher.open(query, stage, now)          # post the units
    actions = dispatcher.answered(rank, task, now)        # an answer came
    actions = dispatcher.spoke(rank, now)                 # a rank is there, and has work to do
    actions = dispatcher.nothing_left(rank, asked, now)   # a rank is there, and has none
    actions = dispatcher.failed(rank, now)                # a rank died
    actions = dispatcher.tick(now)                        # time passed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpicoded.scheduling.accuracy import AccuracyGather, AccuracyTarget
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.gather import Erasures, Gather, Verdict
from mpicoded.scheduling.placement import Placement
from mpicoded.scheduling.ranks import Ranks, Task


@dataclass(frozen=True)
class Post:
    """Send this unit to this rank; ``again`` if it was sent to some rank before."""

    rank: int
    task: Task
    again: bool


@dataclass(frozen=True)
class Ready:
    """Decode this stage from ``arrived``: what the answer is made from, see ``Gather.used``.

    ``rounds`` is how often the stage's units were sent.
    """

    query: int
    stage: int
    arrived: npt.NDArray[np.bool_]
    rounds: int


@dataclass(frozen=True)
class Lost:
    """Give this query up."""

    query: int
    stage: int
    arrived: npt.NDArray[np.bool_]
    rounds: int


@dataclass(frozen=True)
class Ping:
    """Ask this rank for a sign of life; it is to repeat ``asked`` in its answer."""

    rank: int
    asked: float


@dataclass(frozen=True)
class Suspect:
    """This rank was asked and has given no sign of life."""

    rank: int


@dataclass(frozen=True)
class Late:
    """The stage was decoded without the answer that just came from this rank."""

    rank: int
    task: Task


@dataclass(frozen=True)
class Extra:
    """The answer that just came was one too many: every data unit was there."""

    rank: int
    task: Task


@dataclass(frozen=True)
class Return:
    """A suspect rank spoke again."""

    rank: int


Act = Post | Ready | Lost | Ping | Suspect | Late | Extra | Return


class Dispatcher:
    """The state of all open stages; ``codes[s]`` is the code of stage s.

    A stage that is not decodable after ``give_up`` seconds, or cannot become so by what its ranks
    still owe, is sent again to ranks that live, ``retries`` times; then its query is lost. Queries
    come in the order of their numbers. ``aims[s]``, where it is given, is the accuracy that stage s
    waits for.
    """

    def __init__(
        self,
        codes: Sequence[Erasures],
        ranks: Ranks,
        deadlines: Sequence[Deadline],
        give_up: float,
        retries: int,
        aims: Sequence[AccuracyTarget | None] = (),
    ) -> None:
        self.codes = codes
        self.aims = aims or [None] * len(codes)
        self.ranks = ranks
        self.deadlines = deadlines
        self.give_up = give_up
        self.retries = retries
        self.queries: set[int] = set()  # in flight, also between two stages
        self.next = 0  # follows the newest query that was opened
        self.gathers: dict[tuple[int, int], Gather] = {}
        self.over: dict[tuple[int, int], Gather] = {}  # and some answers still owed

    def open(self, query: int, stage: int, now: float) -> list[Act]:
        """Post all units of a stage."""
        key = (query, stage)
        about, aim = (self.codes[stage], now, self.give_up, self.deadlines[stage]), self.aims[stage]
        self.gathers[key] = Gather(*about) if aim is None else AccuracyGather(*about, aim)
        self.queries.add(query)
        self.next = max(self.next, query + 1)
        placement = self._placement(key, now, owed=False)
        acts: list[Act] = []
        for unit, rank in placement.assign():
            acts.append(self._post_one(Task(*key, unit), rank, now, again=False))
        acts += self._probe(key, placement.probes(now), now)
        return acts + self._judge(key, now)

    def answered(
        self,
        rank: int,
        task: Task,
        now: float,
        skipped: bool = False,
        seconds: float | None = None,
    ) -> list[Act]:
        """An answer came; ``skipped`` if the worker found that it was not needed any more.

        ``seconds`` is how long the rank computed, on its own clock.
        """
        acts = self.spoke(rank, now)
        if seconds is not None and not skipped:
            parity = task.unit >= self.codes[task.stage].k
            self.ranks.time(rank, task.stage, task.unit, parity, seconds, now)
        gather, over = self.gathers.get(task[:2]), self.over.get(task[:2])
        settled = self._strike(self.ranks.complete(rank, task))
        if gather is not None and not (skipped or gather.arrived[task.unit]):
            gather.arrive(task.unit, now)
        elif over is not None and not over.arrived[task.unit]:
            acts.append(Extra(rank, task) if over.complete else Late(rank, task))
            if settled:
                over.observe_late(task.unit, now, skipped)
        else:
            acts.append(Extra(rank, task))
        return acts + self._judge_stages([*settled, task], now)

    def spoke(self, rank: int, now: float) -> list[Act]:
        """A rank showed that it is there."""
        return [Return(rank)] if self.ranks.hear(rank, now) else []

    def nothing_left(self, rank: int, asked: float, now: float) -> list[Act]:
        """A rank says that it had nothing to do when asked at ``asked``: its tasks were lost."""
        acts = self.spoke(rank, now)
        lost = self._strike(self.ranks.drop_lost(rank, asked))
        return acts + self._judge_stages(lost, now)

    def failed(self, rank: int, now: float) -> list[Act]:
        """A rank died: what it owed is posted to others at once."""
        tasks = self._strike(self.ranks.fail(rank))
        acts = self._relieve(tasks, now)
        return acts + self._judge_stages(tasks, now)

    def tick(self, now: float) -> list[Act]:
        """Time has passed: look for silent ranks and for stages whose time is up."""
        acts: list[Act] = [Ping(rank, now) for rank in self.ranks.silent(now)]
        suspects = self.ranks.overdue(now)
        for rank in suspects:
            acts += self._suspect(rank, now)
        for key, gather in list(self.gathers.items()):
            if now >= gather.due:
                acts += self._judge(key, now)
            elif now >= gather.overdue and self.ranks.adaptive:
                acts += self._speculate(key, now)
        return acts

    def oldest(self) -> int:
        """Return the oldest query in flight; workers may skip the units of older ones."""
        return min(self.queries, default=self.next)

    def _suspect(self, rank: int, now: float) -> list[Act]:
        """Do not wait for it where it is needed, if there is somebody else to ask."""
        tasks = [task for task in self.ranks.workers[rank].outstanding if self._needs(task)]
        return [Suspect(rank), *(self._relieve(tasks, now) if self.ranks.alive() else ())]

    def _needs(self, task: Task) -> bool:
        gather = self.gathers.get(task[:2])
        return gather is not None and gather.wanting

    def _relieve(self, tasks: Sequence[Task], now: float) -> list[Act]:
        """Post again what a rank owed, unless the unit came or is owed by another that lives."""
        acts: list[Act] = []
        for task in tasks:
            gather = self.gathers.get(task[:2])
            done = gather is None or gather.arrived[task.unit]
            if not done and not any(task in rank.outstanding for rank in self.ranks.alive()):
                acts += self._post_again(task[:2], [task.unit], now)
        return acts

    def _post_again(self, key: tuple[int, int], units: Sequence[int], now: float) -> list[Act]:
        """Post units to ranks that may do better than those that were asked before."""
        gather, acts = self.gathers[key], list[Act]()
        placement, unanswered = self._placement(key, now), gather.unanswered()
        for unit in units:
            rank = placement.again(unit, gather.tried[unit], unanswered)
            if rank is not None:
                acts.append(self._post_one(Task(*key, unit), rank, now, True))
        return acts

    def _speculate(self, key: tuple[int, int], now: float) -> list[Act]:
        """Let idle ranks try the data units that are overdue, each once; the first answer wins.

        The youngest first: a rank begins with the oldest of what it owes.
        """
        units = self.gathers[key].overdue_units(now)
        idle = self._placement(key, now).idle() if units else []
        pairs = zip(reversed(units), idle, strict=False)
        return [self._post_one(Task(*key, unit), rank, now, True) for unit, rank in pairs]

    def _probe(self, key: tuple[int, int], ranks: Sequence[int], now: float) -> list[Act]:
        """Let slow ranks do a data unit too, to see whether they still are slow."""
        for rank in ranks:
            self.ranks.workers[rank].timed = now
        return [self._post_one(Task(*key, 0), rank, now, True) for rank in ranks]

    def _placement(self, key: tuple[int, int], now: float, owed: bool = True) -> Placement:
        k = self.codes[key[1]].k
        usual = self.deadlines[key[1]].complete(k)
        return Placement(self.ranks, key, k, self.oldest(), now, usual, owed)

    def _post_one(self, task: Task, rank: int, now: float, again: bool) -> Post:
        gather = self.gathers[task[:2]]
        self.ranks.post(rank, task, now)
        gather.expected[task.unit] += 1
        gather.tried[task.unit].add(rank)
        return Post(rank, task, again)

    def _strike(self, tasks: list[Task]) -> list[Task]:
        """Some rank does not owe these any more."""
        for task in tasks:
            key = task[:2]
            gather = self.gathers.get(key) or self.over.get(key)
            if gather is not None:
                gather.expected[task.unit] -= 1
                if key in self.over and not gather.expected.any():
                    del self.over[key]
        return tasks

    def _judge_stages(self, tasks: Sequence[Task], now: float) -> list[Act]:
        keys = [key for key in dict.fromkeys(task[:2] for task in tasks) if key in self.gathers]
        return [act for key in keys for act in self._judge(key, now)]

    def _judge(self, key: tuple[int, int], now: float) -> list[Act]:
        gather = self.gathers[key]
        verdict = gather.verdict(now)
        if verdict is Verdict.RESEND:
            if not self.ranks.living():  # the leader does better alone
                return [self._give_up(key)]
            if gather.rounds <= self.retries:
                return self._post_again(key, gather.again(now), now)
            verdict = gather.at_last(now)
        if verdict is Verdict.WAIT:
            return []
        return [self._done(key) if verdict is Verdict.DONE else self._give_up(key)]

    def _done(self, key: tuple[int, int]) -> Ready:
        gather = self.gathers.pop(key)
        if key[1] + 1 == len(self.codes):
            self.queries.discard(key[0])
        self._remember(key, gather)
        gather.observe()
        return Ready(*key, gather.code.used(gather.arrived), gather.rounds)

    def _give_up(self, key: tuple[int, int]) -> Lost:
        gather = self.gathers.pop(key)
        self.queries.discard(key[0])
        self._remember(key, gather)
        return Lost(*key, gather.arrived, gather.rounds)

    def _remember(self, key: tuple[int, int], gather: Gather) -> None:
        """Keep in mind what was missed, as long as somebody may still bring it."""
        gather.complete = gather.code.complete(gather.arrived)
        if gather.expected.any():
            self.over[key] = gather
