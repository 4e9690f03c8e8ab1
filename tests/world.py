"""A random world of workers on a virtual clock, for tests of the dispatcher.

Workers serve in order, at random speeds or as ``service`` says (seconds for a rank and a unit, None
if its answer is lost); units are swallowed in silence, ranks freeze, thaw and die. Posting a unit
takes the leader's link ``send`` seconds. The world checks the dispatcher's books after every event.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from random import Random

import numpy as np

from mpicoded.codes.mds import Mds
from mpicoded.scheduling.accuracy import AccuracyTarget
from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.dispatcher import Act, Dispatcher, Extra, Late, Lost, Ping, Post, Ready
from mpicoded.scheduling.ranks import Ranks, State, Task

LATENCY = 0.001
TICK = 0.01
GIVE_UP = 1.0
SUSPECT_AFTER = 0.2


@dataclass
class Worker:
    """A rank: units wait in ``inbox``; the first is done at the time that the heap holds."""

    speed: float
    inbox: deque[Task] = field(default_factory=deque)
    mail: deque[object] = field(default_factory=deque)  # came while it was frozen
    oldest: int = 0  # queries before this one are skipped
    busy: bool = False
    began: float = 0.0
    silent: bool = False  # loses the answer that it is working on
    frozen: bool = False
    dead: bool = False


@dataclass
class Weather:
    """What may happen in a world."""

    silence: float = 0.0  # share of units whose answer is never sent
    freezes: int = 0
    deaths: int = 0
    known: bool = True  # whether somebody tells the leader of a death
    stragglers: int = 0


class World:
    """A virtual clock, workers, and a leader that keeps ``window`` queries in flight."""

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
    ) -> None:
        self.random, self.weather = Random(seed), weather
        self.window, self.total, self.stages = window, queries, stages
        home = tuple(1 + i % workers for i in range(k + r))
        self.ranks = Ranks(range(1, workers + 1), home, suspect_after, window + 8)
        self.dispatcher = Dispatcher(
            [Mds(k, r)] * stages,
            self.ranks,
            [Deadline(deadline) for _ in range(stages)],
            give_up,
            retries,
            [aim] * stages,
        )
        self.service, self.send, self.step = service, send, tick
        self.alarms: set[float] = set()
        self.link_free = 0.0  # when the leader's link is free
        self.workers = {p: Worker(self.random.uniform(0.8, 1.2)) for p in self.ranks.workers}
        for p in self.random.sample(sorted(self.workers), weather.stragglers):
            self.workers[p].speed *= 10
        self.now, self.ids = 0.0, count()
        self.heap: list[tuple[float, int, str, tuple[int, object]]] = []
        self.next_query = 0
        self.opened: dict[int, float] = {}
        self.ended: dict[int, Act] = {}
        self.took: dict[int, float] = {}
        self.answered: set[Task] = set()
        self.log: list[tuple[float, str]] = []

    # ---- the clock

    def at(self, delay: float, what: str, rank: int = 0, thing: object = None) -> None:
        heappush(self.heap, (self.now + delay, next(self.ids), what, (rank, thing)))

    def run(self) -> World:
        length = self.total * 0.005
        victims = self.random.sample(sorted(self.workers), self.weather.deaths)
        for p in victims:
            self.at(self.random.uniform(0, length), "die", p)
        for _ in range(self.weather.freezes):
            rank = self.random.choice(sorted(self.workers))
            start = self.random.uniform(0, length)
            self.at(start, "freeze", rank)
            self.at(start + self.random.uniform(0.01, 2.0), "thaw", rank)
        self.at(0.0, "tick")
        while self.heap and not self.quiet():
            self.now, _, what, (rank, thing) = heappop(self.heap)
            getattr(self, what)(rank, thing)
            assert self.now < 1000, "the world does not end"
        return self

    def quiet(self) -> bool:
        """All queries ended, and all that can still speak have spoken."""
        silent = (p.outstanding for p in self.ranks.living() if not self.workers[p.number].dead)
        return len(self.ended) == self.total and not any(silent)

    # ---- the leader

    def tick(self, rank: int, thing: object) -> None:
        while self.next_query < self.total and len(self.opened) - len(self.ended) < self.window:
            query, self.next_query = self.next_query, self.next_query + 1
            self.opened[query] = self.now
            self.carry_out(self.dispatcher.open(query, 0, self.now))
        self.carry_out(self.dispatcher.tick(self.now))
        self.at(self.step, "tick")

    def carry_out(self, acts: list[Act]) -> None:
        for act in acts:
            self.log.append((round(self.now, 6), repr(act)))
            match act:
                case Post(rank, _, _) | Ping(rank):
                    assert self.ranks.workers[rank].state is not State.FAILED
                    if isinstance(act, Post):
                        self.check_post(act)
                        self.link_free = max(self.link_free, self.now) + self.send
                    delay = max(self.link_free - self.now, 0.0) + LATENCY
                    self.at(delay, "deliver", rank, (act, self.dispatcher.oldest()))
                case Ready(query, stage, arrived):
                    aim = self.dispatcher.aims[stage]
                    enough = self.dispatcher.codes[stage].decodable if aim is None else aim.possible
                    assert enough(arrived)
                    came = {Task(query, stage, int(unit)) for unit in np.flatnonzero(arrived)}
                    assert came <= self.answered
                    if stage + 1 < self.stages:
                        self.at(0.002, "next_stage", query, stage + 1)
                    else:
                        self.end(query, act)
                case Lost(query):
                    self.end(query, act)
        self.check_books()
        for gather in self.dispatcher.gathers.values():
            for when in (gather.due, gather.overdue):
                if self.now < when < inf and when not in self.alarms:
                    self.alarms.add(when)
                    self.at(when - self.now, "alarm")

    def alarm(self, rank: int, thing: object) -> None:
        self.carry_out(self.dispatcher.tick(self.now))

    def next_stage(self, query: int, stage: object) -> None:
        assert isinstance(stage, int)
        self.carry_out(self.dispatcher.open(query, stage, self.now))

    def end(self, query: int, act: Act) -> None:
        assert query not in self.ended, "a query ends once"
        self.ended[query] = act
        self.took[query] = self.now - self.opened[query]
        limit = (self.dispatcher.retries + 1) * (self.dispatcher.give_up + self.step) + 0.01
        assert self.took[query] <= self.stages * limit

    def check_post(self, post: Post) -> None:
        """Nobody is asked for what is on its way to it, in its hands, or on its way back."""
        owed = [task for task in self.ranks.workers[post.rank].outstanding if task == post.task]
        assert owed == [post.task]
        assert post.task not in self.workers[post.rank].inbox
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

    # ---- the workers

    def deliver(self, rank: int, message: object) -> None:
        worker = self.workers[rank]
        if worker.frozen:
            worker.mail.append(message)
        if worker.frozen or worker.dead:
            return
        match message:
            case Ping(_, asked), _:
                self.at(LATENCY, "pong", rank, (asked, len(worker.inbox)))
            case Post(_, task), int(oldest):
                worker.oldest = max(worker.oldest, oldest)
                worker.inbox.append(task)
                self.work(rank, None)

    def work(self, rank: int, thing: object) -> None:
        worker = self.workers[rank]
        if worker.inbox and not (worker.busy or worker.frozen or worker.dead):
            worker.busy, worker.began = True, self.now
            skip = worker.inbox[0].query < worker.oldest
            takes: float | None = worker.speed * self.random.expovariate(1 / 0.005)
            if self.service is not None:
                takes = self.service(self.random, rank, worker.inbox[0])
            worker.silent = takes is None
            self.at(0.0 if skip else abs(takes or 0.0), "finish", rank, skip)

    def finish(self, rank: int, skipped: object) -> None:
        worker = self.workers[rank]
        if worker.frozen:
            self.at(0.01, "finish", rank, skipped)
        elif not worker.dead:
            worker.busy = False
            task = worker.inbox.popleft()
            if self.random.random() >= self.weather.silence and not worker.silent:
                self.at(LATENCY, "arrive", rank, (task, skipped, self.now - worker.began))
            self.work(rank, None)

    def arrive(self, rank: int, thing: object) -> None:
        assert isinstance(thing, tuple)
        task, skipped, seconds = thing
        if self.ranks.workers[rank].state is State.FAILED:
            return
        needed = task[:2] in self.dispatcher.gathers and task not in self.answered
        assert not (skipped and task.query in self.dispatcher.queries)
        acts = self.dispatcher.answered(rank, task, self.now, skipped, seconds)
        assert needed == (not any(isinstance(act, Late | Extra) for act in acts))
        if not skipped:
            self.answered.add(task)
        self.carry_out(acts)

    def pong(self, rank: int, thing: object) -> None:
        assert isinstance(thing, tuple)
        asked, todo = thing
        if self.ranks.workers[rank].state is not State.FAILED:
            if todo:
                self.carry_out(self.dispatcher.spoke(rank, self.now))
            else:
                self.carry_out(self.dispatcher.nothing_left(rank, asked, self.now))

    # ---- the weather

    def die(self, rank: int, thing: object) -> None:
        self.workers[rank].dead = True
        if self.weather.known:
            self.at(0.015, "tell_death", rank)

    def tell_death(self, rank: int, thing: object) -> None:
        self.carry_out(self.dispatcher.failed(rank, self.now))

    def freeze(self, rank: int, thing: object) -> None:
        self.workers[rank].frozen = True

    def thaw(self, rank: int, thing: object) -> None:
        worker = self.workers[rank]
        worker.frozen = False
        while worker.mail:
            self.deliver(rank, worker.mail.popleft())
        self.work(rank, None)
