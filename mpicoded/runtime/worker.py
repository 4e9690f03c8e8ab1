"""A worker from its first word to the leader to its last; see :mod:`worker_port` for its work.

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
import time
import traceback

import numpy as np
import torch
from mpi4py import MPI

from mpicoded.runtime.chain_broadcast import ChainBroadcast
from mpicoded.runtime.environment import has_ulfm, machine
from mpicoded.runtime.executor import serve as execute
from mpicoded.runtime.setup import Setup, load
from mpicoded.runtime.threads import use_threads
from mpicoded.runtime.wire import SMALL, Backoff, Kind, Message, Wire
from mpicoded.runtime.worker_port import LeaderGone, WorkerPort, check_leader
from mpicoded.scheduling.worker import LEADER

LEADER_FIRST = 3.0  # s that a worker waits longer than the leader, whose words tell more
END_LIMIT = 10.0
LONGEST = 30e-3  # s between two looks for work, after 0.7 s without any
SPARE = 0.12  # s, of a rank that is home to no unit: many spares may share a core with workers


def serve(comm: MPI.Comm, limit: float) -> int | None:
    """Run tasks until the leader has written all answers.

    Return the status that it leaves with, None if it died instead. After ``limit`` seconds without
    a sign of life of it the whole job ends.
    """
    torch.set_num_threads(1)
    wire, backoff = Wire(comm, [LEADER]), Backoff(LONGEST)
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
    if not setup.own.units:
        backoff.longest = SPARE
    worker = WorkerPort(wire, backoff, setup)
    worker.warm_up()
    wire.post(LEADER, Kind.READY, clock=(time.perf_counter(),) * 3)
    execute(worker.rank, worker)
    worker.close()
    if worker.leader_gone:
        raise LeaderGone


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
