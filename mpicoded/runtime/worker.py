"""A worker's port: start and end, then MPI, tensors and the clock for its WorkerRank.

The main thread runs the executor's loop and owns MPI; the engine's thread computes meanwhile.

    leader                      worker
    recv_hello            <-    send_hello
    send_setup            ->    recv_setup
    recv_ready            <-    send_ready
    LAYOUT, UNIT          ->    UNIT (pieces)   <->  its neighbours, in a direct segment
                          <-    ANSWER or SKIPPED, TIMES, FAULT
    PING                  <->   PONG
    STOP                  ->
                          <-    IDLE
    END                   ->                    when all is written
                          <-    BYE
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from mpicoded.geometry import Box
from mpicoded.runtime.chain_broadcast import ChainBroadcast
from mpicoded.runtime.engine import Engine
from mpicoded.runtime.environment import has_ulfm, machine, parent_died
from mpicoded.runtime.executor import serve as execute
from mpicoded.runtime.exit import end_job
from mpicoded.runtime.inject import FaultInjector
from mpicoded.runtime.message import TRAVEL, unpack_layout
from mpicoded.runtime.setup import Setup, load
from mpicoded.runtime.threads import use_threads
from mpicoded.runtime.wire import SMALL, Backoff, Kind, Message, Wire
from mpicoded.scheduling.events import (
    Asked,
    Came,
    Do,
    Event,
    Gone,
    Piece,
    Placed,
    Ran,
    Release,
    Reply,
    RunUnit,
    SendAlive,
    SendPiece,
    SendTimes,
    Span,
    Stopped,
)
from mpicoded.scheduling.layout import Layout
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.worker import Routes, WorkerRank
from mpicoded.steps import Node
from mpicoded.trace import Action

LEADER = 0
LEADER_FIRST = 3.0  # s that a worker waits longer than the leader, whose words tell more
END_LIMIT = 10.0
FLUSH_LIMIT = 0.25  # s that a rank takes for its last words before it strikes itself


class LeaderGone(Exception):
    """The leader died."""


def serve(comm: MPI.Comm, limit: float) -> int | None:
    """Run tasks until the leader has written all answers.

    Return the status that it leaves with, None if it died instead. After ``limit`` seconds without
    a sign of life of it the whole job ends.
    """
    torch.set_num_threads(1)
    wire, backoff = Wire(comm, [LEADER]), Backoff()
    wire.limit = limit + LEADER_FIRST
    try:
        send_hello(wire)
        try:
            setup = recv_setup(wire, backoff)
            if setup is not None:
                _work(wire, backoff, setup)
        except LeaderGone:
            raise
        except Exception:
            send_error(wire, traceback.format_exc())
            _await(wire, backoff)  # the leader says stop
        wire.post(LEADER, Kind.IDLE)
        status = _await(wire, backoff).size
        send_bye(wire, backoff)
    except LeaderGone:
        return None
    return status


def check_leader(wire: Wire) -> None:
    """End the job if the leader is stopped or cut off; raise LeaderGone if mpirun is gone."""
    if parent_died():
        raise LeaderGone
    if wire.quiet.seconds() > wire.limit:
        rank, host = wire.comm.Get_rank(), MPI.Get_processor_name()
        end_job(
            f"error: rank 0 gave rank {rank} on {host} no sign of life for {wire.limit:.0f} s: it "
            "is stopped, hangs or is cut off; look at its host, or raise start_limit"
        )


def send_hello(wire: Wire) -> None:
    """Tell the leader the host and process of this rank."""
    here = f"{MPI.Get_processor_name()}\n{machine()}"
    wire.post(LEADER, Kind.HELLO, here.encode(), size=os.getpid())


def recv_setup(wire: Wire, backoff: Backoff) -> Setup | None:
    """Wait for the programs; None if the leader stops before it starts."""
    head = _await(wire, backoff)
    if head.kind is Kind.STOP:
        return None
    size, capacity, source, target = head.tensor().tolist()
    wire.release(head)
    wire.expect(capacity)
    broadcast = ChainBroadcast(
        wire.comm, np.empty(size, np.uint8), source, target if target else None
    )
    if not _pass_on(wire, backoff, broadcast):
        wire.kept = broadcast  # its receives may still be open
        return None
    return load(broadcast.array, wire.comm.Get_rank())


def _pass_on(wire: Wire, backoff: Backoff, broadcast: ChainBroadcast) -> bool:
    """Take in the setup and pass it on; return whether it is here and wanted."""
    stopped = False
    backoff.reset()
    while not broadcast.done:
        check_leader(wire)
        if broadcast.move():
            backoff.reset()
        for message in wire.poll():
            if message.kind is Kind.GONE:
                raise LeaderGone
            stopped = True  # nothing but STOP comes here
        if stopped and has_ulfm():
            return False  # a rank before this one may be dead, and nothing more come
        backoff.sleep()
    if not broadcast.received and not stopped:
        _await(wire, backoff)  # the leader says stop
    return broadcast.received and not stopped


def _await(wire: Wire, backoff: Backoff) -> Message:
    """Wait for one message from the leader."""
    backoff.reset()
    while True:
        check_leader(wire)
        for message in wire.poll():
            if message.peer != LEADER:
                continue  # a neighbour parts
            if message.kind is Kind.GONE:
                raise LeaderGone
            return message
        backoff.sleep()


def _work(wire: Wire, backoff: Backoff, setup: Setup) -> None:
    """Run tasks until the leader says stop."""
    use_threads(setup.threads)
    worker = _Worker(wire, backoff, setup)
    worker.warm_up()
    wire.post(LEADER, Kind.READY, clock=(time.perf_counter(),) * 3)
    execute(worker.rank, worker)
    worker.close()
    if worker.leader_gone:
        raise LeaderGone


class _Output(NamedTuple):
    """A task's output; a ``silent`` one is never sent to the leader."""

    tensor: Tensor | None
    silent: bool


class _Notice(NamedTuple):
    """An injected fault, from when until when."""

    action: Action
    start: float
    stop: float
    query: int


class _Worker:
    """Events from MPI and the engine for ``rank``, and its actions back."""

    def __init__(self, wire: Wire, backoff: Backoff, setup: Setup) -> None:
        self.wire, self.backoff, self.setup = wire, backoff, setup
        self.rank = WorkerRank(self._routes)
        self.leader_gone = False
        self._engine = Engine(backoff.wake)
        self._spent: list[Message] = []  # read by what the engine has done
        self._notices: queue.SimpleQueue[_Notice] = queue.SimpleQueue()
        self._flushed = threading.Event()  # nothing is left to send
        self._faults = FaultInjector(setup.own.faults, self._tell, self._last_words)

    def now(self) -> float:
        """Return the time on this rank's clock."""
        return time.perf_counter()

    def warm_up(self) -> None:
        """Run every own unit once, so that the first query is not the slow one.

        A spare rank runs one of others', which packs the weights of all.
        """
        with torch.inference_mode():
            for stage, shapes in enumerate(self.setup.inputs):
                for unit in self.setup.own.home or (0,):
                    self._program(stage, unit, torch.zeros(shapes[unit]))

    def close(self) -> None:
        """Wait for the engine, and end with the neighbours: no receive is to stay open."""
        self._engine.close()
        for peer in self.wire.peers:
            if peer != LEADER:
                self.wire.post(peer, Kind.BYE)

    # ---- the executor's port

    def poll(self) -> list[Event]:
        """Return the events: messages, computations."""
        for message in self._spent:
            self.wire.release(message)
        self._spent.clear()
        events: list[Event] = []
        for message in self.wire.poll():
            event = READERS[message.kind](self, message)
            events += [] if event is None else [event]
        for done in self._engine.poll():
            if done.error is not None:
                raise done.error
            (action, (output, started, stopped)) = done.key, done.result
            self._spent += [piece.handle for piece in action.pieces if piece.local is None]
            skipped = action.epoch and output.tensor is None
            span = Span(Action.COMPUTE, started, stopped)
            events.append(Ran(action.task, (span,), None if skipped else output, action.epoch))
        while not self._notices.empty():
            action, start, stop, query = self._notices.get()
            clock = (start, stop, 0.0)
            self.wire.post(LEADER, Kind.FAULT, size=int(action), clock=clock, query=query)
        try:
            check_leader(self.wire)
        except LeaderGone:
            events.append(Gone(LEADER))
        self.leader_gone |= Gone(LEADER) in events
        return events

    def carry_out(self, action: Do) -> None:
        """Carry out an action of the rank."""
        WRITERS[type(action)](self, action)

    def wait(self, busy: bool) -> None:
        """Sleep a little before the next poll."""
        if busy:
            self.backoff.reset()
            return
        if self._notices.empty() and self.wire.drained():
            self._flushed.set()
        self.backoff.sleep(working=self.rank.todo > 0)

    # ---- messages in

    def _unit(self, message: Message) -> Event:
        task = Task(message.query, message.stage, message.unit)
        oldest = max(0, message.oldest)
        return Came(message.peer, task, message.epoch, message.origin, oldest, message.at, message)

    def _layout(self, message: Message) -> Event:
        event = Placed(message.stage, unpack_layout(message))
        self.wire.release(message)
        return event

    def _asked(self, message: Message) -> Event:
        self.wire.release(message)
        return Asked(message.clock[0], message.oldest)

    def _stop(self, message: Message) -> Event:
        return Stopped()

    def _gone(self, message: Message) -> Event:
        return Gone(message.peer)

    def _bye(self, message: Message) -> None:
        """Do nothing: the wire knows that a neighbour has ended."""

    # ---- actions out

    def _run(self, action: RunUnit) -> None:
        self._engine.submit(action, lambda: self._compute(action))

    def _piece(self, action: SendPiece) -> None:
        tensor, origin = action.output.tensor, action.origin
        self.wire.post(
            action.rank,
            Kind.UNIT,
            _region(tensor, action.box, self._writes(origin)),
            dtype=TRAVEL[self.setup.wire],
            query=action.task.query,
            stage=action.task.stage,
            unit=action.task.unit,
            epoch=action.epoch,
            origin_stage=origin.stage,
            origin_unit=origin.unit,
            oldest=self.rank.oldest,
        )

    def _reply(self, action: Reply) -> None:
        """Send an output, or word that the unit was skipped."""
        output, (query, stage, unit) = action.output, action.task
        if output.silent:
            return
        kind = Kind.SKIPPED if output.tensor is None else Kind.ANSWER
        self.wire.post(
            LEADER,
            kind,
            output.tensor,
            dtype=TRAVEL[self.setup.answers],
            clock=action.clock,
            query=query,
            stage=stage,
            unit=unit,
        )

    def _times(self, action: SendTimes) -> None:
        clocks, (query, stage, unit) = torch.tensor(action.clocks, dtype=torch.float64), action.task
        self.wire.post(LEADER, Kind.TIMES, clocks, query=query, stage=stage, unit=unit)

    def _alive(self, action: SendAlive) -> None:
        now = time.perf_counter()
        self.wire.post(LEADER, Kind.PONG, size=action.todo, clock=(action.asked, now, now))

    def _release(self, action: Release) -> None:
        self.wire.release(action.handle)

    # ---- the engine's thread

    def _compute(self, action: RunUnit) -> tuple[_Output, float, float]:
        """Run one unit, as its faults allow; return its output, and from when until when."""
        task, epoch = action.task, action.epoch
        effect = self._faults.before(task.query)
        started, output = time.perf_counter(), None
        if self.rank.wanted(task, epoch):
            output = self._program(task.stage, task.unit, self._input(action))
            if epoch and any(_shared(output, piece.handle) for piece in action.pieces):
                output = output.clone()  # pieces of it outlive the message that it lies over
        took, answers = time.perf_counter() - started, self.rank.answers(task, epoch)
        self._faults.after(effect, took, task.query, answers)
        return _Output(output, effect.silent), started, time.perf_counter()

    def _program(self, stage: int, unit: int, x: Tensor) -> Tensor:
        """Run a unit's program on its input (B, C, h, w)."""
        if x.dtype == torch.uint8 and self.setup.pixels is not None:
            x = self.setup.pixels(x)
        elif x.dtype == torch.float16:
            x = x.float()
        return self.setup.programs[stage][unit](x)

    def _input(self, action: RunUnit) -> Tensor:
        """Put a unit's input together from its pieces."""
        pieces = action.pieces
        if len(pieces) == 1 and pieces[0].local is None:
            whole: Tensor = pieces[0].handle.tensor()
            return whole
        reads = self.rank.route(action.task, action.epoch).reads
        parts = [(piece.box, self._part(piece)) for piece in pieces]
        b, c = parts[0][1].shape[:2]
        x = torch.empty(b, c, reads.rows.size, reads.cols.size)
        for box, part in parts:
            assert box is not None
            _region(x, box, reads).copy_(part)
        return x

    def _part(self, piece: Piece) -> Tensor:
        if piece.local is None:
            part: Tensor = piece.handle.tensor()
            return part
        assert piece.box is not None
        return _region(piece.handle.tensor, piece.box, self._writes(piece.local))

    # ---- layouts

    def _routes(self, last: int, layout: Layout) -> Routes:
        """Return the routes of this rank's units in a layout, and know the neighbours."""
        plan, me = self.setup.plan, self.wire.comm.Get_rank()
        assert plan is not None
        own = layout.routes(plan, last).get(me, {})
        ends = [end.rank for r in own.values() for end in (*r.pieces, *r.sends)]
        self.wire.expect(self.setup.halo, set(ends) - {me, LEADER})
        return own

    def _writes(self, node: Node) -> Box:
        assert self.setup.plan is not None
        return self.setup.plan.stages[node.stage].shards[node.unit].writes

    # ---- faults

    def _tell(self, action: Action, start: float, stop: float, query: int) -> None:
        self._notices.put(_Notice(action, start, stop, query))

    def _last_words(self) -> None:
        self._flushed.clear()  # what was told before this is still to be sent
        self._flushed.wait(FLUSH_LIMIT)


def _region(x: Tensor, box: Box, whole: Box) -> Tensor:
    """Return the ``box`` of a map of which ``x`` holds the region ``whole``, as a view."""
    (top, bottom), (left, right) = box
    y, z = whole.rows.start, whole.cols.start
    return x[:, :, top - y : bottom - y, left - z : right - z]


def _shared(output: Tensor, handle: Any) -> bool:
    """Return True if an output lies over a message's buffer."""
    if not isinstance(handle, Message):
        return False
    base = torch.from_numpy(handle.payload).untyped_storage()
    return output.untyped_storage().data_ptr() in (base.data_ptr(),)


READERS: dict[Kind, Callable[[_Worker, Message], Event | None]] = {
    Kind.UNIT: _Worker._unit,
    Kind.LAYOUT: _Worker._layout,
    Kind.PING: _Worker._asked,
    Kind.STOP: _Worker._stop,
    Kind.GONE: _Worker._gone,
    Kind.BYE: _Worker._bye,
}
WRITERS: dict[type, Callable[[_Worker, Any], None]] = {
    RunUnit: _Worker._run,
    SendPiece: _Worker._piece,
    Reply: _Worker._reply,
    SendTimes: _Worker._times,
    SendAlive: _Worker._alive,
    Release: _Worker._release,
}


def send_error(wire: Wire, text: str) -> None:
    """Send an exception home; the leader ends the job."""
    wire.post(LEADER, Kind.ERROR, text.encode()[-SMALL:])


def send_bye(wire: Wire, backoff: Backoff) -> None:
    """Send the last message and see everything off, within a limit."""
    wire.post(LEADER, Kind.BYE)
    end = time.perf_counter() + END_LIMIT
    backoff.reset()
    while not (wire.drained() and wire.parted(LEADER)) and time.perf_counter() < end:
        wire.poll()
        backoff.sleep()
