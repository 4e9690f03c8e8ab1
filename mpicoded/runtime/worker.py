"""A worker: receive a unit, run its program, send the output. Mirrors :mod:`leader`.

One thread owns MPI (`_Progress`), so that messages move while the main thread computes.

    leader                      worker
    recv_hello            <-    send_hello
    send_setup            ->    recv_setup
    recv_ready            <-    send_ready
    send_unit             ->    recv_unit
    recv_answer           <-    send_answer
    send_ping, recv_pong  <->   answer_ping
    recv_fault            <-    send_fault
    send_stop             ->    recv_stop
    recv_idle             <-    send_idle
    send_end              ->    recv_end        when all is written
    recv_bye              <-    send_bye
"""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from dataclasses import dataclass

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from mpicoded.runtime.environment import has_ulfm, machine, parent_died
from mpicoded.runtime.exit import end_job
from mpicoded.runtime.message import TRAVEL
from mpicoded.runtime.relay import Relay
from mpicoded.runtime.setup import Setup, load
from mpicoded.runtime.threads import use_threads
from mpicoded.runtime.victim import Victim
from mpicoded.runtime.wire import SMALL, Backoff, Kind, Message, Wire
from mpicoded.trace import Action

LEADER = 0
LEADER_FIRST = 3.0  # s that a worker waits longer than the leader, whose words tell more
END_LIMIT = 10.0
FLUSH_LIMIT = 0.25  # s that a rank takes for its last words before it strikes itself


class LeaderGone(Exception):
    """The leader died; nobody is left to work for."""


def serve(comm: MPI.Comm, limit: float) -> int | None:
    """Work until the leader says that all is written.

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
    """Tell the leader that this rank is there, on which host and as which process."""
    here = f"{MPI.Get_processor_name()}\n{machine()}"
    wire.post(LEADER, Kind.HELLO, here.encode(), size=os.getpid())


def recv_setup(wire: Wire, backoff: Backoff) -> Setup | None:
    """Wait for the programs; None if the leader stops before it starts."""
    head = _await(wire, backoff)
    if head.kind is Kind.STOP:
        return None
    size, capacity, source, target = head.tensor().tolist()
    wire.release(head)
    wire.capacity = max(SMALL, capacity)
    relay = Relay(wire.comm, np.empty(size, np.uint8), source, target if target else None)
    if not _pass_on(wire, backoff, relay):
        wire.kept = relay  # its receives may still be open
        return None
    return load(relay.array, wire.comm.Get_rank())


def _pass_on(wire: Wire, backoff: Backoff, relay: Relay) -> bool:
    """Take in the setup and pass it on; return whether it is here and wanted."""
    stopped = False
    backoff.reset()
    while not relay.done:
        check_leader(wire)
        if relay.move():
            backoff.reset()
        for message in wire.poll():
            if message.kind is Kind.GONE:
                raise LeaderGone
            stopped = True  # nothing but STOP comes here
        if stopped and has_ulfm():
            return False  # a rank before this one may be dead, and nothing more come
        backoff.sleep()
    if not relay.received and not stopped:
        _await(wire, backoff)  # the leader says stop
    return relay.received and not stopped


def _await(wire: Wire, backoff: Backoff) -> Message:
    """Wait for one message from the leader."""
    backoff.reset()
    while True:
        check_leader(wire)
        for message in wire.poll():
            if message.kind is Kind.GONE:
                raise LeaderGone
            return message
        backoff.sleep()


def _work(wire: Wire, backoff: Backoff, setup: Setup) -> None:
    """Compute in this thread while the other one moves messages."""
    use_threads(setup.threads)
    work = _Work(setup)
    work.warm_up()
    progress = _Progress(wire, backoff, work)
    thread = threading.Thread(target=progress.run, name="progress", daemon=True)
    thread.start()
    try:
        while not work.failure and (message := work.inbox.get()) is not None:
            compute_unit(wire, work, message)
            backoff.wake()
    except Exception:  # the other thread owns MPI: it sends the text and waits for STOP
        work.failure = work.failure or traceback.format_exc()
        backoff.wake()
    thread.join()
    if progress.leader_gone:
        raise LeaderGone


@dataclass
class _Done:
    """An output on its way, or lost on it if ``silent``.

    ``clock`` is when the unit came, started and ended.
    """

    message: Message
    output: Tensor | None
    clock: tuple[float, float, float]
    silent: bool


@dataclass
class _Notice:
    """Word of an injected fault; ``clock`` is from when until when."""

    action: Action
    clock: tuple[float, float, float]
    query: int


class _Work:
    """What the two threads share: units to do, outputs to send."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[_Done | _Notice] = queue.SimpleQueue()
        self.oldest = 0  # queries before this one are over
        self.failure = ""
        self.flushed = threading.Event()  # nothing is left to send
        self.victim = Victim(setup.own.faults, self._tell, self._last_words)

    def _tell(self, action: Action, start: float, stop: float, query: int) -> None:
        self.outbox.put(_Notice(action, (start, stop, 0.0), query))

    def _last_words(self) -> None:
        self.flushed.clear()  # what was told before this lies in the outbox
        self.flushed.wait(FLUSH_LIMIT)

    def warm_up(self) -> None:
        """Run every own unit once, so that the first query is not the slow one.

        A spare rank runs one of others', which packs the weights of all.
        """
        for stage, shapes in enumerate(self.setup.inputs):
            for unit in self.setup.own.home or (0,):
                self.run(stage, unit, torch.zeros(shapes[unit]))

    @torch.inference_mode()
    def run(self, stage: int, unit: int, x: Tensor) -> Tensor | None:
        """Run a unit's program on its input (B, C, h, w); keep an exception for the leader."""
        try:
            if x.dtype == torch.uint8 and self.setup.pixels is not None:
                x = self.setup.pixels(x)
            elif x.dtype == torch.float16:
                x = x.float()
            return self.setup.programs[stage][unit](x)
        except Exception:
            self.failure = traceback.format_exc()
            return None


def compute_unit(wire: Wire, work: _Work, message: Message) -> None:
    """Compute one unit and put the output into the outbox, as its faults allow."""
    effect = work.victim.strike(message.query)
    started = time.perf_counter()
    output = None
    if message.query >= work.oldest:
        output = work.run(message.stage, message.unit, message.tensor())
    work.victim.suffer(effect, time.perf_counter() - started, message.query)
    clock = (message.at, started, time.perf_counter())
    work.outbox.put(_Done(message, output, clock, effect.silent))


class _Progress:
    """The thread that owns MPI: receives units, answers pings, sends outputs."""

    def __init__(self, wire: Wire, backoff: Backoff, work: _Work) -> None:
        self.wire, self.backoff, self.work = wire, backoff, work
        self.stopped = self.leader_gone = self.failed = False
        self.todo = 0  # units that came and are not answered

    def run(self) -> None:
        """Move messages until the leader says stop or is gone."""
        send_ready(self.wire)
        while not self.stopped:
            moved = self._move()
            if self.work.failure and not self.failed:
                self.failed = True
                send_error(self.wire, self.work.failure)
            try:
                check_leader(self.wire)
            except LeaderGone:
                self.stopped = self.leader_gone = True
            if moved:
                self.backoff.reset()
            else:
                self.backoff.sleep(working=self.todo > 0)
        self.work.oldest = 2**62  # whatever is still to do is not needed any more
        self.work.inbox.put(None)

    def _move(self) -> list[bool]:
        """Take in what has come and send what is done; keep an exception for the leader."""
        try:
            moved = [self._handle(message) for message in self.wire.poll()]
            moved += self._send_outbox()
            if not moved and self.work.outbox.empty() and self.wire.drained():
                self.work.flushed.set()
            return moved
        except Exception:
            self.work.failure = self.work.failure or traceback.format_exc()
            self.work.inbox.put(None)  # the computing thread ends now, this one with STOP
            return []

    def _handle(self, message: Message) -> bool:
        handlers = {
            Kind.UNIT: self.recv_unit,
            Kind.PING: self.answer_ping,
            Kind.STOP: self.recv_stop,
            Kind.GONE: self.recv_gone,
        }
        handlers[message.kind](message)
        return True

    def recv_unit(self, message: Message) -> None:
        """Queue a unit for the computing thread."""
        self.work.oldest = max(self.work.oldest, message.oldest)
        self.todo += 1
        self.work.inbox.put(message)

    def answer_ping(self, message: Message) -> None:
        """Say that this rank is there, and how much it has to do."""
        self.work.oldest = max(self.work.oldest, message.oldest)
        now = time.perf_counter()
        self.wire.post(LEADER, Kind.PONG, size=self.todo, clock=(message.clock[0], now, now))
        self.wire.release(message)

    def recv_stop(self, message: Message) -> None:
        """No more units will come."""
        self.stopped = True

    def recv_gone(self, message: Message) -> None:
        """The leader died."""
        self.stopped = self.leader_gone = True

    def _send_outbox(self) -> list[bool]:
        moved = []
        while not self.work.outbox.empty():
            done = self.work.outbox.get()
            moved.append(True)
            if isinstance(done, _Notice):
                send_fault(self.wire, done)
                continue
            if not done.silent:
                send_answer(self.wire, done, TRAVEL[self.work.setup.answers])
            self.wire.release(done.message)
            self.todo -= 1
        return moved


def send_error(wire: Wire, text: str) -> None:
    """Send an exception home; the leader ends the job."""
    wire.post(LEADER, Kind.ERROR, text.encode()[-SMALL:])


def send_ready(wire: Wire) -> None:
    """Tell the leader that units may come."""
    wire.post(LEADER, Kind.READY, clock=(time.perf_counter(),) * 3)


def send_answer(wire: Wire, done: _Done, dtype: torch.dtype) -> None:
    """Send an output, or that the unit was skipped."""
    m = done.message
    kind = Kind.SKIPPED if done.output is None else Kind.ANSWER
    wire.post(
        LEADER,
        kind,
        done.output,
        dtype=dtype,
        clock=done.clock,
        query=m.query,
        stage=m.stage,
        unit=m.unit,
    )


def send_fault(wire: Wire, notice: _Notice) -> None:
    """Tell of an injected fault."""
    size = int(notice.action)
    wire.post(LEADER, Kind.FAULT, size=size, clock=notice.clock, query=notice.query)


def send_bye(wire: Wire, backoff: Backoff) -> None:
    """Send the last message and see everything off, within a limit."""
    wire.post(LEADER, Kind.BYE)
    end = time.perf_counter() + END_LIMIT
    backoff.reset()
    while not wire.drained() and time.perf_counter() < end:
        wire.poll()
        backoff.sleep()
