"""The group leader: encode, send units, gather answers, decode. Mirrors :mod:`worker`.

Three threads. The caller's submits queries. `progress` owns MPI and the dispatcher. `compute`
encodes, decodes and runs the head, so that messages move meanwhile.

    submit -> encode -> open, post … arrive -> decode -> (next stage: encode) -> head -> answer
              compute   progress              compute                          compute
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from mpicoded import units
from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.dispatcher import Act, Dispatcher, Late, Lost, Post, Ready, Return, Suspect
from mpicoded.errors import PlanError, RemoteError
from mpicoded.faults import Fault, schedule
from mpicoded.roster import Debt, Roster
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.query import Query
from mpicoded.runtime.settings import Settings
from mpicoded.runtime.setup import Setup, dump
from mpicoded.runtime.wire import HEADER, SMALL, WIRE_DTYPES, Backoff, Kind, Message, Wire
from mpicoded.trace import Action, Trace


class Hall:
    """Where the workers gather before they are told what to do.

    The leader knows here which ranks and hosts there are; nothing has been set up yet, and
    :meth:`dismiss` sends everybody home.
    """

    def __init__(self, comm: MPI.Comm, limit: float = 120.0) -> None:
        self.wire = Wire(comm, range(1, comm.Get_size()))
        self.hosts = {0: MPI.Get_processor_name()}
        _recv_each(self.wire, Kind.HELLO, limit, self._recv_hello)

    def _recv_hello(self, message: Message) -> None:
        self.hosts[message.peer] = message.text()

    @property
    def cluster(self) -> Cluster:
        """All ranks and their hosts."""
        return Cluster(tuple(self.hosts[p] for p in sorted(self.hosts)))

    def dismiss(self) -> list[int]:
        """Send everybody home; return the ranks that did not say good-bye."""
        return _stop(self.wire, Settings.end_limit)


def _recv_each(
    wire: Wire, kind: Kind, limit: float, take: Callable[[Message], None]
) -> None:
    """Receive one message of ``kind`` from every worker, within ``limit`` seconds."""
    waiting, backoff, end = set(wire.peers), Backoff(), time.perf_counter() + limit
    while waiting:
        for message in wire.poll():
            if message.kind is Kind.ERROR:
                raise RemoteError(f"rank {message.peer}:\n{message.text()}")
            if message.kind is Kind.GONE:
                raise RemoteError(f"rank {message.peer} died before the start: {message.text()}")
            take(message)
            waiting.discard(message.peer)
            wire.release(message)
        if time.perf_counter() > end:
            raise RemoteError(
                f"ranks {sorted(waiting)} did not say {kind.name} within {limit:g} s: look at "
                "their hosts, or raise start_limit in [runtime]"
            )
        backoff.sleep()


def _stop(wire: Wire, limit: float) -> list[int]:
    """Tell all living workers to stop; return those that did not say good-bye in time."""
    waiting = {p for p, peer in wire.peers.items() if not peer.gone}
    for peer in waiting:
        wire.post(peer, Kind.STOP)
    backoff, end = Backoff(), time.perf_counter() + limit
    while waiting and time.perf_counter() < end:
        for message in wire.poll():
            if message.kind in (Kind.BYE, Kind.GONE):
                waiting.discard(message.peer)
            wire.release(message)
        backoff.sleep()
    return sorted(waiting)


class Leader:
    """Runs queries on the workers of a Hall; one at a time or ``settings.window`` in flight.

    ``trace`` gets every event, in seconds since ``self.began``.
    """

    def __init__(
        self,
        hall: Hall,
        deployment: Deployment,
        settings: Settings,
        faults: Sequence[Fault] = (),
        seed: int = 0,
        first_query: int = 0,
    ) -> None:
        self.wire = hall.wire
        self.hosts = hall.hosts
        self.deployment = deployment
        self.settings = settings
        self.trace = Trace()
        self.began = time.perf_counter()
        self.failure: Exception | None = None
        self.dead: list[int] = []
        self._offset = dict.fromkeys(self.wire.peers, 0.0)
        self._heard = dict.fromkeys(self.wire.peers, 0.0)
        self._backoff = Backoff()
        self._queries: dict[int, Query] = {}
        self._waiting: deque[Query] = deque()
        self._encoded: deque[Query] = deque()
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._number = first_query
        self._closing = False
        self._dispatcher = self._new_dispatcher(hall.cluster)
        if self.wire.peers:
            self._set_up(hall.cluster, faults, seed)
        self._threads = [
            threading.Thread(target=self._progress, name="progress", daemon=True),
            threading.Thread(target=self._compute, name="compute", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # ---- before the first query

    def _new_dispatcher(self, cluster: Cluster) -> Dispatcher:
        plan, s = self.deployment.plan, self.settings
        plan.check(cluster, s.sharing)
        home = tuple(plan.home(i, cluster) for i in range(plan.n)) if cluster.workers else ()
        roster = Roster(cluster.workers, home, s.suspect_after, depth=s.window + 2)
        deadlines = [s.new_deadline() for _ in plan.stages]
        return Dispatcher(self.deployment.codes, roster, deadlines, s.give_up, s.retries)

    def _set_up(self, cluster: Cluster, faults: Sequence[Fault], seed: int) -> None:
        self.send_setup(cluster, faults, seed)
        _recv_each(self.wire, Kind.READY, self.settings.start_limit, self.recv_ready)

    def send_setup(self, cluster: Cluster, faults: Sequence[Fault], seed: int) -> None:
        """Send every worker all programs and its own faults."""
        largest_in, largest_out = self.deployment.capacities()
        self.wire.capacity = max(SMALL, HEADER + largest_out)
        programs, shapes = self.deployment.programs(), self.deployment.input_shapes()
        for rank in self.wire.peers:
            home = tuple(i for i, p in enumerate(self._dispatcher.roster.home) if p == rank)
            setup = Setup(
                programs=programs,
                inputs=shapes,
                pixels=self.deployment.pixels,
                home=home,
                capacity=max(SMALL, HEADER + largest_in),
                threads=self.settings.threads,
                faults=schedule(faults, rank, seed),
            )
            body = dump(setup)
            self.wire.post(rank, Kind.SETUP, size=len(body))
            self.wire.post(rank, Kind.BODY, body)

    def recv_ready(self, message: Message) -> None:
        """A worker is ready; on another host its clock is another one."""
        if self.hosts[message.peer] != self.hosts[0]:
            self._offset[message.peer] = message.clock[0] - message.at

    # ---- the caller's thread

    def submit(self, x: Tensor) -> Future[Answer]:
        """Queue one query (B, C, H, W) and return its future.

        Raises
        ------
        PlanError
            If the shape is not the plan's.
        RemoteError
            If a worker raised an exception before.
        """
        if self.failure is not None:
            raise self.failure
        plan = self.deployment.plan
        expected = (plan.batch, *self.deployment.chain.input_shape)
        if tuple(x.shape) != expected:
            raise PlanError(f"a query of shape {tuple(x.shape)} does not fit the plan: {expected}")
        shape = (len(plan.stages), plan.n)
        query = Query(
            number=self._number,
            image=x,
            map=x,
            future=Future(),
            submitted=self._now(),
            arrived=np.zeros(shape, np.bool_),
            seconds=np.full(shape, np.nan, np.float32),
        )
        self._number += 1
        self._waiting.append(query)
        self._backoff.wake()
        return query.future

    def close(self) -> list[int]:
        """Finish what is in flight, send everybody home; return the ranks that did not answer."""
        self._closing = True
        self._backoff.wake()
        for thread in self._threads:
            thread.join()
        return _stop(self.wire, self.settings.end_limit) if self.wire.peers else []

    def _now(self) -> float:
        return time.perf_counter() - self.began

    # ---- the progress thread: messages and decisions

    def _progress(self) -> None:
        try:
            while self.failure is None and not self._finished():
                busy = self._admit() | self._open() | self._receive()
                self._carry_out(self._dispatcher.tick(self._now()))
                if busy:
                    self._backoff.reset()
                else:
                    self._backoff.sleep()
        except Exception as error:
            self._fail(error)
        self._tasks.put(None)

    def _finished(self) -> bool:
        return self._closing and not self._queries and not self._waiting

    def _admit(self) -> bool:
        """Let waiting queries in, up to the window."""
        admitted = False
        while self._waiting and len(self._queries) < self.settings.window:
            query = self._waiting.popleft()
            self._queries[query.number] = query
            self._schedule(self._encode if self.wire.peers else self._alone, query)
            admitted = True
        return admitted

    def _open(self) -> bool:
        """Post the units of the stages that have been encoded."""
        opened = False
        while self._encoded:
            query = self._encoded.popleft()
            query.posted = self._now()
            self._carry_out(self._dispatcher.open(query.number, query.stage, query.posted))
            opened = True
        return opened

    def _receive(self) -> bool:
        messages = self.wire.poll()
        for message in messages:
            self._heard[message.peer] = self._now()
            handlers = {
                Kind.ANSWER: self.recv_answer,
                Kind.SKIPPED: self.recv_answer,
                Kind.PONG: self.recv_pong,
                Kind.ERROR: self.recv_error,
                Kind.GONE: self.recv_gone,
            }
            handlers[message.kind](message)
        return bool(messages)

    def _carry_out(self, acts: Sequence[Act]) -> None:
        steps: dict[type, Callable[[Any], None]] = {
            Post: self.send_unit,
            Ready: self._ready,
            Lost: self._lost,
            Suspect: self.send_ping,
            Late: self._late,
            Return: self._returned,
        }
        for act in acts:
            steps[type(act)](act)

    def send_unit(self, post: Post) -> None:
        """Send one unit's input to a rank."""
        began = time.perf_counter()
        query = self._queries[post.debt.query]
        x = query.inputs[post.debt.unit]
        nbytes = self.wire.post(
            post.rank,
            Kind.UNIT,
            x,
            dtype=self._wire_dtype(x),
            query=post.debt.query,
            stage=post.debt.stage,
            unit=post.debt.unit,
            oldest=self._dispatcher.oldest(),
        )
        took = time.perf_counter() - began
        query.own += took
        action = Action.RESEND if post.again else Action.SEND
        self._event(action, began, took, post.rank, post.debt, nbytes)

    def _wire_dtype(self, x: Tensor) -> torch.dtype:
        """8-bit images stay so; what was computed travels as float32, or as float16 if asked."""
        if x.dtype == torch.uint8:
            return torch.uint8
        return torch.float32 if self.settings.wire == "float32" else torch.float16

    def recv_answer(self, message: Message) -> None:
        """A unit's output came, or word that it was skipped."""
        began = time.perf_counter()
        debt = Debt(message.query, message.stage, message.unit)
        query = self._queries.get(message.query)
        skipped = message.kind is Kind.SKIPPED
        acts = self._dispatcher.answered(message.peer, debt, self._now(), skipped)
        late = any(isinstance(act, Late) for act in acts)
        if query is not None and not late:
            query.answers[debt.unit] = message
            query.seconds[debt.stage, debt.unit] = self._now() - query.posted
        self._trace_answer(message, debt, query, late)
        self._carry_out(acts)
        if late or query is None:
            self.wire.release(message)
        if query is not None:
            query.own += time.perf_counter() - began

    def send_ping(self, suspect: Suspect) -> None:
        """Ask a silent rank for a sign of life."""
        now = self._now()
        self.wire.post(suspect.rank, Kind.PING, clock=(now, 0.0, 0.0))
        self.trace.add(Action.SUSPECT, self._heard[suspect.rank], now, rank=suspect.rank)

    def recv_pong(self, message: Message) -> None:
        """A rank is there; if it has nothing to do, what it owed was lost on the way."""
        now = self._now()
        if message.size == 0:
            acts = self._dispatcher.nothing_left(message.peer, message.clock[0], now)
        else:
            acts = self._dispatcher.spoke(message.peer, now)
        self.wire.release(message)
        self._carry_out(acts)

    def recv_error(self, message: Message) -> None:
        """A worker raised an exception: everything ends with it."""
        raise RemoteError(f"rank {message.peer} on {self.hosts[message.peer]}:\n{message.text()}")

    def recv_gone(self, message: Message) -> None:
        """A worker is dead: exclude it and give its units to others."""
        now = self._now()
        self.dead.append(message.peer)
        self.trace.add(Action.FAIL, self._heard[message.peer], now, rank=message.peer)
        self._carry_out(self._dispatcher.failed(message.peer, now))

    def _returned(self, act: Return) -> None:
        self.trace.add(Action.RETURN, self._now(), self._now(), rank=act.rank)

    def _late(self, act: Late) -> None:
        """Already recorded where the message was received."""

    def _ready(self, act: Ready) -> None:
        query = self._queries[act.query]
        query.gather += self._now() - query.posted
        query.rounds = max(query.rounds, act.rounds)
        query.arrived[act.stage] = act.arrived
        self._schedule(self._decode, query)

    def _lost(self, act: Lost) -> None:
        query = self._queries[act.query]
        query.arrived[act.stage], query.rounds = act.arrived, act.rounds
        if not self._dispatcher.roster.living():
            self._schedule(self._alone, query)  # the leader goes on by itself
            return
        self.trace.add(Action.LOST, query.posted, self._now(), query=act.query, stage=act.stage)
        self._finish(query, None)

    def _event(
        self, action: Action, began: float, took: float, rank: int, debt: Debt, nbytes: int = 0
    ) -> None:
        start = began - self.began
        query, stage, unit = debt
        self.trace.add(
            action, start, start + took, rank=rank, query=query, stage=stage, unit=unit, nbytes=nbytes
        )

    def _trace_answer(self, message: Message, debt: Debt, query: Query | None, late: bool) -> None:
        came, started, stopped = (t - self._offset[message.peer] for t in message.clock)
        if message.kind is Kind.ANSWER:
            self._event(Action.QUEUE, came, started - came, message.peer, debt)
            self._event(Action.COMPUTE, started, stopped - started, message.peer, debt)
        action = Action.LATE if late or query is None else Action.ARRIVE
        since = self.began + query.posted if query is not None else came
        self._event(action, since, message.at - since, message.peer, debt, message.nbytes)

    def _fail(self, error: Exception) -> None:
        """Everything that is waited for ends with this error."""
        self.failure = error
        queries = [*self._queries.values(), *self._waiting]
        self._queries.clear()
        self._waiting.clear()
        for query in queries:
            if not query.future.done():
                query.future.set_exception(error)

    # ---- the compute thread: tensors

    def _schedule(self, task: Callable[[Query], None], query: Query) -> None:
        self._tasks.put(lambda: task(query))

    def _compute(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                with torch.inference_mode():
                    task()
            except Exception as error:
                self._fail(error)
            self._backoff.wake()

    def _encode(self, query: Query) -> None:
        began = time.perf_counter()
        parity = self.deployment.parity(query.stage, query.map)
        query.inputs = self.deployment.inputs(query.stage, query.map, parity)
        took = time.perf_counter() - began
        query.encode += took
        query.own += took
        self._event(Action.ENCODE, began, took, 0, Debt(query.number, query.stage, -1))
        self._encoded.append(query)

    def _decode(self, query: Query) -> None:
        """Fill what is missing, stitch the map, and go on to the next stage or the head."""
        began = time.perf_counter()
        stage = self.deployment.plan.stages[query.stage]
        code, arrived = self.deployment.codes[query.stage], query.arrived[query.stage]
        outputs = [self._output(query, unit) for unit in range(code.n)]
        if not code.complete(arrived):
            query.degraded = True
            filled = code.decode(units.stack(outputs, stage), arrived)  # (k, B, C, h, w)
            for unit in np.flatnonzero(~arrived[: code.k]):
                outputs[unit] = units.trim(filled[unit], stage, int(unit))
        data = [y for y in outputs[: code.k] if y is not None]
        query.map = units.stitch(data, stage)  # (B, C, H, W)
        for message in query.answers.values():
            self.wire.release(message)
        query.answers = {}
        took = time.perf_counter() - began
        query.decode += took
        query.own += took
        self._event(Action.DECODE, began, took, 0, Debt(query.number, query.stage, -1))
        self._go_on(query)

    def _output(self, query: Query, unit: int) -> Tensor | None:
        message = query.answers.get(unit)
        if message is None or not query.arrived[query.stage, unit]:
            return None
        y = message.tensor()
        return y.float() if y.dtype == torch.float16 else y

    def _go_on(self, query: Query) -> None:
        query.stage += 1
        if query.stage < len(self.deployment.plan.stages):
            self._encode(query)
            return
        query.stage -= 1
        began = time.perf_counter()
        head = self.deployment.head
        output = head(query.map) if head is not None else query.map
        took = time.perf_counter() - began
        query.head += took
        query.own += took
        self._event(Action.HEAD, began, took, 0, Debt(query.number, query.stage, -1))
        self._finish(query, output)

    def _alone(self, query: Query) -> None:
        """Run the whole network here: there is no worker (any more)."""
        began = time.perf_counter()
        output = self.deployment.alone(query.image)
        took = time.perf_counter() - began
        query.head += took
        query.own += took
        self._event(Action.HEAD, began, took, 0, Debt(query.number, query.stage, -1))
        self._finish(query, output)

    def _finish(self, query: Query, output: Tensor | None) -> None:
        del self._queries[query.number]
        query.finish(output, self._now())
