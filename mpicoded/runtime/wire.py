"""Messages between ranks: the only place with point-to-point MPI.

A message is one buffer (see :mod:`mpicoded.runtime.message`). A receive is always posted to every
peer, which also is how the death of a peer shows (Open MPI's ULFM raises on it). Nothing is ever
cancelled: a late message lands in the posted receive like any other.

One thread calls all methods; only :meth:`Wire.release` and :meth:`Wire.beat` may be called from
others too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor

from mpicoded.runtime.backoff import Backoff, Stopwatch
from mpicoded.runtime.message import HEADER, Buffer, Kind, Message, Pool, as_bytes, pack, unpack

__all__ = ["SMALL", "Backoff", "Kind", "Message", "Wire"]

SMALL = 65536  # capacity of a receive before the sizes of units are known
TAG = 77
# Peers of which nothing is awaited are looked at in so many polls: one for each FEW, PARTS at most.
FEW, PARTS = 5, 8
# what is an answer, and what asks for one
ANSWERS = {
    Kind.ANSWER, Kind.SKIPPED, Kind.PONG, Kind.HELLO, Kind.READY, Kind.IDLE, Kind.BYE,
}  # fmt: skip
ASKS = {Kind.UNIT, Kind.PING, Kind.SETUP, Kind.STOP, Kind.END}


@dataclass
class _Send:
    """A message on its way; it is told when a ``paced`` one is taken."""

    request: MPI.Request
    buffer: Buffer
    paced: bool


@dataclass
class _Peer:
    rank: int
    capacity: int
    awaited: int = 1  # answers; the first one is that it is there
    buffer: Buffer | None = None
    request: MPI.Request | None = None
    sends: list[_Send] = field(default_factory=list)
    gone: bool = False
    ended: bool = False  # its last message has come: MPI_Finalize must find no open receive


class Wire:
    """Messages to and from ``peers``; ``capacity`` is the largest payload that may arrive.

    ``taken`` are the ranks that have begun to take a paced message since the last poll.
    """

    def __init__(self, comm: MPI.Comm, peers: Iterable[int]) -> None:
        self.comm = comm
        self.pool = Pool()
        self.peers = {rank: _Peer(rank, SMALL) for rank in peers}
        self.quiet = Stopwatch()  # since anything was heard, of any peer
        self.limit = inf  # s of quiet that a worker bears
        self.taken: list[int] = []
        self.kept: object = None  # what open requests still point to
        self._lock = threading.RLock()
        self._status = MPI.Status()
        self._turn = 0
        self._first = -1  # the peer that was looked at last

    def expect(self, capacity: int, peers: Iterable[int] | None = None) -> None:
        """Make room for payloads of ``capacity`` bytes from these peers, new ones or all."""
        for rank in list(self.peers) if peers is None else peers:
            peer = self.peers.setdefault(rank, _Peer(rank, capacity))
            peer.capacity = max(SMALL, capacity)

    def post(
        self,
        peer: int,
        kind: Kind,
        payload: Tensor | bytes | None = None,
        *,
        dtype: torch.dtype | None = None,
        clock: tuple[float, float, float] = (0.0, 0.0, 0.0),
        paced: bool = False,
        **fields: int,
    ) -> int:
        """Send a message; a tensor travels as ``dtype``. Return its bytes, 0 if the peer is gone.

        Messages to one peer keep their order.
        """
        with self._lock:
            to = self.peers[peer]
            if to.gone:
                return 0
            buffer = pack(self.pool, kind, payload, dtype, clock, fields)
            start = self.comm.Issend if paced else self.comm.Isend
            try:
                request = start([buffer, MPI.BYTE], dest=peer, tag=TAG)
            except MPI.Exception:
                return 0  # the posted receive will tell
            to.sends.append(_Send(request, buffer, paced))
            to.awaited += kind in ASKS
            return int(buffer.size)

    def poll(self, urgent: Callable[[], bool] = lambda: False) -> list[Message]:
        """Return the messages that have come; a peer that died gives one of kind GONE.

        As soon as there is something ``urgent`` to do, other peers are left to the next call.
        """
        messages = []
        with self._lock:
            for peer in self._due():
                self._reap(peer)
                message = None if peer.ended else self._receive(peer)
                if message is not None:
                    messages.append(message)
                if urgent():
                    self._first = peer.rank
                    break
        return messages

    def _due(self) -> list[_Peer]:
        """Return the peers to look at now: idle ones take turns, and cost next to nothing."""
        peers = [peer for peer in self.peers.values() if not peer.gone]
        if len(peers) == 1:
            return peers
        parts = min(PARTS, 1 + len(peers) // FEW)
        self._turn = (self._turn + 1) % parts
        due = [
            peer
            for i, peer in enumerate(peers)
            if peer.awaited > 0 or peer.sends or i % parts == self._turn
        ]
        # a call of MPI for each may take a millisecond in all: those that were left come first
        first = next((i for i, peer in enumerate(due) if peer.rank > self._first), 0)
        return due[first:] + due[:first]

    def beat(self) -> None:
        """Give the peers for which nothing is on its way a sign of life."""
        with self._lock:
            for peer in self.peers.values():
                if not (peer.gone or peer.ended):
                    self._reap(peer)
                    if not peer.sends:
                        self.post(peer.rank, Kind.BEAT)

    def _receive(self, peer: _Peer) -> Message | None:
        try:
            if peer.request is None:
                peer.buffer = self.pool.take(HEADER + peer.capacity)
                peer.request = self.comm.Irecv([peer.buffer, MPI.BYTE], source=peer.rank, tag=TAG)
            if not peer.request.Test(self._status):
                return None
        except MPI.Exception as error:
            peer.gone = True
            reason = f"{error.Get_error_string()}".encode()
            return Message(Kind.GONE, peer.rank, at=time.perf_counter(), payload=as_bytes(reason))
        buffer, peer.buffer, peer.request = peer.buffer, None, None
        assert buffer is not None
        message = unpack(buffer, self._status.Get_count(MPI.BYTE), peer.rank)
        peer.ended = message.kind in (Kind.END, Kind.BYE)
        peer.awaited = max(0, peer.awaited - (message.kind in ANSWERS))
        self.quiet.restart()
        if message.kind is Kind.BEAT:
            self.release(message)
            return None
        return message

    def _reap(self, peer: _Peer) -> None:
        """Take back the buffers of what has been sent; what goes to a dead peer stays its own."""
        pending = []
        for send in peer.sends:
            try:
                done = send.request.Test()
            except MPI.Exception:
                continue
            if done:
                self.pool.give(send.buffer)
                if send.paced:
                    self.taken.append(peer.rank)
            else:
                pending.append(send)
        peer.sends = pending

    def release(self, message: Message) -> None:
        """Give the message's buffer back; its tensor must not be read any more."""
        base = message.payload.base
        if isinstance(base, np.ndarray):
            self.pool.give(base)

    def parted(self, apart: int) -> bool:
        """Return True if all peers but ``apart`` have sent their last message, or are dead."""
        return all(p.ended or p.gone for p in self.peers.values() if p.rank != apart)

    def drained(self) -> bool:
        """Return True if everything that was posted to living peers has left."""
        with self._lock:
            return not any(p.sends for p in self.peers.values() if not p.gone)
