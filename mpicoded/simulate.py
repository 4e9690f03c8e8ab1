"""A run on a virtual clock, driven by the very decisions of the runtime: no MPI, no tensors.

    clock, engines, links  ->  events  ->  rank.on(event, now)  ->  actions  ->  engines, links

Engines serve one task after another (cost/service.py), links are cost/links.py. A Tick comes when
the leader says that time alone may change something: nobody polls, and idle ranks cost nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import islice
from math import inf
from random import Random
from typing import Any, NamedTuple, Protocol

import simpy

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.cost.links import Act, Links
from mpicoded.cost.model import CostModel
from mpicoded.cost.service import Service
from mpicoded.faults import KINDS, Effect, Fault, Schedule, schedule
from mpicoded.geometry import Box
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.rank import new_rank
from mpicoded.scheduling.events import (
    Admit,
    Alive,
    Answered,
    Asked,
    Came,
    Do,
    Event,
    Finish,
    Gone,
    Offered,
    Placed,
    Ran,
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
from mpicoded.scheduling.layout import Layout
from mpicoded.scheduling.leader import LeaderRank
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.worker import Routes, WorkerRank
from mpicoded.settings import Settings
from mpicoded.steps import CUT, Node
from mpicoded.trace import Action, Trace

LEADER = 0
GRAIN = 0.001  # s between two Ticks at least, as the runtime's loop looks
NOTICED = 0.03  # s until the leader knows that a rank is dead


class Costs(Protocol):
    """Seconds and bytes of tasks, as :class:`mpicoded.cost.service.Service` has them."""

    def node(self, run: Run) -> Iterator[tuple[Action, float]]:
        """Yield what a node of rank 0 does, and the seconds of each part."""

    def unit(self, rank: int, stage: int, unit: int) -> float:
        """Return the seconds of a rank for a unit."""

    def answer(self, stage: int, unit: int) -> float:
        """Return the bytes of a unit's answer."""

    def pack(self, nbytes: float) -> float:
        """Return the seconds of rank 0 to pack an input."""

    def piece(self, stage: int, box: Box, source: int, target: int) -> tuple[float, float]:
        """Return bytes of a piece, and the seconds to pack and unpack it."""


class Output(NamedTuple):
    """What stands for a task's output."""

    skipped: bool
    silent: bool


class Worker:
    """One worker: its decisions, its engine, what befalls it."""

    def __init__(self, number: int, run: Simulation) -> None:
        self.number, self.run = number, run
        self.rank = WorkerRank(lambda last, layout: run.routes(last, layout).get(number, {}))
        self.dead = False
        self._jobs: deque[RunUnit] = deque()
        self._busy = False
        self._asleep: list[Act] | None = None  # what happens when it goes on
        self._since = self._slept = 0.0
        self._frozen: set[int] = set()  # faults that struck
        self._slow_since: float | None = None

    def when_awake(self, act: Act) -> None:
        """Let ``act`` happen now, or when a frozen rank goes on; never if it is dead."""
        if self._asleep is not None:
            self._asleep.append(act)
        elif not self.dead:
            act()

    def hear(self, event: Event) -> None:
        """Tell the rank of an event, and do what it decides."""
        if not self.dead:
            for action in self.rank.on(event, self.run.now):
                if type(action) in WORKER:
                    WORKER[type(action)](self, action)

    # ---- faults

    @property
    def tasks(self) -> list[Task]:
        """Tasks that wait for the engine."""
        return [job.task for job in self._jobs]

    def die(self, told: bool = True) -> None:
        """Kill the rank; the leader is told a moment later, if anybody tells."""
        if self.dead:
            return
        self.dead, self._asleep = True, None
        if told:
            self.run.after(NOTICED, lambda: self.run.tell(Gone(self.number)))

    def freeze(self, seconds: float = inf) -> None:
        """Stop the rank; after so many seconds it goes on."""
        if self.dead or self._asleep is not None:
            return
        self._asleep, self._since = [], self.run.now
        if seconds < inf:
            self.run.after(seconds, self.thaw)

    def thaw(self) -> None:
        """Let a frozen rank go on."""
        if self._asleep is None:
            return
        acts, self._asleep = self._asleep, None
        self._slept += self.run.now - self._since
        for act in acts:
            self.when_awake(act)
        self.when_awake(self._next)

    # ---- the engine

    def _submit(self, action: RunUnit) -> None:
        self._jobs.append(action)
        self._next()

    def _next(self) -> None:
        """Begin with the next task, after what befalls the rank in its query."""
        if self._busy or not self._jobs:
            return
        query, now = self._jobs[0].task.query, self.run.now
        effect = self.run.effect(self.number, self._jobs[0].task)
        if effect.crash:
            self.run.leader.injected(Action.CRASH, self.number, now, now, query)
            self.die()
            return
        for number, seconds in effect.freezes:
            if number not in self._frozen:
                self._frozen.add(number)
                self._note_freeze(query, seconds)
                self.freeze(seconds)
                return
        self._note_slowness(effect, query)
        self._begin(self._jobs.popleft(), effect)

    def _begin(self, action: RunUnit, effect: Effect) -> None:
        self._busy, started = True, self.run.now
        task, epoch = action.task, action.epoch
        skipped = not self.rank.wanted(task, epoch)
        took = 0.0 if skipped else self.run.seconds(self.number, task)
        if not self.rank.answers(task, epoch):  # delay and silence befall answers
            effect = replace(effect, seconds=0.0, silent=False)
        pause = took * (effect.factor - 1) + effect.seconds
        if effect.seconds:
            end = started + took + pause
            self.run.leader.injected(Action.DELAY, self.number, started + took, end, task.query)
        output, slept = Output(skipped, effect.silent), self._slept
        self.run.after(took + pause, lambda: self._end(action, output, started, slept))

    def _end(self, action: RunUnit, output: Output, started: float, slept: float) -> None:
        if self.dead:
            return
        if self._asleep is not None:
            self._asleep.append(lambda: self._end(action, output, started, slept))
            return
        if self._slept > slept:  # it stood still for a part of that time
            late, slept = self._slept - slept, self._slept
            self.run.after(late, lambda: self._end(action, output, started, slept))
            return
        self._busy = False
        now, lost = self.run.now, bool(action.epoch and output.skipped)
        if output.silent:
            self.run.leader.injected(Action.SILENCE, self.number, now, now, action.task.query)
        span = Span(Action.COMPUTE, started, now)
        self.hear(Ran(action.task, (span,), None if lost else output, action.epoch))
        self._next()

    def _note_freeze(self, query: int, seconds: float) -> None:
        for start, stop in ((self.run.now,) * 2, (self.run.now, self.run.now + seconds)):
            self.run.leader.injected(Action.FREEZE, self.number, start, stop, query)

    def _note_slowness(self, effect: Effect, query: int) -> None:
        now, since = self.run.now, self._slow_since
        if (effect.factor > 1) != (since is not None):
            start = now if since is None else since
            self.run.leader.injected(Action.SLOW, self.number, start, now, query)
            self._slow_since = now if since is None else None

    # ---- actions

    def _reply(self, action: Reply) -> None:
        task, output = action.task, action.output
        if output.silent:
            return
        nbytes = 0.0 if output.skipped else self.run.costs.answer(task.stage, task.unit)
        about = (self.number, task, output.skipped, action.clock)
        self._send(LEADER, nbytes, lambda now: Answered(*about, now, int(nbytes)))

    def _piece(self, action: SendPiece) -> None:
        about = (self.number, action.task, action.epoch, action.origin, self.rank.oldest)
        run, origin = self.run, action.origin
        nbytes, pack = run.costs.piece(origin.stage, action.box, self.number, action.rank)
        run.after(pack, lambda: self._send(action.rank, nbytes, lambda now: Came(*about, now)))

    def _times(self, action: SendTimes) -> None:
        self._send(LEADER, 0.0, lambda now: Times(self.number, action.task, action.clocks))

    def _alive(self, action: SendAlive) -> None:
        self._send(LEADER, 0.0, lambda now: Alive(self.number, action.asked, action.todo))

    def _send(self, target: int, nbytes: float, event: Callable[[float], Event]) -> None:
        self.run.send(self.number, target, nbytes, event)


class Simulation:
    """One run: ``leader`` decides, ``costs`` and the cluster's links say how long all takes.

    ``now`` counts seconds. Without ``offers``, the times at which queries are offered, the leader's
    window is kept full until ``queries`` are through. Every computation is lengthened by a random
    share of itself, normal with deviation ``jitter``; computations and messages by another one,
    exponential with mean ``straggling``.
    """

    def __init__(
        self,
        leader: LeaderRank,
        costs: Costs,
        cluster: Cluster,
        queries: int,
        *,
        plan: Plan | None = None,
        offers: Sequence[float] | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        jitter: float = 0.0,
        straggling: float = 0.0,
        done: Callable[[Finish, float], None] = lambda finish, now: None,
    ) -> None:
        self.leader, self.costs, self.plan = leader, costs, plan
        self.links = Links(cluster, self)
        self.workers: dict[int, Worker] = {}  # those that had something to do
        self.random = Random(seed)
        self._clock = simpy.Environment()
        self._jitter, self._straggling, self._done = jitter, straggling, done
        self._schedules: Mapping[int, Schedule] = {
            p: schedule(faults, p, seed) for p in {f.rank for f in faults} if p is not None
        }
        self._lab = [(f, [False, False]) for f in faults if f.by_lab]  # begun, ended
        self.slower: dict[int, float] = {}
        self._closed_loop = offers is None
        self._offers = iter(enumerate([0.0] * queries if offers is None else offers))
        self._left = queries if offers is None else len(offers)
        self._engine_free = self._post_free = 0.0
        self._alarm, self._ticked = inf, -inf
        self.routes: Callable[[int, Layout], Mapping[int, Routes]] = cache(self._routes)

    @property
    def now(self) -> float:
        """Seconds of the virtual clock."""
        return float(self._clock.now)

    def after(self, delay: float, act: Act) -> None:
        """Let ``act`` happen ``delay`` seconds from now."""
        event = self._clock.timeout(max(0.0, delay))  # rounded, it may be below 0
        event.callbacks.append(lambda _: act())

    def run(self, limit: float = inf) -> Simulation:
        """Run until all queries are through.

        Raises
        ------
        RuntimeError
            If they are not by second ``limit``, or nothing happens any more.
        """
        window = self.leader.window if self._closed_loop else self._left
        for query, at in list(islice(self._offers, window)):
            self._offer_at(query, at)
        while not self.leader.done:
            if self._clock.peek() > limit or self._clock.peek() == inf:
                flights = sorted(self.leader.flights)
                raise RuntimeError(f"second {self.now:.3f}: queries {flights} never end")
            self._clock.step()
        return self

    def worker(self, number: int) -> Worker:
        """Return a worker, which comes into being when it first has something to do."""
        if number not in self.workers:
            self.workers[number] = Worker(number, self)
        return self.workers[number]

    def _routes(self, last: int, layout: Layout) -> Mapping[int, Routes]:
        assert self.plan is not None, "a plan with direct segments"
        return layout.routes(self.plan, last)

    # ---- the leader

    def tell(self, event: Event) -> None:
        """Tell the leader of an event, and do what it decides."""
        for action in self.leader.on(event, self.now):
            if type(action) in LEADERS:
                LEADERS[type(action)](self, action)
        at = max(self.leader.next_tick(self.now), self._ticked + GRAIN, self.now)
        if at < self._alarm:
            self._alarm = at
            self.after(at - self.now, lambda: self._ring(at))

    def _ring(self, at: float) -> None:
        if at == self._alarm:
            self._alarm, self._ticked = inf, self.now
            self.tell(Tick())

    def _offer_at(self, query: int, at: float) -> None:
        self.after(at - self.now, partial(self._offer, query))

    def _offer(self, query: int) -> None:
        self._left -= 1
        self.leader.closing = not self._left
        self.tell(Offered(query, self.now))

    def _admit(self, action: Admit) -> None:
        """Begin and end what the lab would do, as its query comes."""
        for fault, state in self._lab:
            if not state[0] and fault.first <= action.query:
                state[0] = True
                if action.query < fault.last:
                    self._strike(fault, state)
            elif not (state[1] or fault.once) and action.query >= fault.last:
                self._relieve(fault, state)

    def _run(self, run: Run) -> None:
        spans, start = list[Span](), max(self.now, self._engine_free)
        for action, seconds in self.costs.node(run):
            spans.append(Span(action, start, start + seconds))
            start += seconds
        self._engine_free = start
        self.after(start - self.now, lambda: self.tell(Ran(run.task, tuple(spans))))

    def _post(self, send: Send) -> None:
        if send.task.query not in self.leader.flights:
            return  # it waited for its turn until the query was over
        nbytes = self.leader.nbytes[send.node.stage][send.node.unit]
        start = max(self.now, self._post_free)
        self._post_free = stop = start + self.costs.pack(nbytes)
        self.leader.sent(send, start, stop, int(nbytes))
        task, origin = Task(send.task.query, *send.node), Node(send.node.stage, CUT)
        about = (LEADER, task, send.epoch, origin, self.leader.oldest)
        self._send(send.rank, nbytes, lambda now: Came(*about, now), send.paced)

    def _layout(self, action: SendLayout) -> None:
        self._send(action.rank, 0.0, lambda now: Placed(*action[1:3]), action.paced)

    def _ping(self, action: SendPing) -> None:
        oldest = self.leader.oldest
        self._send(action.rank, 0.0, lambda now: Asked(action.asked, oldest), action.paced)

    def _send(self, rank: int, nbytes: float, event: Callable[[float], Event], paced: bool) -> None:
        delay = self._post_free - self.now
        self.after(delay, lambda: self.send(LEADER, rank, nbytes, event, paced))

    def _finish(self, action: Finish) -> None:
        self._done(action, self.now)
        if self._closed_loop:
            for query, _ in islice(self._offers, 1):
                self._offer_at(query, self.now)

    # ---- all ranks

    def send(
        self,
        source: int,
        target: int,
        nbytes: float,
        event: Callable[[float], Event],
        paced: bool = False,
    ) -> None:
        """Send a message over the links; ``event`` is what it is to its target."""

        def take() -> None:
            if paced:
                self.after(self.links.latency(source, target), lambda: self.tell(Taken(target)))
            self.worker(target).hear(event(self.now))

        def come() -> None:
            if target == LEADER:
                if not self.worker(source).dead:  # else the leader has heard of that before
                    self.tell(event(self.now))
            else:
                self.worker(target).when_awake(take)

        late = self._late() * self.links.seconds(source, target, nbytes)
        self.links.send(source, target, nbytes, come, late)

    def effect(self, rank: int, task: Task) -> Effect:
        """Return what befalls a rank as it begins with a task."""
        return self._schedules[rank].at(task.query) if rank in self._schedules else Effect()

    def seconds(self, rank: int, task: Task) -> float:
        """Return how long a rank computes a task this time."""
        share = self.random.gauss(1, self._jitter) if self._jitter else 1.0
        share = max(0.1, share + self._late()) * self.slower.get(rank, 1.0)
        return self.costs.unit(rank, task.stage, task.unit) * share

    def _late(self) -> float:
        return self.random.expovariate(1 / self._straggling) if self._straggling else 0.0

    # ---- faults of the lab

    def _strike(self, fault: Fault, state: list[bool]) -> None:
        assert fault.rank is not None
        worker, rank = self.worker(fault.rank), fault.rank
        self.leader.injected(KINDS[fault.kind].action, rank, self.now, self.now)
        if fault.kind == "reboot":
            worker.die()  # a launcher would start the job again without its node
            return
        self._weigh(fault, 1)
        if fault.seconds:
            self.after(fault.seconds, lambda: self._relieve(fault, state))

    def _relieve(self, fault: Fault, state: list[bool]) -> None:
        state[1] = True
        self._weigh(fault, -1)
        self.leader.injected(KINDS[fault.kind].action, fault.rank or 0, self.now, self.now)

    def _weigh(self, fault: Fault, sign: int) -> None:
        """Put a fault in force, or take it back."""
        rank = fault.rank or 0
        if fault.kind == "link":
            (self.links.unplug if sign > 0 else self.links.plug)(rank)
        elif fault.kind == "cpu":
            self.slower[rank] = self.slower.get(rank, 1.0) * fault.value**-sign
        else:
            self.links.slower[rank] = self.links.slower.get(rank, 1.0) * self._less(fault) ** sign

    def _less(self, fault: Fault) -> float:
        """Return how many times slower a link becomes."""
        if fault.kind == "loss":
            return 1 / (1 - min(fault.value, 0.99))  # lost packets are sent again
        return max(1.0, 8 * self.links.rate(fault.rank or 0) / fault.value)


WORKER: dict[type[Do], Callable[[Worker, Any], None]] = {
    RunUnit: Worker._submit,
    Reply: Worker._reply,
    SendPiece: Worker._piece,
    SendTimes: Worker._times,
    SendAlive: Worker._alive,
}
LEADERS: dict[type[Do], Callable[[Simulation, Any], None]] = {
    Admit: Simulation._admit,
    Run: Simulation._run,
    Send: Simulation._post,
    SendLayout: Simulation._layout,
    SendPing: Simulation._ping,
    Finish: Simulation._finish,
}


def simulate(
    deployment: Deployment,
    model: CostModel,
    settings: Settings,
    queries: int,
    *,
    offers: Sequence[float] | None = None,
    faults: Sequence[Fault] = (),
    seed: int = 0,
    jitter: float = 0.0,
    straggling: float = 0.0,
    done: Callable[[Answer, Trace], None] | None = None,
) -> tuple[list[Answer], Trace]:
    """Run a deployment on the cluster of a cost model; return the answers and what happened.

    They are in the order in which queries ended; with ``done``, it is told of each instead.
    """
    queue = inf if settings.queue is None or offers is None else settings.queue
    leader = new_rank(deployment, model.cluster, settings, queue)
    answers = list[Answer]()

    def finish(action: Finish, now: float) -> None:
        flight = action.flight
        expected = deployment.expected(None if flight.unsplit else flight.arrived)
        answer = flight.answer(None, action.lost, now, expected, action.refused)
        answers.append(answer) if done is None else done(answer, leader.trace)

    costs = Service(model, deployment.plan, deployment.codes)
    run = Simulation(
        leader,
        costs,
        model.cluster,
        queries,
        plan=deployment.plan,
        offers=offers,
        faults=faults,
        seed=seed,
        jitter=jitter,
        straggling=straggling,
        done=finish,
    )
    run.run()
    return answers, leader.trace
