"""Ranks as the leader sees them: alive, suspect or failed, and the outstanding tasks of each.

No MPI, no clock: the caller says what time it is. A rank that owes an answer and is silent for
half of ``suspect_after`` is asked for a sign of life; one that is only slow gives it. If it is
silent for the other half too, it is suspect: it gets no new unit until it speaks. A failed rank
never comes back. Word of a rank comes behind its answers, and these share rank 0's link with those
of others: so nobody is suspect for as long as all that is still to come takes the link.

Messages between two ranks keep their order, and a worker answers in the order in which it was
asked: so what it skipped was lost.

A rank's pace is what its own clock says of its last answers: seconds for a unit's work, over what
such work usually takes. Data and parity units, and stages, differ in how fast a FLOP is, and that
is divided out.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import reduce
from math import inf
from operator import or_
from typing import NamedTuple

PACE = 0.3  # of a rank's pace towards its last answer, on a log scale
SPIKE = 4.0  # an answer counts at the most as so many times slower than the last ones
FADE = 1.1  # times slower than it was seen that rank 0's link may have become by the next stage
STEP = 0.02  # the usual rate goes up or down by this part: so it follows the median


class State(Enum):
    """States of a rank."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    FAILED = "failed"


class Task(NamedTuple):
    """A unit that a rank was sent and has not answered."""

    query: int
    stage: int
    unit: int


@dataclass(eq=False)
class WorkerState:
    """One worker. ``outstanding`` maps each task to when it was posted, oldest first."""

    number: int
    homes: int  # units a stage that are its own
    pace: float = 1.0  # 2: takes twice the usual time for its work
    planned: float | None = None  # the pace that the plan was made for, if it was for any
    timed: float | None = None  # when it was measured last
    state: State = State.ALIVE
    outstanding: dict[Task, float] = field(default_factory=dict)
    heard: float = 0.0
    asked: float | None = None  # when it was asked for a sign of life, if it has not spoken since
    patience: float = 0.0  # s more that it was given then, as messages took the link
    sent: int = 0
    lossy: bool = False  # its last answer was lost

    @property
    def unused(self) -> bool:
        """True of a spare that was never given anything: of these the first ones will do."""
        used = self.homes or self.sent or self.outstanding or self.timed is not None
        return self.state is State.ALIVE and not used

    @property
    def limit(self) -> float:
        """Second since when the rank is silent with a task outstanding, or asked."""
        if self.asked is not None:
            return self.asked
        return max(next(iter(self.outstanding.values()), inf), self.heard)


@dataclass
class Rate:
    """Seconds for a unit of work: about the median of all answers."""

    seconds: float
    answers: int = 1

    def update(self, seconds: float) -> None:
        """Learn from another answer."""
        step = 1 + max(STEP, 1 / self.answers)
        self.seconds *= min(max(seconds / self.seconds, 1 / step), step)
        self.answers += 1


class Ranks:
    """All workers; ``home[unit]`` is the rank that computes a unit when nothing is wrong.

    ``own[stage]`` are the homes of a stage that has its own, and the number of its units: several
    may be on a rank. ``planned`` are the paces that the plan was made for.
    ``suspect_after`` is in seconds. ``depth`` is how many tasks a rank may have, for each of its
    own units, before its units go to others. ``work[stage][unit]`` is what a unit takes, in FLOPs
    or anything else; default: all the same. ``traffic[stage][unit]`` are the bytes of its messages;
    ``byte`` are the seconds of one on rank 0's link, 0 if nothing is known of it yet.
    No event costs more with more ranks that are idle.
    """

    def __init__(
        self,
        workers: Iterable[int],
        home: Sequence[int],
        suspect_after: float,
        depth: int,
        work: Sequence[Sequence[float]] | None = None,
        own: Mapping[int, Sequence[int]] | None = None,
        planned: Mapping[int, float] | None = None,
        traffic: Sequence[Sequence[int]] | None = None,
        byte: float = 0.0,
    ) -> None:
        self.home = list(home)
        alike = dict[tuple[int, ...], list[int]]()  # such stages have one list: they move together
        self._own = {s: alike.setdefault(tuple(h), list(h)) for s, h in (own or {}).items()}
        self._homes = [self.home, *alike.values()]
        self.suspect_after = suspect_after
        self.depth = depth
        self.work, self.traffic = work, traffic
        self._byte = byte
        homes = reduce(or_, map(Counter, self._homes))  # the most of any stage
        self.workers = {p: WorkerState(p, homes[p]) for p in workers}
        for p, pace in (planned or {}).items():
            self.workers[p].pace = self.workers[p].planned = pace
        unused = [p for p in self.workers if not homes[p]]
        self._unused = sorted(unused, key=lambda p: self.workers[p].pace)
        self._used = [p for p in self.workers if homes[p]]
        self._failed = 0
        self._watched = set[int]()  # those that owe an answer or were asked, and maybe others
        self.look_at = inf  # nobody has been silent for too long before
        self._sharing = len(self.workers) < len(self.home)
        self.direct = frozenset[int]()  # stages of direct segments
        self.data = dict[int, int]()  # data units of each stage
        self.adaptive = True  # False: units stay at home whatever a rank's pace is
        self.rates: dict[tuple[int, bool], Rate] = {}  # of a stage's data and parity units

    def living(self) -> list[WorkerState]:
        """Return the ranks that have not failed."""
        return [rank for rank in self.workers.values() if rank.state is not State.FAILED]

    def alive(self) -> list[WorkerState]:
        """Return the ranks that have neither failed nor are suspect."""
        return [rank for rank in self.workers.values() if rank.state is State.ALIVE]

    @property
    def deserted(self) -> bool:
        """True if all ranks have failed."""
        return self._failed == len(self.workers)

    def concerned(self) -> list[WorkerState]:
        """Return the living ranks without the unused ones beyond the first, one for each unit."""
        first = list[int]()
        for p in self._unused:
            if self.workers[p].unused:
                first.append(p)
            else:
                insort(self._used, p)
            if len(first) == max(map(len, self._homes)):
                break
        if first != self._unused[: len(first)]:
            gone = set(self._used)
            self._unused = [p for p in self._unused if p not in gone]
        numbers = sorted([*self._used, *first]) if first else self._used
        ranks = map(self.workers.__getitem__, numbers)
        return [rank for rank in ranks if rank.state is not State.FAILED]

    def owing(self) -> list[WorkerState]:
        """Return the ranks with outstanding tasks, or that were asked for a sign of life."""
        ranks = [self.workers[p] for p in sorted(self._watched)]
        return [rank for rank in ranks if rank.outstanding or rank.asked is not None]

    def takes(self, stage: int, unit: int, parity: bool) -> float:
        """Return the seconds that a unit takes a rank of pace 1, as far as is known."""
        rate = self.rates.get((stage, parity)) or next(iter(self.rates.values()), Rate(1.0))
        return self._work(stage, unit) * rate.seconds

    def _work(self, stage: int, unit: int) -> float:
        # a pool has no FLOPs, and takes time all the same
        return max(self.work[stage][unit], 1.0) if self.work is not None else 1.0

    def extend(
        self,
        start: int,
        work: Sequence[Sequence[float]],
        homes: Sequence[Sequence[int]],
        planned: Mapping[int, float],
        traffic: Sequence[Sequence[int]],
        beside: bool = False,
    ) -> None:
        """Add the stages of another plan, from ``start`` on: from now on they are at home so.

        One ``beside`` the plans before does not take their place.
        """
        self.work = [*(self.work or ()), *work]
        self.traffic = [*(self.traffic or ()), *traffic]
        alike = dict[tuple[int, ...], list[int]]()
        for s, home in enumerate(homes):
            self._own[start + s] = alike.setdefault(tuple(home), list(home))
        self._homes = [*(self._homes if beside else ()), *alike.values()] or [[]]
        for p, rank in self.workers.items():
            rank.homes = max(each.count(p) for each in self._homes)
            rank.planned = planned.get(p, rank.planned)

    def home_of(self, stage: int) -> list[int]:
        """Return the rank of every unit of a stage when nothing is wrong."""
        return self._own.get(stage, self.home)

    def shares(self, stage: int) -> bool:
        """True if ranks are too few for the units of a stage, and no plan deals those out."""
        return (self._sharing and stage not in self._own) or self.replicated(stage)

    def units_of(self, stage: int) -> int:
        """Return how many units a stage has."""
        return len(self.home_of(stage) if self.work is None else self.work[stage])

    def replicated(self, stage: int) -> bool:
        """True if the units of a stage are at home on each of its ranks."""
        return len(self.home_of(stage)) > self.units_of(stage)

    def ready(self, rank: WorkerState) -> bool:
        """True if a rank can be given new units: it is alive and has not too many tasks."""
        return rank.state is State.ALIVE and len(rank.outstanding) < self.depth * max(1, rank.homes)

    def move(self, unit: int, number: int, stage: int = 0) -> None:
        """Give a unit a new home; what was at home there, if anything, goes to the old one."""
        home = self.home_of(stage)
        old = home[unit]
        if number in home:
            home[home.index(number)] = old
        home[unit] = number
        for p in (old, number):
            self.workers[p].homes = max(each.count(p) for each in self._homes)

    def time(
        self, number: int, stage: int, unit: int, parity: bool, seconds: float, now: float
    ) -> None:
        """Learn a rank's pace from the seconds of a unit on its own clock."""
        rank, work = self.workers[number], max(self._work(stage, unit), 1e-6)
        rate = max(seconds, 1e-6) / work / rank.pace
        usual = self.rates.setdefault((stage, parity), Rate(rate))
        usual.update(rate)
        rank.pace *= min(rate / usual.seconds, SPIKE) ** PACE
        rank.timed = now

    def post(self, number: int, task: Task, now: float) -> None:
        """Note that a task was sent to a rank."""
        rank = self.workers[number]
        rank.outstanding[task] = now
        rank.sent += 1
        self._watch(rank, now)

    def _watch(self, rank: WorkerState, now: float) -> None:
        self._watched.add(rank.number)
        self.look_at = min(self.look_at, now + self.suspect_after / 2)

    def hear(self, number: int, now: float) -> bool:
        """Take in a sign of life; return True if the rank was suspect and is alive again."""
        rank = self.workers[number]
        rank.heard, rank.asked = now, None
        if rank.state is not State.SUSPECT:
            return False
        rank.state = State.ALIVE
        self._watch(rank, now)
        return True

    def complete(self, number: int, task: Task) -> list[Task]:
        """Strike an answered task and all older ones, which were lost; return them.

        Tasks of direct segments wait for neighbours, and may be answered in any order.
        """
        outstanding = self.workers[number].outstanding
        tasks = [t for t in outstanding if t.stage not in self.direct]
        if task not in outstanding:
            completed = []
        else:
            completed = [task] if task.stage in self.direct else tasks[: tasks.index(task) + 1]
        for done in completed:
            del outstanding[done]
        self.workers[number].lossy = False
        return completed

    def drop_lost(
        self,
        number: int,
        before: float,
        to_come: Callable[[int, Task], bool] = lambda rank, task: False,
    ) -> list[Task]:
        """Strike and return the lost tasks of an idle rank: those posted before ``before``.

        Except for tasks that are still ``to_come`` to it.
        """
        outstanding = self.workers[number].outstanding
        lost = [
            t for t, posted in outstanding.items() if posted < before and not to_come(number, t)
        ]
        for task in lost:
            del outstanding[task]
        self.workers[number].lossy |= bool(lost)
        return lost

    def cancel(self, numbers: Iterable[int], query: int, stages: Collection[int]) -> list[Task]:
        """Strike and return these ranks' tasks of these stages of a query."""
        cancelled: list[Task] = []
        for outstanding in (self.workers[number].outstanding for number in numbers):
            tasks = [t for t in outstanding if t.query == query and t.stage in stages]
            for task in tasks:
                del outstanding[task]
            cancelled += tasks
        return cancelled

    def fail(self, number: int) -> list[Task]:
        """Mark a rank as failed; return its outstanding tasks."""
        rank = self.workers[number]
        self._failed += rank.state is not State.FAILED
        rank.state = State.FAILED
        tasks, rank.outstanding = list(rank.outstanding), {}
        return tasks

    def defer(self, numbers: Iterable[int], now: float) -> None:
        """Count the silence of these ranks from now: their tasks have not been sent before."""
        for rank in (self.workers[number] for number in numbers):
            rank.heard = now
            rank.asked = None if rank.asked is None else now

    def silent(self, now: float) -> list[int]:
        """Return the ranks to be asked now for a sign of life."""
        half = self.suspect_after / 2
        silent = [
            rank
            for rank in self._owing_alive()
            if rank.outstanding and rank.asked is None and now - rank.limit > half
        ]
        patience = self._byte * self._to_come() if silent else 0.0
        for rank in silent:
            rank.asked, rank.patience = now, patience
        return [rank.number for rank in silent]

    def overdue(self, now: float) -> list[int]:
        """Mark the ranks that were asked and have not spoken as suspect and return them."""
        half, owing = self.suspect_after / 2, self.owing()
        ranks = [rank for rank in owing if rank.state is State.ALIVE]
        overdue = [p for p in ranks if p.asked is not None and now - p.asked > half + p.patience]
        for rank in overdue:
            rank.state = State.SUSPECT
        waiting = [rank for rank in ranks if rank.state is State.ALIVE]
        limits = [p.limit + half + (0.0 if p.asked is None else p.patience) for p in waiting]
        self.look_at = min(limits, default=inf)
        self._watched = {rank.number for rank in owing}
        return [rank.number for rank in overdue]

    def passed(self, stage: int, seconds: float) -> None:
        """Learn how fast rank 0's link is at least, from a gathered stage that took so long.

        A stage that computes for long says little: of the last ones the fastest counts.
        """
        nbytes = sum(self.traffic[stage]) if self.traffic else 0
        if nbytes:
            byte = seconds / nbytes
            self._byte = min(byte, FADE * self._byte) if self._byte else byte

    def _to_come(self) -> int:
        """Return the bytes of all messages of what ranks that are alive owe."""
        owed = (task for rank in self._owing_alive() for task in rank.outstanding)
        return sum(self.traffic[task.stage][task.unit] for task in owed) if self.traffic else 0

    def _owing_alive(self) -> list[WorkerState]:
        return [rank for rank in self.owing() if rank.state is State.ALIVE]
