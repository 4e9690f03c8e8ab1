"""A simulated run in random weather, whose books are checked after every event of the leader.

Workers serve in order, at random speeds or as ``service`` says (seconds for a rank and a task, None
if its answer is lost); answers are lost, ranks freeze, go on and die. Posting a unit takes the
leader ``send`` seconds; queries come at multiples of ``tick``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from random import Random
from typing import Any

import numpy as np

from mpicoded.cluster import Cluster, Device, Link
from mpicoded.codes.mds import Mds
from mpicoded.faults import Effect
from mpicoded.geometry import Box, Range
from mpicoded.scheduling.accuracy import AccuracyTarget
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.dispatcher import Act, Dispatcher, Extra, Late, Lost, Ping, Post, Ready
from mpicoded.scheduling.events import Answered, Event, Finish, Offered, Run, Tick
from mpicoded.scheduling.leader import LeaderRank
from mpicoded.scheduling.ranks import Ranks, State, Task
from mpicoded.simulate.run import GRAIN, Simulation
from mpicoded.steps import GATHER
from mpicoded.trace import Action

LATENCY = 0.001
TICK = 0.01
GIVE_UP = 1.0
SUSPECT_AFTER = 0.2


@dataclass
class Weather:
    """What may happen in a world."""

    silence: float = 0.0  # share of units whose answer is never sent
    freezes: int = 0
    deaths: int = 0
    known: bool = True  # whether somebody tells the leader of a death
    stragglers: int = 0


class Watched(LeaderRank):
    """Shows what the dispatcher decides before it is done."""

    see: Callable[[Sequence[Act]], None]

    def _carry_out(self, acts: Sequence[Act], now: float) -> None:
        self.see(acts)
        super()._carry_out(acts, now)


class World(Simulation):
    """A run of ``queries`` whose costs and faults are random."""

    def __init__(
        self,
        seed: int,
        weather: Weather,
        k: int = 6,
        r: int = 2,
        workers: int = 8,
        window: int = 4,
        queries: int = 200,
        stages: int = 1,
        deadline: float | None = None,
        retries: int = 20,
        service: Callable[[Random, int, Task], float | None] | None = None,
        send: float = 0.0,
        tick: float = TICK,
        give_up: float = GIVE_UP,
        suspect_after: float = SUSPECT_AFTER,
        aim: AccuracyTarget | None = None,
        code: Any = None,
    ) -> None:
        self.weather, self.total, self.stages = weather, queries, stages
        home = tuple(1 + i % workers for i in range(k + r))
        self.ranks = Ranks(range(1, workers + 1), home, suspect_after, window + 8)
        codes = [code or Mds(k, r)] * stages
        deadlines = [Deadline(deadline) for _ in range(stages)]
        aims = [aim] * stages
        self.dispatcher = Dispatcher(codes, self.ranks, deadlines, give_up, retries, aims)
        segments, nbytes = [Range(s, s + 1) for s in range(stages)], [[0] * (k + r)] * stages
        leader = Watched(self.dispatcher, codes, segments, nbytes, window)
        leader.see = self.see
        cluster = Cluster.alike(workers + 1, Device(), Link(latency=LATENCY / 2))
        super().__init__(leader, self, cluster, queries, seed=seed, done=self.end)
        self.service, self.send_takes, self.step = service, send, tick
        self.speeds = {p: self.random.uniform(0.8, 1.2) for p in self.ranks.workers}
        for p in self.random.sample(sorted(self.speeds), weather.stragglers):
            self.speeds[p] *= 10
        self.takes: dict[int, float] = {}  # of the task that a rank has begun with
        self.opened: dict[int, float] = {}
        self.last: dict[int, Act] = {}
        self.ended: dict[int, Act] = {}
        self.took: dict[int, float] = {}
        self.answered: set[Task] = set()
        self.acts: list[Act] = []
        self.log: list[tuple[float, str]] = []

    def run(self, limit: float = 1000.0) -> World:
        length, everybody = self.total * 0.005, sorted(self.speeds)
        for p in self.random.sample(everybody, self.weather.deaths):
            die = partial(self.worker(p).die, self.weather.known)
            self.after(self.random.uniform(0, length), die)
        for _ in range(self.weather.freezes):
            worker = self.worker(self.random.choice(everybody))
            freeze = partial(worker.freeze, self.random.uniform(0.01, 2.0))
            self.after(self.random.uniform(0, length), freeze)
        super().run(limit)
        return self

    def _offer_at(self, query: int, at: float) -> None:
        super()._offer_at(query, self.step * ceil(at / self.step - 1e-9))

    # ---- what all takes

    def node(self, run: Run) -> Iterator[tuple[Action, float]]:
        between = run.task.unit == GATHER and run.task.stage + 1 < self.stages
        yield Action.DECODE, 0.002 * between

    def pack(self, nbytes: float) -> float:
        return self.send_takes

    def answer(self, stage: int, unit: int) -> float:
        return 0.0

    def unit(self, rank: int, stage: int, unit: int) -> float:
        raise AssertionError("seconds() says it")

    def piece(self, stage: int, box: Box, source: int, target: int) -> tuple[float, float]:
        raise AssertionError("no direct segments")

    def effect(self, rank: int, task: Task) -> Effect:
        takes: float | None = self.speeds[rank] * self.random.expovariate(1 / 0.005)
        if self.service is not None:
            takes = self.service(self.random, rank, task)
        self.takes[rank] = abs(takes or 0.0)
        return Effect(silent=takes is None or self.random.random() < self.weather.silence)

    def seconds(self, rank: int, task: Task, halos: Sequence[Any] = ()) -> float:
        return self.takes[rank]

    # ---- what must hold

    def tell(self, event: Event) -> None:
        self.acts = []
        needed = None
        if isinstance(event, Offered):
            self.opened[event.query] = self.now
        if isinstance(event, Answered) and self.ranks.workers[event.rank].state != State.FAILED:
            task, skipped = event.task, event.skipped
            needed = task[:2] in self.dispatcher.gathers and task not in self.answered
            assert not (skipped and task.query in self.dispatcher.queries)
            if not skipped:
                self.answered.add(task)
        super().tell(event)
        if needed is not None:
            assert needed == (not any(isinstance(act, Late | Extra) for act in self.acts))
        self.check_books()
        if self.now < self.leader.next_tick(self.now):
            assert not self.leader.on(Tick(), self.now), "no Tick does anything before"

    def see(self, acts: Sequence[Act]) -> None:
        self.acts += acts
        for act in acts:
            self.log.append((round(self.now, 6), repr(act)))
            match act:
                case Post(rank, _, _) | Ping(rank):
                    assert self.ranks.workers[rank].state is not State.FAILED
                    if isinstance(act, Post):
                        self.check_post(act)
                case Ready(query, stage, arrived):
                    aim = self.dispatcher.aims[stage]
                    enough = self.dispatcher.codes[stage].decodable if aim is None else aim.possible
                    assert enough(arrived)
                    came = {Task(query, stage, int(unit)) for unit in np.flatnonzero(arrived)}
                    assert came <= self.answered
                    self.last[query] = act
                case Lost(query):
                    self.last[query] = act

    def end(self, finish: Finish, now: float) -> None:
        query = finish.query
        assert query not in self.ended, "a query ends once"
        self.ended[query] = self.last[query]
        self.took[query] = now - self.opened[query]
        limit = (self.dispatcher.retries + 1) * (self.dispatcher.give_up + GRAIN) + 0.02
        assert self.took[query] <= self.stages * limit

    def check_post(self, post: Post) -> None:
        """Nobody is asked for what is on its way to it, in its hands, or on its way back."""
        owed = [task for task in self.ranks.workers[post.rank].outstanding if task == post.task]
        assert owed == [post.task]
        assert post.rank not in self.workers or post.task not in self.workers[post.rank].tasks
        assert post.task.query not in self.ended

    def check_books(self) -> None:
        """``expected`` is what the ranks owe."""
        for key, gather in self.dispatcher.gathers.items():
            owed = [0] * gather.code.n
            for rank in self.ranks.living():
                for task in rank.outstanding:
                    if task[:2] == key:
                        owed[task.unit] += 1
            assert gather.expected.tolist() == owed
