"""A run on a virtual clock, driven by the very decisions of the runtime: no MPI, no tensors.

    clock, engines, links  ->  events  ->  rank.on(event, now)  ->  actions  ->  engines, links

Engines serve one task after another (cost/service.py), links are cost/links.py. A Tick comes when
the leader says that time alone may change something: nobody polls, and idle ranks cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from itertools import islice
from math import inf
from random import Random
from typing import Any

import simpy

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster, quantile
from mpicoded.cost.links import Act, Links
from mpicoded.cost.model import CostModel
from mpicoded.cost.service import Service
from mpicoded.faults import Effect, Fault, Schedule, schedule
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.rank import new_rank
from mpicoded.runtime.replanner import Replanner
from mpicoded.scheduling.drift import Drift
from mpicoded.scheduling.events import (
    Admit,
    Adopt,
    Asked,
    Came,
    Do,
    Event,
    Finish,
    Gone,
    Halo,
    Offered,
    Placed,
    Ran,
    Replan,
    Replanned,
    Run,
    Send,
    SendLayout,
    SendPing,
    Span,
    Taken,
    Tick,
)
from mpicoded.scheduling.fallback import Fallback
from mpicoded.scheduling.layout import Layout
from mpicoded.scheduling.leader import LeaderRank
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.switch import Switch
from mpicoded.scheduling.worker import LEADER, Routes
from mpicoded.settings import Settings
from mpicoded.simulate.lab import Lab
from mpicoded.simulate.worker import Worker
from mpicoded.steps import CUT, Node
from mpicoded.trace import Trace

GRAIN = 0.001  # s between two Ticks at least, as the runtime's loop looks


class Simulation:
    """One run: ``leader`` decides, ``costs`` and the cluster's links say how long all takes.

    ``now`` counts seconds. Without ``offers``, the times at which queries are offered, the leader's
    window is kept full until ``queries`` are through. Computations and messages vary as they did
    when the cluster was measured; or, where ``jitter`` is given, computations by a random share of
    themselves, normal with that deviation. All take longer by another share, exponential with mean
    ``straggling``.
    """

    def __init__(
        self,
        leader: LeaderRank,
        costs: Service,
        cluster: Cluster,
        queries: int,
        *,
        offers: Sequence[float] | None = None,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        jitter: float | None = None,
        straggling: float = 0.0,
        done: Callable[[Finish, float], None] = lambda finish, now: None,
        replan: Callable[[Mapping[int, float]], Replanned] = lambda paces: Replanned(None),
    ) -> None:
        self.leader, self.costs = leader, costs
        self.links = Links(cluster, self)
        self.workers: dict[int, Worker] = {}  # those that had something to do
        self.random = Random(seed)
        self._clock = simpy.Environment()
        self._devices = cluster.devices
        self._late = [() if jitter is not None else link.late for link in cluster.links]
        self._jitter, self._straggling, self._done = jitter, straggling, done
        self._new_plan = replan
        self._schedules: Mapping[int, Schedule] = {
            p: schedule(faults, p, seed) for p in {f.rank for f in faults} if p is not None
        }
        self._lab = Lab(faults, self)
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
        plan, number = self.costs.plans.of(last)
        return layout.routes(plan, last, last - number)

    def lose(self, rank: int) -> None:
        """Tell the leader and the other workers that a rank is dead."""
        self.tell(Gone(rank))
        for worker in list(self.workers.values()):
            worker.when_awake(partial(worker.hear, Gone(rank)))

    # ---- the leader

    def tell(self, event: Event) -> None:
        """Tell the leader of an event, and do what it decides."""
        for action in self.leader.on(event, self.now):
            if type(action) in ACTIONS:
                ACTIONS[type(action)](self, action)
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
        self._lab.reach(action.query)

    def _run(self, run: Run) -> None:
        spans, start = list[Span](), max(self.now, self._engine_free)
        for action, usual in self.costs.node(run):
            seconds = usual * self._share(LEADER, usual)
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

    def _replan(self, action: Replan) -> None:
        self.after(GRAIN, lambda: self.tell(self._new_plan(action.paces)))

    def _adopt(self, action: Adopt) -> None:
        self.costs.plans.add(action.start, action.handle.plan)

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

        late = self._straggle() * self.links.seconds(source, target, nbytes)
        if self._late[source]:
            late += quantile(self._late[source], self.random.random())
        self.links.send(source, target, nbytes, come, late)

    def effect(self, rank: int, task: Task) -> Effect:
        """Return what befalls a rank as it begins with a task."""
        return self._schedules[rank].at(task.query) if rank in self._schedules else Effect()

    def seconds(self, rank: int, task: Task, halos: Sequence[Halo] = ()) -> float:
        """Return how long a rank computes a task this time, or ``halos`` in its place."""
        usual = self.costs.unit(rank, task.stage, task.unit)
        if halos:
            usual = self.costs.halos(rank, task.unit, halos)
        share = max(0.1, self._share(rank, usual) + self._straggle())
        return usual * share * self.slower.get(rank, 1.0)

    def _share(self, rank: int, usual: float) -> float:
        """Return how many times its ``usual`` seconds a computation takes this time."""
        if self._jitter is None:
            device = self._devices[rank]
            return device.slowness(usual, self.random.random()) if device.spread else 1.0
        return max(0.1, self.random.gauss(1, self._jitter)) if self._jitter else 1.0

    def _straggle(self) -> float:
        return self.random.expovariate(1 / self._straggling) if self._straggling else 0.0


ACTIONS: dict[type[Do], Callable[[Simulation, Any], None]] = {
    Admit: Simulation._admit,
    Run: Simulation._run,
    Send: Simulation._post,
    SendLayout: Simulation._layout,
    SendPing: Simulation._ping,
    Finish: Simulation._finish,
    Replan: Simulation._replan,
    Adopt: Simulation._adopt,
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
    jitter: float | None = None,
    straggling: float = 0.0,
    fallback: bool = False,
    replanner: Replanner | None = None,
    switch: Switch | None = None,
    done: Callable[[Answer, Trace], None] | None = None,
) -> tuple[list[Answer], Trace]:
    """Run a deployment on the cluster of a cost model; return the answers and what happened.

    They are in the order in which queries ended; with ``done``, it is told of each instead.
    """
    queue = inf if settings.queue is None or offers is None else settings.queue
    leader = new_rank(deployment, model.cluster, settings, queue)
    answers = list[Answer]()
    if fallback and deployment.plan.stages:
        leader.fallback = Fallback(model.single_device(deployment.plan.batch))

    def finish(action: Finish, now: float) -> None:
        flight = action.flight
        expected = deployment.expected(None if flight.unsplit else flight.arrived)
        answer = flight.answer(None, action.lost, now, expected, action.refused)
        answers.append(answer) if done is None else done(answer, leader.trace)

    def replan(paces: Mapping[int, float]) -> Replanned:
        assert replanner is not None, "the leader looks at paces"
        return replanner.replan(paces, model.cluster, settings)

    if replanner is not None:
        leader.drift = Drift(replanner.bound)
    leader.switch, costs = switch, Service(model, deployment.plan)
    for other, (stages, _) in zip(deployment.others, leader.plans[1:], strict=True):
        costs.plans.add(stages.start, other.plan)
    run = Simulation(
        leader,
        costs,
        model.cluster,
        queries,
        offers=offers,
        faults=faults,
        seed=seed,
        jitter=jitter,
        straggling=straggling,
        done=finish,
        replan=replan,
    )
    run.run()
    return answers, leader.trace
