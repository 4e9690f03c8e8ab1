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
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.errors import RemoteError
from mpicoded.faults import Fault
from mpicoded.runtime.codec import Codec
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.environment import check_parent
from mpicoded.runtime.hall import Hall
from mpicoded.runtime.lab_line import LabLine
from mpicoded.runtime.message import TRAVEL
from mpicoded.runtime.query import Query
from mpicoded.runtime.recorder import Recorder
from mpicoded.runtime.setup import own_parts
from mpicoded.runtime.wire import SMALL, Backoff, Kind, Message
from mpicoded.scheduling.dispatcher import (
    Act,
    Dispatcher,
    Extra,
    Late,
    Lost,
    Ping,
    Post,
    Ready,
    Return,
    Suspect,
)
from mpicoded.scheduling.roster import Debt, Roster
from mpicoded.trace import Action

if TYPE_CHECKING:
    from mpicoded.settings import Settings  # needs pydantic, and the ranks of a Group import this

POSTING = 0.05  # s; posting a stage's units takes less, and parity need not wait for more


class Leader:
    """Runs queries on the workers of a Hall, ``settings.window`` of them in flight at a time."""

    def __init__(
        self,
        hall: Hall,
        cluster: Cluster,
        deployment: Deployment,
        settings: Settings,
        faults: Sequence[Fault] = (),
        seed: int = 0,
    ) -> None:
        self.hall, self.wire = hall, hall.wire
        self.cluster = cluster
        self.deployment = deployment
        self.settings = settings
        self.record = Recorder(self.wire.peers)
        self.failure: Exception | None = None
        self._codec = Codec(deployment, self.record.own)
        self._dispatcher = self._new_dispatcher(cluster)
        self._backoff = Backoff()
        self._queries: dict[int, Query] = {}
        self._waiting: deque[Query] = deque()
        self._encoded: deque[Query] = deque()  # data units are cut
        self._coded: deque[tuple[Query, int]] = deque()  # parity units of a stage are there too
        self._tasks: queue.SimpleQueue[tuple[Callable[[Query], None], Query] | None] = (
            queue.SimpleQueue()
        )
        self._number, self._lock = 0, threading.Lock()
        self._closing = self._computing = False
        if self.wire.peers:
            self.send_setup(faults, seed)
            hall.recv_each(Kind.READY, settings.start_limit, self.recv_ready)
        self._lab = LabLine(faults, cluster.hosts, self.record.fault)
        self._lab.ready()
        self._threads = [
            threading.Thread(target=self._progress, name="progress", daemon=True),
            threading.Thread(target=self._compute, name="compute", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _new_dispatcher(self, cluster: Cluster) -> Dispatcher:
        plan, s = self.deployment.plan, self.settings
        plan.check(cluster, s.sharing)
        home = tuple(plan.home(i, cluster) for i in range(plan.n)) if cluster.workers else ()
        work = [[plan.flops(i, unit) for unit in range(plan.n)] for i in range(len(plan.stages))]
        roster = Roster(cluster.workers, home, s.suspect_after, s.window + 8, work)
        roster.adaptive = s.placement == "adaptive"
        deadlines = [s.new_deadline() for _ in plan.stages]
        aims = self.deployment.aims(s.min_accuracy)
        return Dispatcher(self.deployment.codes, roster, deadlines, s.give_up, s.retries, aims)

    def send_setup(self, faults: Sequence[Fault], seed: int) -> None:
        """Send every worker all programs and its own faults."""
        self.wire.capacity = max(SMALL, self.deployment.capacities()[1])
        home, s = self._dispatcher.roster.home, self.settings
        own = own_parts(self.wire.peers, home, faults, seed)
        self.hall.send_setup(self.deployment.setup(s.threads, s.answers), own)

    def recv_ready(self, message: Message) -> None:
        """A worker is ready; on another host its clock is another one."""
        if self.hall.machines[message.peer] != self.hall.machines[0]:
            self.record.set_clock(message)

    # ---- the caller's thread

    def submit(self, x: Tensor, number: int | None = None) -> Future[Answer]:
        """Queue one query (B, C, H, W), numbered on unless ``number`` is given.

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
        plan = self.deployment.plan
        with self._lock:
            number = self._number if number is None else number
            if number < self._number:
                raise ValueError(f"query {number} after {self._number - 1}: numbers must rise")
            query = Query.new(number, x, self.record.now(), (len(plan.stages), plan.n))
            query.future.set_running_or_notify_cancel()  # from here on nobody can cancel it
            self._number = number + 1
            self._waiting.append(query)
        self._backoff.wake()
        if self.failure is not None:  # it may have come just before the query was queued
            self._fail(self.failure)
        return query.future

    def close(self) -> list[int]:
        """Finish what is in flight and send everybody home; return the ranks that were silent."""
        self._closing = True
        self._backoff.wake()
        for thread in self._threads:
            thread.join()
        self._lab.close()
        return self.hall.dismiss(self.settings.end_limit)

    @property
    def at_work(self) -> bool:
        """Whether this rank computes, or one that owes an answer has spoken a moment ago."""
        heard = self.record.now() - 2 * self.settings.suspect_after
        ranks = self._dispatcher.roster.ranks.values()
        return self._computing or any(rank.owes and rank.heard > heard for rank in ranks)

    # ---- the progress thread: messages and decisions

    def _progress(self) -> None:
        try:
            while self.failure is None and not self._finished():
                if self.wire.peers:
                    check_parent()
                self._lab.poll()
                busy = self._admit() | self._open() | self._receive()
                self._send_coded()
                waiting = self.wire.queued(time.perf_counter())
                self._dispatcher.roster.excuse(waiting, self.record.now())
                self._carry_out(self._dispatcher.tick(self.record.now()))
                if busy:
                    self._backoff.reset()
                elif self._dispatcher.gathers or not self.wire.drained():
                    self._backoff.sleep()
                else:  # at most the computing thread has work, and needs the core for it
                    self._backoff.rest()
        except Exception as error:
            self._fail(error)
        if self.failure is not None:
            self._fail(self.failure)  # a query may just have changed places
        self._tasks.put(None)

    def _finished(self) -> bool:
        return self._closing and not self._queries and not self._waiting

    def _admit(self) -> bool:
        """Let waiting queries in, up to the window."""
        admitted = False
        while self._waiting and len(self._queries) < self.settings.window:
            query = self._waiting.popleft()
            self._lab.reach(query.number)
            self._queries[query.number] = query
            self._tasks.put((self._encode if self.wire.peers else self._alone, query))
            admitted = True
        return admitted

    def _open(self) -> bool:
        """Post the units of the stages that have been encoded."""
        opened = False
        while self._encoded:
            query = self._encoded.popleft()
            query.posted = self.record.now()
            self._carry_out(self._dispatcher.open(query.number, query.stage, query.posted))
            query.opened.set()
            opened = True
        return opened

    def _send_coded(self) -> None:
        """Send the parity units that have been encoded, if their stage is not over yet."""
        while self._coded:
            query, stage = self._coded.popleft()
            query.coded = stage
            posts, query.unsent = query.unsent, []
            for post in posts:
                if post.debt[:2] in self._dispatcher.gathers:
                    self.send_unit(post)

    def _receive(self) -> bool:
        receivers = {
            Kind.ANSWER: self.recv_answer,
            Kind.SKIPPED: self.recv_answer,
            Kind.PONG: self.recv_pong,
            Kind.ERROR: self.recv_error,
            Kind.GONE: self.recv_gone,
            Kind.FAULT: self.recv_fault,
        }
        messages = self.wire.poll()
        for message in messages:
            receivers[message.kind](message)
            self.record.hear(message.peer)
        return bool(messages)

    def _carry_out(self, acts: Sequence[Act]) -> None:
        steps: dict[type, Callable[[Any], None]] = {
            Post: self.send_unit,
            Ping: self.send_ping,
            Suspect: lambda act: self.record.rank(Action.SUSPECT, act.rank),
            Ready: self._ready,
            Lost: self._lost,
            Return: lambda act: self.record.rank(Action.RETURN, act.rank),
            Late: lambda act: None,  # recorded with the message itself
            Extra: lambda act: None,
        }
        for act in acts:
            steps[type(act)](act)

    def send_unit(self, post: Post) -> None:
        """Send one unit's input to a rank."""
        began = time.perf_counter()
        coded = self.deployment.codes[post.debt.stage].source(post.debt.unit) is None
        query = self._queries[post.debt.query]
        x = query.inputs[post.debt.unit]
        if x is None or (post.debt.unit >= self.deployment.plan.k and query.coded < query.stage):
            query.unsent.append(post)
            return
        nbytes = self.wire.post(
            post.rank,
            Kind.UNIT,
            x,
            dtype=self._wire_dtype(x, coded),
            in_turn=True,
            alone=post.debt.unit >= self.deployment.plan.k,
            query=post.debt.query,
            stage=post.debt.stage,
            unit=post.debt.unit,
            oldest=self._dispatcher.oldest(),
        )
        took = time.perf_counter() - began
        action = Action.RESEND if post.again else Action.SEND
        query.spend(action, took)
        self.record.unit(action, began, took, post.rank, post.debt, nbytes)

    def _wire_dtype(self, x: Tensor, coded: bool) -> torch.dtype:
        """8-bit images stay so; what was computed travels as the job says."""
        if x.dtype == torch.uint8:
            return torch.uint8
        s = self.settings
        return TRAVEL[s.parity if coded and s.parity else s.wire]

    def recv_answer(self, message: Message) -> None:
        """A unit's output came, or word that it was skipped."""
        began = time.perf_counter()
        debt = Debt(message.query, message.stage, message.unit)
        skipped = message.kind is Kind.SKIPPED
        computed = message.clock[2] - message.clock[1]
        acts = self._dispatcher.answered(message.peer, debt, self.record.now(), skipped, computed)
        query = self._queries.get(message.query)
        action = _fate(acts)
        self.record.answer(action, message, debt, query)
        if query is None or action is not Action.ARRIVE:
            self.wire.release(message)
        else:
            query.answers[debt.unit] = message
            query.seconds[debt.stage, debt.unit] = self.record.now() - query.posted
        self._carry_out(acts)
        if query is not None:
            query.own += time.perf_counter() - began

    def send_ping(self, ping: Ping) -> None:
        """Ask a silent rank for a sign of life; it sends the time of asking back."""
        clock, oldest = (ping.asked, 0.0, 0.0), self._dispatcher.oldest()
        self.wire.post(ping.rank, Kind.PING, clock=clock, oldest=oldest)

    def recv_pong(self, message: Message) -> None:
        """A rank is there; if it has nothing to do, what it owed was lost on the way."""
        now, asked = self.record.now(), message.clock[0]
        if message.size == 0:
            acts = self._dispatcher.nothing_left(message.peer, asked, now)
        else:
            acts = self._dispatcher.spoke(message.peer, now)
        self.wire.release(message)
        self._carry_out(acts)

    def recv_error(self, message: Message) -> None:
        """A worker raised an exception: everything ends with it."""
        host = self.hall.hosts[message.peer]
        raise RemoteError(f"rank {message.peer} on {host}:\n{message.text()}")

    def recv_fault(self, message: Message) -> None:
        """A worker tells of a fault that it injected into itself; it counts as no sign of life."""
        start, stop, _ = message.clock
        self.record.fault(Action(message.size), message.peer, start, stop, message.query)
        self.wire.release(message)

    def recv_gone(self, message: Message) -> None:
        """A worker is dead: exclude it and give its units to others."""
        self.record.rank(Action.FAIL, message.peer)
        self._carry_out(self._dispatcher.failed(message.peer, self.record.now()))

    def _ready(self, act: Ready) -> None:
        query = self._queries[act.query]
        query.gather += self.record.now() - query.posted
        query.rounds = max(query.rounds, act.rounds)
        query.arrived[act.stage] = act.arrived
        self._tasks.put((self._decode, query))

    def _lost(self, act: Lost) -> None:
        query = self._queries[act.query]
        query.arrived[act.stage], query.rounds = act.arrived, act.rounds
        if not self._dispatcher.roster.living():
            self._tasks.put((self._alone, query))  # the leader goes on by itself
            return
        self.record.lost(query)
        self._finish(query, None)

    # ---- the compute thread

    def _compute(self) -> None:
        while (task := self._tasks.get()) is not None:
            run, query = task
            self._computing = True
            try:
                run(query)
            except Exception as error:
                self._fail(error)
            self._computing = False
            self._backoff.wake()

    def _encode(self, query: Query) -> None:
        if self._codec.cut(query):
            query.coded = query.stage
            self._encoded.append(query)
            return
        query.opened.clear()
        self._encoded.append(query)
        self._backoff.wake()
        query.opened.wait(POSTING)  # parity is made while data is on its way, and not before
        self._codec.encode(query)
        self._coded.append((query, query.stage))

    def _decode(self, query: Query) -> None:
        messages = list(query.answers.values())
        more = self._codec.decode(query)
        for message in messages:
            self.wire.release(message)
        if more:
            self._encode(query)
        else:
            self._finish(query, self._codec.finish(query))

    def _alone(self, query: Query) -> None:
        query.degraded = False  # whatever was reconstructed before is not used
        self._finish(query, self._codec.alone(query))

    # ---- the end of a query

    def _finish(self, query: Query, output: Tensor | None) -> None:
        output = None if output is None else output.clone()  # an ordinary tensor, not inference's
        answer = query.answer(output, self.record.now())
        if self._queries.pop(query.number, None) is not None:  # else everything has failed
            query.future.set_result(answer)

    def _fail(self, error: Exception) -> None:
        """Everything that is waited for ends with the first error."""
        self.failure = error = self.failure or error
        while self._queries or self._waiting:  # whoever takes a query out ends its future
            with suppress(KeyError):
                self._queries.popitem()[1].future.set_exception(error)
            with suppress(IndexError):
                self._waiting.popleft().future.set_exception(error)


def _fate(acts: Sequence[Act]) -> Action:
    """Say what became of an answer, from what the dispatcher made of it."""
    fates = {Late: Action.LATE, Extra: Action.EXTRA}
    return next((fates[type(act)] for act in acts if type(act) in fates), Action.ARRIVE)
