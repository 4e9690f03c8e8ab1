"""The leader's port: queries in, answers out; MPI, tensors and the clock for its LeaderRank.

Three threads. The caller's submits queries. `progress` runs the executor's loop and owns MPI. The
engine's computes, so that messages move meanwhile.
"""

from __future__ import annotations

import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.errors import RemoteError
from mpicoded.faults import Fault
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.engine import Engine
from mpicoded.runtime.environment import check_parent
from mpicoded.runtime.executor import serve
from mpicoded.runtime.lab_line import LabLine
from mpicoded.runtime.message import TRAVEL, pack_layout
from mpicoded.runtime.nodes import Nodes, Tensors
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.rank import new_rank
from mpicoded.runtime.replanner import Replanner
from mpicoded.runtime.setup import own_parts
from mpicoded.runtime.wire import Backoff, Kind, Message
from mpicoded.scheduling.drift import Drift
from mpicoded.scheduling.events import (
    Admit,
    Adopt,
    Alive,
    Answered,
    Do,
    Event,
    Finish,
    Gone,
    Offered,
    Ran,
    Release,
    Replan,
    Replanned,
    Run,
    Say,
    Send,
    SendLayout,
    SendPing,
    Taken,
    Times,
)
from mpicoded.scheduling.fallback import Fallback
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.switch import Switch
from mpicoded.steps import CUT, GATHER
from mpicoded.trace import Action, Trace

if TYPE_CHECKING:
    from mpicoded.settings import Settings  # needs pydantic, and the ranks of a Group import this


class Leader:
    """Runs queries on the workers of a pool, ``settings.window`` of them in flight at a time.

    With ``fallback`` it runs them unsplit while the plan measures slower than that. A ``replanner``
    is asked for another plan when the ranks' paces have drifted from those of the present one, a
    ``switch`` for one of the deployment's plans before every query.
    """

    def __init__(
        self,
        pool: WorkerPool,
        cluster: Cluster,
        deployment: Deployment,
        settings: Settings,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        fallback: bool = False,
        replanner: Replanner | None = None,
        switch: Switch | None = None,
    ) -> None:
        self.pool, self.wire = pool, pool.wire
        self.cluster, self.deployment, self.settings = cluster, deployment, settings
        self.failure: Exception | None = None
        self.began = time.perf_counter()
        self._offset = dict.fromkeys(self.wire.peers, 0.0)  # a worker's clock less ours
        queue = inf if settings.queue is None else settings.queue
        self.rank = new_rank(deployment, cluster, settings, queue)
        self._replanner = replanner
        if replanner is not None:
            self.rank.drift = Drift(replanner.bound)
        self.rank.switch = switch
        self._replanned: deque[Replanned] = deque()
        self._nodes = Nodes(deployment, self.began)
        self._backoff = Backoff()
        self._held: dict[int, tuple[Tensors, Future[Answer]]] = {}
        self._offers: deque[Offered] = deque()
        self._number, self._lock = 0, threading.Lock()
        self._closing = False
        if self.wire.peers:
            self._send_setup(faults, seed)
            pool.recv_each(Kind.READY, settings.start_limit, self._recv_ready)
            for other, (stages, _) in zip(deployment.others, self.rank.plans[1:], strict=True):
                self._adopt(Adopt(cluster.workers, stages.start, other))
            if fallback and deployment.plan.stages:
                self.rank.fallback = Fallback(self._single_device())
        self._lab = LabLine(faults, cluster.hosts, self._injected)
        self._lab.ready()
        self._engine = Engine(self._backoff.wake)
        self._thread = threading.Thread(target=self._progress, name="progress", daemon=True)
        self._thread.start()

    @property
    def trace(self) -> Trace:
        """Events so far."""
        return self.rank.trace

    def now(self) -> float:
        """Return the seconds since the run began."""
        return time.perf_counter() - self.began

    def _send_setup(self, faults: Sequence[Fault], seed: int) -> None:
        """Send every worker all programs and its own faults."""
        replans = self._replanner is not None or bool(self.deployment.others)
        largest = self.deployment.largest
        self.wire.expect(largest if replans else self.deployment.capacities()[1])
        units = {p: self.deployment.plan.at_home(p, self.cluster) for p in self.wire.peers}
        own = own_parts(units, faults, seed)
        s = self.settings
        setup = self.deployment.setup(s.threads, s.answers, s.wire, replans)
        self.pool.send_setup(setup, own)

    def _single_device(self) -> float:
        """Return the seconds that a query takes this rank alone."""
        x = torch.zeros(self.deployment.plan.batch, *self.deployment.chain.input_shape)
        self.deployment.run_unsplit(x)  # packs the weights
        start = time.perf_counter()
        self.deployment.run_unsplit(x)
        return time.perf_counter() - start

    def _recv_ready(self, message: Message) -> None:
        """Learn the clock of a worker on another host from a message that it has just sent."""
        if self.pool.machines[message.peer] != self.pool.machines[0]:
            self._offset[message.peer] = message.clock[0] - message.at

    # ---- the caller's thread

    def submit(
        self, x: Tensor, number: int | None = None, since: float | None = None
    ) -> Future[Answer]:
        """Queue one query (B, C, H, W), numbered on unless ``number`` is given.

        Its latency counts from second ``since`` of the run. Default: from now.

        Raises
        ------
        PlanError
            If the shape is not the plan's.
        ValueError
            If ``number`` is below an earlier one: workers skip what is older than the oldest.
        RemoteError
            If a worker raised an exception before.
        RuntimeError
            If the group is closed.
        """
        if self._closing:
            raise RuntimeError("the group is closed and takes no more queries")
        if self.failure is not None:
            raise self.failure
        self.deployment.check_query(x)
        future: Future[Answer] = Future()
        future.set_running_or_notify_cancel()  # from here on nobody can cancel it
        with self._lock:
            number = self._number if number is None else number
            if number < self._number:
                raise ValueError(f"query {number} after {self._number - 1}: numbers must rise")
            self._number = number + 1
            self._held[number] = Tensors(x, x), future
            self._offers.append(Offered(number, self.now() if since is None else since))
        self._backoff.wake()
        if self.failure is not None:  # it may have come just before the query was queued
            self._fail(self.failure)
        return future

    def close(self) -> list[int]:
        """Finish the queries in flight and stop the workers; return the ranks that were silent."""
        self._closing = True
        self._backoff.wake()
        self._thread.join()
        self._engine.close()
        self._lab.close()
        return self.pool.shutdown(self.settings.end_limit)

    @property
    def at_work(self) -> bool:
        """True if this rank computes, or one with a task has given a sign of life a moment ago."""
        since = self.now() - 2 * self.settings.suspect_after
        return self._engine.busy or self.rank.heard_since(since)

    @property
    def idle(self) -> bool:
        """True if all queries that were submitted are over."""
        return not self._held

    # ---- the progress thread

    def _progress(self) -> None:
        try:
            serve(self.rank, self)
        except Exception as error:
            self._fail(error)

    def poll(self) -> list[Event]:
        """Return the events: queries, messages, computations."""
        if self.wire.peers:
            check_parent()
        self._lab.poll()
        events = list[Event]()
        for message in self.wire.poll():
            event = READERS[message.kind](self, message)
            events += [] if event is None else [event]
        offers = [self._offers.popleft() for _ in range(len(self._offers))]
        self.rank.closing = self._closing and not (offers or self._offers)
        events += offers
        events += [self._replanned.popleft() for _ in range(len(self._replanned))]
        events += [Taken(rank) for rank in self.wire.taken]
        self.wire.taken.clear()
        for done in self._engine.poll():
            if done.error is not None:
                raise done.error
            events.append(Ran(done.key, done.result))
        return events

    def carry_out(self, action: Do) -> None:
        """Carry out an action of the rank."""
        WRITERS[type(action)](self, action)

    def wait(self, busy: bool) -> None:
        """Sleep a little before the next poll."""
        if busy:
            self._backoff.reset()
        elif self.rank.gathering or not self.wire.drained():
            self._backoff.sleep()
        else:  # at most the engine has work, and needs the core for it
            self._backoff.rest()

    # ---- messages in

    def _answer(self, message: Message) -> Event:
        offset = self.began + self._offset[message.peer]
        came, started, stopped = (t - offset for t in message.clock)
        return Answered(
            message.peer,
            Task(message.query, message.stage, message.unit),
            message.kind is Kind.SKIPPED,
            (came, started, stopped),
            message.at - self.began,
            message.nbytes,
            message,
        )

    def _times(self, message: Message) -> Event:
        offset = self.began + self._offset[message.peer]
        clocks = tuple(
            (int(stage), int(unit), *(t - offset for t in times))
            for stage, unit, *times in message.tensor().tolist()
        )
        self.wire.release(message)
        task = Task(message.query, message.stage, message.unit)
        return Times(message.peer, task, clocks)

    def _pong(self, message: Message) -> Event:
        self.wire.release(message)
        return Alive(message.peer, message.clock[0], message.size)

    def _gone(self, message: Message) -> Event:
        return Gone(message.peer)

    def _error(self, message: Message) -> Event:
        """Raise a worker's exception here, which ends everything."""
        host = self.pool.hosts[message.peer]
        raise RemoteError(f"rank {message.peer} on {host}:\n{message.text()}")

    def _fault(self, message: Message) -> None:
        """Note a fault that a worker injected into itself; it counts as no sign of life."""
        start, stop, _ = message.clock
        self._injected(Action(message.size), message.peer, start, stop, message.query)
        self.wire.release(message)

    def _injected(
        self, action: Action, rank: int, start: float, stop: float, query: int = -1
    ) -> None:
        offset = self.began + self._offset.get(rank, 0.0)
        self.rank.injected(action, rank, start - offset, stop - offset, query)

    # ---- actions out

    def _admit(self, action: Admit) -> None:
        self._lab.reach(action.query)

    def _run(self, action: Run) -> None:
        if (held := self._held.get(action.task.query)) is None:
            return  # everything has failed

        def job() -> Any:
            if not self.rank.wanted(action.task):
                return ()
            spans = self._nodes.run(action, held[0])
            for message in action.answers.values():
                self.wire.release(message)
            return spans

        followed = action.task.unit == GATHER  # by the head, or by the next segment's cut
        self._engine.submit(action.task, job, wake=not followed)

    def _send(self, send: Send) -> None:
        held = self._held.get(send.task.query)
        if held is None:
            return  # it waited for its turn until the query was over
        x, start = held[0].inputs[send.task.unit], self.now()
        assert x is not None
        query, stage, unit = send.task.query, *send.node
        nbytes = self.wire.post(
            send.rank,
            Kind.UNIT,
            x,
            dtype=self._dtype(x, send.task),
            paced=send.paced,
            query=query,
            stage=stage,
            unit=unit,
            epoch=send.epoch,
            origin_stage=stage,
            origin_unit=CUT,
            oldest=self.rank.oldest,
        )
        self.rank.sent(send, start, self.now(), nbytes)

    def _dtype(self, x: Tensor, task: Task) -> torch.dtype:
        """Return the type of an input on the wire: bytes stay so, maps are as the job says."""
        deployment, stage = self._nodes.deployments.of(task.stage)
        coded = deployment.codes[stage].copy_of(task.unit) is None
        s = self.settings
        computed = TRAVEL[s.parity if coded and s.parity else s.wire]
        return torch.uint8 if x.dtype == torch.uint8 else computed

    def _layout(self, action: SendLayout) -> None:
        epoch, ranks = action.layout
        payload = pack_layout(ranks)
        self.wire.post(
            action.rank, Kind.LAYOUT, payload, paced=action.paced, stage=action.stage, epoch=epoch
        )

    def _ping(self, action: SendPing) -> None:
        """Ask a silent rank for a sign of life; the time of asking comes back."""
        clock = (action.asked, 0.0, 0.0)
        self.wire.post(
            action.rank, Kind.PING, clock=clock, paced=action.paced, oldest=self.rank.oldest
        )

    def _replan(self, action: Replan) -> None:
        """Make another plan on a thread of its own, while queries go on."""

        def make() -> None:
            assert self._replanner is not None
            self._replanned.append(
                self._replanner.replan(action.paces, self.cluster, self.settings)
            )
            self._backoff.wake()

        threading.Thread(target=make, name="plan", daemon=True).start()

    def _adopt(self, action: Adopt) -> None:
        """Tell the workers another plan, before its first unit."""
        self._nodes.deployments.add(action.start, action.handle)
        payload = pickle.dumps(action.handle.plan)
        for rank in action.ranks:
            self.wire.post(rank, Kind.PLAN, payload, stage=action.start)

    def _release(self, action: Release) -> None:
        self.wire.release(action.handle)

    def _say(self, action: Say) -> None:
        print(f"r0 | {action.text}", file=sys.stderr)

    def _finish(self, action: Finish) -> None:
        held = self._held.pop(action.query, None)
        if held is None:
            return
        (tensors, future), flight = held, action.flight
        output = None if action.lost or action.refused else tensors.output
        expected = self.deployment.expected(None if flight.unsplit else flight.arrived)
        future.set_result(flight.answer(output, action.lost, self.now(), expected, action.refused))

    def _fail(self, error: Exception) -> None:
        """Give all open futures the first error."""
        self.failure = error = self.failure or error
        while self._held:
            with suppress(KeyError):
                self._held.popitem()[1][1].set_exception(error)


READERS: dict[Kind, Callable[[Leader, Message], Event | None]] = {
    Kind.ANSWER: Leader._answer,
    Kind.SKIPPED: Leader._answer,
    Kind.TIMES: Leader._times,
    Kind.PONG: Leader._pong,
    Kind.ERROR: Leader._error,
    Kind.GONE: Leader._gone,
    Kind.FAULT: Leader._fault,
}
WRITERS: dict[type, Callable[[Leader, Any], None]] = {
    Admit: Leader._admit,
    Run: Leader._run,
    Send: Leader._send,
    SendLayout: Leader._layout,
    SendPing: Leader._ping,
    Release: Leader._release,
    Say: Leader._say,
    Replan: Leader._replan,
    Adopt: Leader._adopt,
    Finish: Leader._finish,
}
