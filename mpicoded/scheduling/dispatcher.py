"""The leader's policy: who gets which unit of a query in flight, and when a stage is done.

It owns neither a clock nor a communicator: the leader (or a simulator) tells it what happened and
when, and carries out the actions that it returns, in their order.

    actions = dispatcher.open(query, stage, now)          # post the units
    actions = dispatcher.answered(rank, task, now)        # an answer came
    actions = dispatcher.spoke(rank, now)                 # a rank is there, and has work to do
    actions = dispatcher.nothing_left(rank, asked, now)   # a rank is there, and has none
    actions = dispatcher.failed(rank, now)                # a rank died
    actions = dispatcher.tick(now)                        # time passed

The units of a gathered stage are placed one by one, and posted again one by one. Those of a direct
segment depend on one another: all go to the ranks of one Layout, and when one of these dies or
falls silent all are posted again, by a new one. A segment is named by its last stage, which
answers. Its parity units run by themselves, on ranks that are not in the Layout; where units can
do without their neighbours, too, an open query goes on without a rank as long as it can be decoded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf

import numpy as np
import numpy.typing as npt

from mpicoded.scheduling.accuracy import AccuracyGather, AccuracyTarget
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.gather import Erasures, Gather, Verdict
from mpicoded.scheduling.layout import Homes, Layout, lay_out
from mpicoded.scheduling.placement import Placement
from mpicoded.scheduling.ranks import Ranks, State, Task


@dataclass(frozen=True)
class Post:
    """Send this unit to this rank; ``again`` if it was sent to some rank before.

    In a direct segment ``epoch`` is that of its layout, in which the unit begins.
    """

    rank: int
    task: Task
    again: bool
    epoch: int = 0


@dataclass(frozen=True)
class Place:
    """Tell its ranks a layout of the segment that ends with ``stage``, before they need it."""

    stage: int
    layout: Layout


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


# A suspect that is silent for so many times suspect_after more ends the wait of a direct segment:
# starting that anew throws away what all others have done.
BEAR = 2.0
# A rank whose answers were decoded so many times in turn has no data unit of a segment for some
# seconds, if ranks without one are left.
MISSED, FORGIVEN = 3, 10.0

Act = Post | Place | Ready | Lost | Ping | Suspect | Late | Extra | Return


class Dispatcher:
    """The state of all open stages; ``codes[s]`` is the code of stage s.

    A stage that is not decodable after ``give_up`` seconds, or cannot become so by what its ranks
    still owe, is sent again to ranks that live, ``retries`` times; then its query is lost. Queries
    come in the order of their numbers. ``aims[s]``, where it is given, is the accuracy that stage s
    waits for. ``segments`` has the home ranks of every direct segment, by its last stage; units of
    those in ``independent`` can do without their neighbours.
    """

    def __init__(
        self,
        codes: Sequence[Erasures],
        ranks: Ranks,
        deadlines: Sequence[Deadline],
        give_up: float,
        retries: int,
        aims: Sequence[AccuracyTarget | None] = (),
        segments: Mapping[int, Homes] | None = None,
        independent: Collection[int] = (),
    ) -> None:
        self.codes = list(codes)
        self.aims = list(aims) or [None] * len(codes)
        self.ranks = ranks
        self.ranks.data = {stage: code.k for stage, code in enumerate(codes)}
        self.deadlines = list(deadlines)
        self._lasts = {len(codes) - 1}  # the last stage of every plan
        self.give_up = give_up
        self.retries = retries
        self.queries: set[int] = set()  # in flight, also between two stages
        self.next = 0  # follows the newest query that was opened
        self.segments, self.independent = dict(segments or {}), frozenset(independent)
        self.layouts: dict[int, Layout] = {}  # the last one of every direct segment
        self._layout_of: dict[tuple[int, int], Layout] = {}  # of what is open
        self._epoch = 0
        self._silent: dict[int, float] = {}  # suspects, until direct segments go on without them
        self._missed: dict[int, tuple[int, float]] = {}  # times in turn, and when last
        self.ranks.direct = frozenset(
            stage for last, homes in self.segments.items() for stage in self._stages(last, homes)
        )
        self.gathers: dict[tuple[int, int], Gather] = {}
        self.over: dict[tuple[int, int], Gather] = {}  # and some answers still owed

    def extend(
        self,
        codes: Sequence[Erasures],
        deadlines: Sequence[Deadline],
        segments: Mapping[int, Homes],
    ) -> None:
        """Add the stages of another plan; its direct ``segments`` by their last stages' numbers."""
        self.segments |= segments
        self.ranks.direct |= {
            s for last, homes in segments.items() for s in self._stages(last, homes)
        }
        self.ranks.data |= {len(self.codes) + s: code.k for s, code in enumerate(codes)}
        self.codes += codes
        self.deadlines += deadlines
        self.aims += [None] * len(codes)
        self._lasts.add(len(self.codes) - 1)

    def open(self, query: int, stage: int, now: float) -> list[Act]:
        """Post all units of a stage."""
        key = (query, stage)
        about, aim = (self.codes[stage], now, self.give_up, self.deadlines[stage]), self.aims[stage]
        self.gathers[key] = Gather(*about) if aim is None else AccuracyGather(*about, aim)
        self.queries.add(query)
        self.next = max(self.next, query + 1)
        if stage in self.segments:
            return self._post_segment(key, now) + self._judge(key, now)
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
        """Take in an answer; ``skipped`` if the worker found that it was not needed any more.

        ``seconds`` is how long the rank computed, on its own clock.
        """
        acts = self.spoke(rank, now)
        if seconds is not None and not skipped and task.stage not in self.segments:
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
        """Take in a sign of life."""
        self._silent.pop(rank, None)
        return [Return(rank)] if self.ranks.hear(rank, now) else []

    def nothing_left(self, rank: int, asked: float, now: float) -> list[Act]:
        """Strike the lost tasks of a rank that had nothing to do when asked at ``asked``."""
        acts = self.spoke(rank, now)
        lost = self._strike(self.ranks.drop_lost(rank, asked, self._may_be_idle))
        return acts + self._judge_stages(lost, now)

    def failed(self, rank: int, now: float) -> list[Act]:
        """Post the tasks of a dead rank to others at once."""
        self._silent.pop(rank, None)
        tasks = self._strike(self.ranks.fail(rank))
        acts = self._relieve(tasks, now) + self._restart_without(rank, now)
        return acts + self._judge_stages(tasks, now)

    def tick(self, now: float) -> list[Act]:
        """Look for silent ranks and for stages whose time is up."""
        acts: list[Act] = []
        if now > self.ranks.look_at:
            acts += [Ping(rank, now) for rank in self.ranks.silent(now)]
            for rank in self.ranks.overdue(now):
                self._silent[rank] = now
                acts += self._suspect(rank, now)
        for rank, since in list(self._silent.items()):
            if now - since >= BEAR * self.ranks.suspect_after:
                del self._silent[rank]
                acts += self._restart_without(rank, now)
        for key, gather in list(self.gathers.items()):
            if now >= gather.due:
                acts += self._judge(key, now)
            elif now >= gather.overdue and self.ranks.adaptive:
                acts += self._speculate(key, now)
        return acts

    def next_tick(self) -> float:
        """Return the earliest time at which :meth:`tick` may do anything."""
        times = [gather.due for gather in self.gathers.values()]
        if self.ranks.adaptive:
            times += [gather.overdue for gather in self.gathers.values()]
        times += [since + BEAR * self.ranks.suspect_after for since in self._silent.values()]
        return min([*times, self.ranks.look_at])

    def withdraw(self, rank: int, task: Task) -> None:
        """Take back a task that was never sent, and is not needed any more."""
        if self.ranks.workers[rank].outstanding.pop(task, None) is not None:
            self._strike([task])

    def oldest(self) -> int:
        """Return the oldest query in flight; workers may skip the units of older ones."""
        return min(self.queries, default=self.next)

    def _suspect(self, rank: int, now: float) -> list[Act]:
        """Post a suspect rank's tasks again where they are needed, if another rank is alive."""
        tasks = [task for task in self.ranks.workers[rank].outstanding if self._needs(task)]
        return [Suspect(rank), *(self._relieve(tasks, now) if self.ranks.alive() else ())]

    def _needs(self, task: Task) -> bool:
        gather = self.gathers.get(task[:2])
        return gather is not None and gather.wanting

    def _relieve(self, tasks: Sequence[Task], now: float) -> list[Act]:
        """Post a rank's tasks again, unless the unit came or another living rank has the task."""
        acts: list[Act] = []
        for task in tasks:
            gather = self.gathers.get(task[:2])
            done = gather is None or gather.arrived[task.unit] or task.stage in self.segments
            if not done and not self._owed(task):
                acts += self._post_again(task[:2], [task.unit], now)
        return acts

    def _owed(self, task: Task) -> bool:
        """True if the task is outstanding on a rank that is not suspect."""
        ranks = self.ranks.owing()
        return any(task in rank.outstanding for rank in ranks if rank.state is State.ALIVE)

    def _post_again(self, key: tuple[int, int], units: Sequence[int], now: float) -> list[Act]:
        """Post units to ranks that may do better than those that were asked before."""
        gather, acts = self.gathers[key], list[Act]()
        if key[1] in self.segments:
            return self._restart(key, now, set[int]().union(*(gather.tried[u] for u in units)))
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
        if key[1] in self.segments:
            self.gathers[key].overdue = inf
            return []
        units = self.gathers[key].overdue_units(now)
        idle = self._placement(key, now).idle() if units else []
        pairs = zip(reversed(units), idle, strict=False)
        return [self._post_one(Task(*key, unit), rank, now, True) for unit, rank in pairs]

    def _probe(self, key: tuple[int, int], ranks: Sequence[int], now: float) -> list[Act]:
        """Let slow ranks do a data unit too, to see whether they still are slow."""
        for rank in ranks:
            self.ranks.workers[rank].timed = now
        return [self._post_one(Task(*key, 0), rank, now, True) for rank in ranks]

    # ---- direct segments

    def _named(self, key: tuple[int, int]) -> tuple[int, Homes]:
        return key[1], self.segments[key[1]]

    def _stages(self, last: int, homes: Homes) -> range:
        return range(last - len(homes) + 1, last + 1)

    def _post_segment(
        self, key: tuple[int, int], now: float, older: int = 0, but: Collection[int] = ()
    ) -> list[Act]:
        """Post all units by the layout for the ranks that are alive now, ``but`` some if it can.

        ``older`` is the epoch in which the query was before.
        """
        gather, acts = self.gathers[key], list[Act]()
        homes, before = self.segments[key[1]], self.layouts.get(key[1])
        ranks, named = homes, set(chain(*homes))
        poor = {p for p, (n, last) in self._missed.items() if n >= MISSED and now < last + FORGIVEN}
        alive = {rank.number for rank in self.ranks.alive()}
        poor = poor if len(alive - poor) >= len(named) else set()
        if but or not named <= alive - poor:
            able = [rank.number for rank in self.ranks.alive() or self.ranks.living()]
            able = [rank for rank in able if rank not in poor]
            coded = self.ranks.home_of(key[1])[len(homes[-1]) :]
            able.sort(key=lambda rank: (rank in coded, rank))  # spares before those of parity units
            able = [rank for rank in able if rank not in but] or able
            ranks = lay_out(homes, able)
        if before is None or before.ranks != ranks or before.epoch <= older:
            self._epoch += 1
            self.layouts[key[1]] = before = Layout(self._epoch, ranks)
            acts.append(Place(key[1], before))
        self._layout_of[key] = before
        for rank in sorted(before.members):
            stage, units = before.last(rank)
            for unit in units:
                self.ranks.post(rank, Task(key[0], self._stages(key[1], homes)[stage], unit), now)
        for unit, rank in enumerate(before.ranks[-1]):
            gather.expected[unit] += 1
            gather.tried[unit].add(rank)
        for unit, rank in enumerate(before.ranks[0]):
            acts.append(Post(rank, Task(*key, unit), older > 0, before.epoch))
        return acts + self._post_parity(key, before, now)

    def _post_parity(self, key: tuple[int, int], layout: Layout, now: float) -> list[Act]:
        """Post the parity units to ranks that have no data unit, as far as there are any."""
        gather, home, acts = self.gathers[key], self.ranks.home_of(key[1]), list[Act]()
        able = [rank.number for rank in self.ranks.alive() if self.ranks.ready(rank)]
        free = [rank for rank in able if rank not in layout.members]
        k, n = self.codes[key[1]].k, self.codes[key[1]].n
        spare = [rank for rank in free if rank not in home[k:]]
        for unit in range(k, n):
            task = Task(*key, unit)
            if gather.arrived[unit] or self._owed(task):
                continue
            rank = home[unit] if home[unit] in free else spare.pop(0) if spare else None
            if rank is not None:
                acts.append(self._post_one(task, rank, now, again=False))
        return acts

    def _restart(self, key: tuple[int, int], now: float, but: Collection[int] = ()) -> list[Act]:
        """Post a segment anew, from the map that the leader holds."""
        older = self._layout_of[key].epoch
        self._close_segment(key)
        return self._post_segment(key, now, older, but)

    def _restart_without(self, rank: int, now: float) -> list[Act]:
        """Restart the segments that a rank works in; the others go on."""
        if self.ranks.deserted:
            return []
        keys = [key for key, layout in self._layout_of.items() if rank in layout.members]
        acts: list[Act] = []
        for key in keys:
            if key[1] in self.independent:
                self._strike(self.ranks.cancel([rank], key[0], self._stages(*self._named(key))))
                acts += self._judge(key, now)
            else:
                acts += self._restart(key, now)
        return acts

    def _close_segment(self, key: tuple[int, int]) -> None:
        """Expect no more answers of a segment."""
        if key not in self._layout_of:
            return
        layout, (last, homes) = self._layout_of.pop(key), self._named(key)
        self._strike(self.ranks.cancel(layout.members, key[0], self._stages(last, homes)))

    def _may_be_idle(self, rank: int, task: Task) -> bool:
        """True if a rank that has nothing to do can still be sent the task by a neighbour."""
        layout = self._layout_of.get((task.query, self._segment_of(task.stage)))
        return layout is not None and rank in layout.members and rank not in layout.ranks[0]

    def _segment_of(self, stage: int) -> int:
        return next((s for s, h in self.segments.items() if stage in self._stages(s, h)), stage)

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
        """Expect each of these tasks of one rank less."""
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
            if self.ranks.deserted:  # the leader does better alone
                return [self._give_up(key)]
            # each unit has its own retries: two ranks that lose answers do not use up a third one's
            if gather.sent[gather.unowed(now)].max(initial=0) <= self.retries:
                return self._post_again(key, gather.again(now), now)
            verdict = gather.at_last(now)
        if verdict is Verdict.WAIT:
            return []
        return [self._done(key, now) if verdict is Verdict.DONE else self._give_up(key)]

    def _done(self, key: tuple[int, int], now: float) -> Ready:
        gather, layout = self.gathers[key], self._layout_of.get(key)
        for unit, rank in enumerate(layout.ranks[-1] if layout else ()):
            times, _ = self._missed.pop(rank, (0, now))
            if not gather.arrived[unit]:
                self._missed[rank] = times + 1, now
        self._close_segment(key)
        del self.gathers[key]
        if key[1] in self._lasts:
            self.queries.discard(key[0])
        self._remember(key, gather)
        gather.observe()
        return Ready(*key, gather.code.used(gather.arrived), gather.rounds)

    def _give_up(self, key: tuple[int, int]) -> Lost:
        self._close_segment(key)
        gather = self.gathers.pop(key)
        self.queries.discard(key[0])
        self._remember(key, gather)
        return Lost(*key, gather.arrived, gather.rounds)

    def _remember(self, key: tuple[int, int], gather: Gather) -> None:
        """Keep the gather of a stage that is over, as long as answers may still come."""
        gather.complete = gather.code.complete(gather.arrived)
        if gather.expected.any():
            self.over[key] = gather
