"""Begin and end of a job at the leader: workers connect, get their setup, stop and leave."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping

import torch
from mpi4py import MPI

from mpicoded.cluster import Cluster
from mpicoded.errors import RemoteError
from mpicoded.runtime.backoff import Backoff, Stopwatch
from mpicoded.runtime.chain_broadcast import ChainBroadcast
from mpicoded.runtime.environment import check_parent, has_ulfm, machine, on_one_host, parent_died
from mpicoded.runtime.exit import Stuck, end_stopped
from mpicoded.runtime.setup import Own, Setup, pack
from mpicoded.runtime.wire import Kind, Message, Wire

ALONE = "there is one rank only: the model runs unsplit on this device"
NO_ULFM = "without mpirun --with-ft ulfm the death of a rank ends the job; --resume goes on"
END_LIMIT = 5.0  # s
BEATS = 10  # signs of life in the time after which workers take the leader for stopped …
RAREST = 5.0  # s; … but not rarer than that


class WorkerPool:
    """The leader's connection to all other ranks of ``comm``.

    Workers start while the leader still reads its job; :meth:`connect` waits for them, ``limit``
    seconds at most. :meth:`shutdown` ends their work and :meth:`release` lets them leave, at
    whatever point. Until then they get signs of life from a thread of its own, whatever the leader
    is doing.
    """

    def __init__(self, comm: MPI.Comm, limit: float) -> None:
        self.comm = comm
        self.wire = Wire(comm, range(1, comm.Get_size()))
        self.hosts = {0: MPI.Get_processor_name()}
        self.machines = {0: machine()}
        self.pids = {0: os.getpid()}
        self._broadcast: ChainBroadcast | None = None  # of the setup, on its way to the workers
        self.stuck: Stuck = []  # ranks that can be ended only together with the whole job
        self._told: dict[Kind, set[int]] = {Kind.STOP: set(), Kind.END: set()}
        self._until = time.perf_counter() + limit
        self._over, self._pause = threading.Event(), min(limit / BEATS, RAREST)
        self._beats = threading.Thread(target=self._beat, name="beat", daemon=True)
        if self.wire.peers:
            self._beats.start()

    def _beat(self) -> None:
        while not self._over.wait(self._pause):
            self.wire.beat()

    @property
    def ranks(self) -> int:
        """Number of ranks, the leader's included."""
        return self.comm.Get_size()

    def connect(self, limit: float) -> Cluster:
        """Wait for the host of every worker; print what to expect of the job."""
        if self.ranks == 1:
            print(f"r0 | {ALONE}", file=sys.stderr)
        elif not has_ulfm():
            print(f"r0 | {NO_ULFM}", file=sys.stderr)
        self.recv_each(Kind.HELLO, limit, self._recv_hello)
        return Cluster(tuple(self.hosts[p] for p in range(self.ranks)))

    def _recv_hello(self, message: Message) -> None:
        self.hosts[message.peer], self.machines[message.peer] = message.text().split("\n")
        self.pids[message.peer] = message.size

    def send_setup(self, setup: Setup, own: Mapping[int, Own]) -> None:
        """Send the setup along a chain of all workers, each told its neighbours."""
        array, ranks = pack(setup, own), sorted(own)
        for source, rank, target in zip([0, *ranks], ranks, [*ranks[1:], 0], strict=False):
            head = torch.tensor([array.size, setup.capacity, source, target])
            self.wire.post(rank, Kind.SETUP, head)
        self._broadcast = ChainBroadcast(self.comm, array, None, ranks[0])

    def _pass_on(self) -> bool:
        """Send on what can be of the setup; let it go when all has left."""
        moved = self._broadcast is not None and self._broadcast.move()
        if self._broadcast is not None and self._broadcast.done and not self._broadcast.broken:
            self._broadcast = None
        return moved

    def recv_each(self, kind: Kind, limit: float, take: Callable[[Message], None]) -> None:
        """Receive one message of ``kind`` from every worker, within ``limit`` seconds.

        Raises
        ------
        RemoteError
            If a worker died, raised an exception or was not there in time.
        """
        waiting, backoff, waited = set(self.wire.peers), Backoff(), Stopwatch()
        while waiting:
            check_parent()
            if self._pass_on():
                backoff.reset()
            for message in self.wire.poll():
                self._check_start(message)
                take(message)
                waiting.discard(message.peer)
                self.wire.release(message)
            if waited.seconds() > limit:
                where = f" on {self.hosts[0]}" if on_one_host() else ""
                raise RemoteError(
                    f"ranks {sorted(waiting)} of {self.ranks}{where} did not say {kind.name} "
                    f"within {limit:g} s: look at their hosts, or raise start_limit in [runtime]"
                )
            backoff.sleep()

    def _check_start(self, message: Message) -> None:
        unknown = self.hosts[0] if on_one_host() else "an unknown host"
        rank = f"rank {message.peer} on {self.hosts.get(message.peer, unknown)}"
        if message.kind is Kind.ERROR:
            raise RemoteError(f"{rank}:\n{message.text()}")
        if message.kind is Kind.GONE:
            raise RemoteError(f"{rank} died before the start: {message.text()}")

    def shutdown(self, limit: float = END_LIMIT) -> list[int]:
        """Stop all workers, once; return the ranks that did not stop in ``limit`` seconds.

        Who has not come yet may still be loading torch, and has the time for the start.
        """
        return self._send_away(Kind.STOP, Kind.IDLE, limit)

    def release(self, status: int = 0) -> None:
        """Let all workers leave, once: all is written, and this rank is last, with ``status``."""
        self.shutdown()
        self._send_away(Kind.END, Kind.BYE, END_LIMIT, status)
        self._over.set()
        if self.wire.peers:
            self._beats.join()

    def _send_away(self, word: Kind, answer: Kind, limit: float, status: int = 0) -> list[int]:
        living = {p for p, peer in self.wire.peers.items() if not (peer.gone or peer.ended)}
        waiting = living - self._told[word]
        self._told[word] |= waiting
        for rank in waiting:
            self.wire.post(rank, word, size=status)
        backoff, waited, late = Backoff(), Stopwatch(), self._until - time.perf_counter()
        while waiting and not parent_died():
            self._pass_on()
            for message in self.wire.poll():
                if message.kind is Kind.HELLO:
                    self._recv_hello(message)
                if message.kind in (answer, Kind.GONE):
                    waiting.discard(message.peer)
                self.wire.release(message)
            if waited.seconds() > (limit if waiting <= self.pids.keys() else max(limit, late)):
                break
            backoff.sleep()
        return self._end_silent([] if parent_died() else sorted(waiting))  # without it all exit

    def _end_silent(self, silent: list[int]) -> list[int]:
        for rank in silent:
            self.wire.give_up(rank)
        self.stuck += end_stopped(
            [(p, self.machines.get(p, ""), self.pids.get(p, 0)) for p in silent]
        )
        return silent
