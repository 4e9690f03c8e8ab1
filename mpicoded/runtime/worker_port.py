"""A worker's port: MPI, tensors and the clock for its WorkerRank.

The main thread runs the executor's loop and owns MPI; the engine's thread computes meanwhile.
"""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from mpi4py import MPI
from torch import Tensor

from mpicoded.cluster import Cluster
from mpicoded.geometry import Box
from mpicoded.network.in_parts import region
from mpicoded.network.kernels import channels_last
from mpicoded.network.pieces import halo_program
from mpicoded.network.program import Program
from mpicoded.plan import Plan, Shard
from mpicoded.runtime.engine import Engine
from mpicoded.runtime.environment import parent_died
from mpicoded.runtime.exit import end_job
from mpicoded.runtime.inject import FaultInjector
from mpicoded.runtime.message import TRAVEL, unpack_layout
from mpicoded.runtime.setup import Run, Setup
from mpicoded.runtime.wire import Backoff, Kind, Message, Wire
from mpicoded.scheduling.by_stage import ByStage
from mpicoded.scheduling.events import (
    Asked,
    Came,
    Do,
    Event,
    Gone,
    Halo,
    Piece,
    Placed,
    Ran,
    RanPart,
    Release,
    Reply,
    RunUnit,
    SendAlive,
    SendPiece,
    SendTimes,
    Span,
    StandIn,
    StoodIn,
    Stopped,
)
from mpicoded.scheduling.layout import Layout
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.worker import LEADER, Routes, WorkerRank
from mpicoded.split import SPLITS
from mpicoded.steps import Node
from mpicoded.trace import Action

WHOLE = Box.of(0, 0)  # of an output that is never cut
FLUSH_LIMIT = 0.25  # s that a rank takes for its last words before it strikes itself


class LeaderGone(Exception):
    """The leader died; nobody is left to work for."""


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


class _Output(NamedTuple):
    """A task's output, in parts of the map; a ``silent`` one is never sent to the leader."""

    parts: tuple[tuple[Box, Tensor], ...]
    silent: bool = False

    def taken(self, box: Box) -> Iterator[tuple[Box, Tensor]]:
        """Yield what there is of a box, as views."""
        for whole, part in self.parts:
            if (have := whole.meet(box)) is not None:
                yield have, region(part, have, whole)


class _Notice(NamedTuple):
    """An injected fault, from when until when."""

    action: Action
    start: float
    stop: float
    query: int


class WorkerPort:
    """Events from MPI and the engine for ``rank``, and its actions back."""

    def __init__(self, wire: Wire, backoff: Backoff, setup: Setup) -> None:
        self.wire, self.backoff, self.setup = wire, backoff, setup
        self.rank = WorkerRank(self._routes)
        self.leader_gone = False
        self._plans = ByStage(setup.plan)
        self._later: dict[tuple[int, int], Run] = {}  # programs of later plans
        self._stand_ins: dict[tuple[int, tuple[Halo, ...]], Program] = {}
        self._engine = Engine(backoff.wake)
        self._spent: list[Message] = []  # read by what the engine has done
        self._notices: queue.SimpleQueue[_Notice] = queue.SimpleQueue()
        self._flushed = threading.Event()  # nothing is left to send
        self._flushed.set()
        self._faults = FaultInjector(setup.own.faults, self._tell, self._last_words)

    def now(self) -> float:
        """Return the time on this rank's clock."""
        return time.perf_counter()

    def warm_up(self) -> None:
        """Run every own unit once, so that the first query is not the slow one.

        A spare rank runs one of every stage, which packs the weights of all.
        """
        inputs = self.setup.inputs
        with torch.inference_mode():
            for stage, unit in self.setup.own.units or [(s, 0) for s in range(len(inputs))]:
                x = torch.zeros(inputs[stage][unit])
                self._run_of(stage, unit)(x)
                if parts := self.setup.parts.get((stage, unit)):
                    list(parts.run(x, self._shard(Node(stage, unit)).reads))

    def _warm_up_for(self, plan: Plan, start: int) -> None:
        """Make the programs of the own units of another plan, before they are needed."""
        rank = self.wire.comm.Get_rank()
        cluster = Cluster.local(max(plan.ranks, rank + 1))
        for stage, unit in plan.at_home(rank, cluster):
            st, shard = plan.stages[stage], plan.stages[stage].shards[unit]
            sizes = shard.reads.rows.size, shard.reads.cols.size
            batch = plan.batch // st.dealt
            self._run_of(start + stage, unit)(torch.zeros(batch, st.input_shape[0], *sizes))

    def close(self) -> None:
        """Wait for the engine, and part from the neighbours: no receive is to stay open."""
        self._engine.close()
        for peer in self.wire.peers:
            if peer != LEADER:
                self.wire.post(peer, Kind.BYE)

    # ---- the executor's port

    def poll(self) -> list[Event]:
        """Return what has happened: messages, computations."""
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
            if done.key is None:  # a plan that was prepared
                continue
            if isinstance(done.key, RanPart):
                events.append(done.key)
                continue
            if isinstance(done.key, StandIn):
                events.append(StoodIn(*done.key[:3], done.result))
                continue
            (action, (output, started, stopped)) = done.key, done.result
            pieces = (piece for piece in action.pieces if piece.local is None and not piece.kept)
            self._spent += [piece.handle for piece in pieces]
            skipped = action.epoch and not output.parts
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
        if events:
            self.leader_gone |= Gone(LEADER) in events
        return events

    def carry_out(self, action: Do) -> None:
        """Do what the rank has decided."""
        WRITERS[type(action)](self, action)

    def wait(self, busy: bool) -> None:
        """Sleep a little before the next poll."""
        if busy:  # the engine needs the core now, and the leader has seldom more to say at once
            self.backoff.reset()
        elif not self._flushed.is_set() and self._notices.empty() and self.wire.drained():
            self._flushed.set()
        if self.rank.todo > 0 and self.rank.todo == self.rank.direct:
            self.backoff.rest()  # what neighbours send is of use when the engine is done, and wakes
        else:
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

    def _plan(self, message: Message) -> None:
        """Learn another plan, of rank 0's own making, for the queries to come."""
        start, plan = message.stage, pickle.loads(message.payload.tobytes())
        self._plans.add(start, plan)
        self.wire.release(message)
        self._engine.submit(None, lambda: self._warm_up_for(plan, start))

    def _asked(self, message: Message) -> Event:
        self.wire.release(message)
        return Asked(message.clock[0], message.oldest)

    def _stop(self, message: Message) -> Event:
        return Stopped()

    def _gone(self, message: Message) -> Event:
        return Gone(message.peer)

    def _bye(self, message: Message) -> None:
        """Part from a neighbour."""

    # ---- actions out

    def _run(self, action: RunUnit) -> None:
        self._engine.submit(action, lambda: self._compute(action))

    def _stand_in(self, action: StandIn) -> None:
        self._engine.submit(action, lambda: self._compute_halos(action))

    def _piece(self, action: SendPiece) -> None:
        origin, ((_, piece),) = action.origin, action.output.taken(action.box)
        self.wire.post(
            action.rank,
            Kind.UNIT,
            piece,
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
        """Send an output, or that the unit was skipped."""
        output, (query, stage, unit) = action.output, action.task
        if output.silent:
            return
        self.wire.post(
            LEADER,
            Kind.ANSWER if output.parts else Kind.SKIPPED,
            output.parts[0][1] if output.parts else None,
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
        started, output = time.perf_counter(), _Output(())
        if self.rank.wanted(task, epoch):
            output = self._output(action)
        took = time.perf_counter() - started
        effect = effect.of_unit(self.rank.answers(task, epoch), skipped=not output.parts)
        self._faults.after(effect, took, task.query)
        return output._replace(silent=effect.silent), started, time.perf_counter()

    def _compute_halos(self, action: StandIn) -> dict[tuple[Node, Node], _Output] | None:
        """Compute halos from the segment's input that their reader has; all of them at once."""
        task, halos = action.task, action.halos
        if not self.rank.wanted(task, action.epoch):
            return None
        plan, chain = self.setup.plan, self.setup.chain
        assert plan is not None and chain is not None and self.setup.optimizer is not None
        if (program := self._stand_ins.get((task.unit, halos))) is None:
            boxes = {origin.stage: box for _, origin, box in halos}
            program = halo_program(chain, plan, task.unit, boxes)
            program = self.setup.optimizer.optimize(program)
            self._stand_ins[task.unit, halos] = program
        values = program.run({program.entry: self._numbers(action.source.tensor())})
        return {
            (reader, origin): _Output(((box, values[plan.stages[origin.stage].exit]),))
            for reader, origin, box in halos
        }

    def _numbers(self, x: Tensor) -> Tensor:
        """Return the network's numbers of what came."""
        if x.dtype == torch.uint8 and self.setup.pixels is not None:
            x = self.setup.pixels(x)
        elif x.dtype == torch.float16:
            x = x.float()
        return x

    def _output(self, action: RunUnit) -> _Output:
        """Run a unit's program, or its parts one after the other."""
        (_, stage, unit), epoch = action.task, action.epoch
        x = self._numbers(self._input(action))  # (B, C, h, w)
        if not epoch:
            return _Output(((WHOLE, self._run_of(stage, unit)(x)),))
        shard, found = self._shard(Node(stage, unit)), _Output(())
        parts = self.setup.parts.get((stage, unit))
        whole = ((shard.writes, run(x)) for run in (self._run_of(stage, unit),))
        for box, y in whole if parts is None else parts.run(x, shard.reads):
            if any(_shared(y, piece.handle) for piece in action.pieces):
                y = y.clone()  # pieces of it outlive the message that it lies over
            found = _Output((*found.parts, (box, y)))
            if parts is not None and len(found.parts) < len(parts.parts):
                self._engine.tell(RanPart(action.task, epoch, box, found))
        return found

    def _run_of(self, stage: int, unit: int) -> Run:
        """Return a unit's program; of a later plan it is made when it is needed first."""
        plan, number = self._plans.of(stage)
        if plan is None or plan is self.setup.plan:
            return self.setup.programs[stage][unit]
        if (stage, unit) not in self._later:
            assert self.setup.chain is not None and self.setup.optimizer is not None
            st = plan.stages[number]
            program = SPLITS[st.split].program(self.setup.chain, st, unit)
            self._later[stage, unit] = self.setup.optimizer.optimize(program)
        return self._later[stage, unit]

    def _input(self, action: RunUnit) -> Tensor:
        """Put a unit's input together from its pieces."""
        pieces = action.pieces
        if len(pieces) == 1 and pieces[0].local is None:
            whole: Tensor = pieces[0].handle.tensor()
            return whole
        reads = self.rank.route(action.task, action.epoch).reads
        parts = [part for piece in pieces for part in _parts(piece)]
        b, c = parts[0][1].shape[:2]
        layout = torch.channels_last if channels_last() else torch.contiguous_format
        x = torch.empty(b, c, reads.rows.size, reads.cols.size, memory_format=layout)
        for box, part in parts:
            region(x, box, reads).copy_(part)
        return x

    # ---- layouts

    def _routes(self, last: int, layout: Layout) -> Routes:
        """Return the routes of this rank's units in a layout, and know the neighbours."""
        (plan, number), me = self._plan_of(last), self.wire.comm.Get_rank()
        own = layout.routes(plan, last, last - number).get(me, {})
        ends = [end.rank for r in own.values() for end in (*r.pieces, *r.sends)]
        self.wire.expect(self.setup.halo, set(ends) - {me, LEADER})
        return own

    def _shard(self, node: Node) -> Shard:
        plan, number = self._plan_of(node.stage)
        return plan.stages[number].shards[node.unit]

    def _plan_of(self, stage: int) -> tuple[Plan, int]:
        """Return the plan of a stage, and the stage's number in that plan."""
        plan, number = self._plans.of(stage)
        assert plan is not None, "the leader gave one"
        return plan, number

    # ---- faults

    def _tell(self, action: Action, start: float, stop: float, query: int) -> None:
        self._notices.put(_Notice(action, start, stop, query))

    def _last_words(self) -> None:
        self._flushed.clear()  # what was told before this is still to be sent
        self._flushed.wait(FLUSH_LIMIT)


def _parts(piece: Piece) -> Iterator[tuple[Box, Tensor]]:
    """Yield what a piece of an input is made of."""
    assert piece.box is not None
    if piece.local is None:
        yield piece.box, piece.handle.tensor()
    else:
        yield from piece.handle.taken(piece.box)


def _shared(output: Tensor, handle: Any) -> bool:
    """Return True if an output lies over a message's buffer."""
    if not isinstance(handle, Message):
        return False
    base = torch.from_numpy(handle.payload).untyped_storage()
    return output.untyped_storage().data_ptr() == base.data_ptr()


READERS: dict[Kind, Callable[[WorkerPort, Message], Event | None]] = {
    Kind.UNIT: WorkerPort._unit,
    Kind.LAYOUT: WorkerPort._layout,
    Kind.PLAN: WorkerPort._plan,
    Kind.PING: WorkerPort._asked,
    Kind.STOP: WorkerPort._stop,
    Kind.GONE: WorkerPort._gone,
    Kind.BYE: WorkerPort._bye,
}
WRITERS: dict[type, Callable[[WorkerPort, Any], None]] = {
    RunUnit: WorkerPort._run,
    StandIn: WorkerPort._stand_in,
    SendPiece: WorkerPort._piece,
    Reply: WorkerPort._reply,
    SendTimes: WorkerPort._times,
    SendAlive: WorkerPort._alive,
    Release: WorkerPort._release,
}
