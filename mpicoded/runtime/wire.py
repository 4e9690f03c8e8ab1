"""Messages between the leader and its workers: the only place with point-to-point MPI.

A message is one buffer (see :mod:`mpicoded.runtime.message`). Both sides keep one receive posted
to every peer, which also is how the death of a peer shows (Open MPI's ULFM raises on it). Nothing
is ever cancelled: a late message lands in the posted receive like any other.

One thread calls all methods; only :meth:`Wire.release` and :meth:`Wire.beat` may be called from
others too.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
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


@dataclass
class _Send:
    """A message on its way; one ``in_turn`` keeps others waiting until ``until``."""

    request: MPI.Request
    buffer: Buffer
    since: float
    until: float
    in_turn: bool


@dataclass
class _Peer:
    rank: int
    buffer: Buffer | None = None
    request: MPI.Request | None = None
    sends: list[_Send] = field(default_factory=list)
    gone: bool = False
    ended: bool = False  # its last message has come: MPI_Finalize must find no open receive

    def lets_lie(self, now: float) -> bool:
        """Whether it has not taken a message in turn in time."""
        return any(send.in_turn and now >= send.until for send in self.sends)


class Wire:
    """Messages to and from ``peers``; ``capacity`` is the largest payload that may arrive.

    Messages in turn share this rank's link one after the other, ``ABREAST`` at a time: all at once
    they would all come late, and the last ones (parity) would hold up the first (data). A peer
    that does not take its message in about the usual time keeps nobody waiting. What is SHORT is
    gone before word of its arrival could come back, and waits for no turn.
    """

    ABREAST = 2  # so that the link is not idle while word of a message's arrival comes back
    SHORT = 16384  # bytes
    PATIENCE = 3.0  # times the usual seconds a byte
    LEAST = 0.02  # s

    def __init__(self, comm: MPI.Comm, peers: Iterable[int]) -> None:
        self.comm = comm
        self.capacity = SMALL
        self.pool = Pool()
        self.peers = {rank: _Peer(rank) for rank in peers}
        self.quiet = Stopwatch()  # since anything was heard, of any peer
        self.limit = inf  # s of quiet that a worker bears
        self._lock = threading.RLock()
        self._status = MPI.Status()
        self.kept: object = None  # what open requests still point to
        self._line: deque[tuple[_Peer, Buffer, bool]] = deque()
        self._took = self._sent = 0.0  # seconds and bytes of the last messages in turn

    @property
    def _pace(self) -> float:
        """Usual seconds a byte of a message in turn."""
        return self._took / self._sent if self._sent else 0.0

    def post(
        self,
        peer: int,
        kind: Kind,
        payload: Tensor | bytes | None = None,
        *,
        dtype: torch.dtype | None = None,
        clock: tuple[float, float, float] = (0.0, 0.0, 0.0),
        in_turn: bool = False,
        alone: bool = False,
        **fields: int,
    ) -> int:
        """Send a message; a tensor travels as ``dtype``. Return its bytes, 0 if it is gone.

        Messages to one peer keep their order; but STOP goes at once, and what waits is dropped. One
        that is to go ``alone`` (parity) takes nothing of the link from those before it (data).
        """
        with self._lock:
            buffer = pack(self.pool, kind, payload, dtype, clock, fields)
            to = self.peers[peer]
            if to.gone:
                return 0
            if kind in (Kind.STOP, Kind.END):
                self._line = deque(each for each in self._line if each[0] is not to)
            waits = any(each[0] is to for each in self._line)
            if (in_turn and buffer.size > self.SHORT) or waits:
                self._line.append((to, buffer, alone))
                self._advance()
            else:
                self._send(to, buffer)
            return int(buffer.size)

    def _advance(self) -> None:
        """Send what is waiting, as far as the link is free."""
        now = time.perf_counter()
        while self._line and self._abreast(now) < (1 if self._line[0][2] else self.ABREAST):
            peer, buffer, _ = self._line.popleft()
            self._send(peer, buffer, in_turn=True)

    def _abreast(self, now: float) -> int:
        """Count the messages that hold the link; who let one lie keeps nobody waiting any more."""
        return sum(self._holds(peer, now) for peer in self.peers.values() if not peer.gone)

    @staticmethod
    def _holds(peer: _Peer, now: float) -> int:
        return 0 if peer.lets_lie(now) else sum(send.in_turn for send in peer.sends)

    def queued(self, now: float) -> set[int]:
        """Return the ranks for which something waits that they do not hold up themselves."""
        with self._lock:
            return {peer.rank for peer, *_ in self._line if not peer.lets_lie(now)}

    def _send(self, peer: _Peer, buffer: Buffer, in_turn: bool = False) -> None:
        """Start a message; one in turn is done when the peer has begun to take it."""
        if peer.gone:
            return
        start = self.comm.Issend if in_turn else self.comm.Isend
        try:
            request = start([buffer, MPI.BYTE], dest=peer.rank, tag=TAG)
        except MPI.Exception:
            return  # the posted receive will tell
        now = time.perf_counter()
        until = now + max(self.LEAST, self.PATIENCE * self._pace * buffer.size)
        peer.sends.append(_Send(request, buffer, now, until, in_turn))

    def poll(self) -> list[Message]:
        """Return the messages that have come; a peer that died gives one of kind GONE."""
        messages = []
        with self._lock:
            for peer in self.peers.values():
                if not peer.gone:
                    self._reap(peer)
                    message = None if peer.ended else self._receive(peer)
                    if message is not None:
                        messages.append(message)
            self._advance()
        return messages

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
                peer.buffer = self.pool.take(HEADER + self.capacity)
                peer.request = self.comm.Irecv([peer.buffer, MPI.BYTE], source=peer.rank, tag=TAG)
            if not peer.request.Test(self._status):
                return None
        except MPI.Exception as error:
            peer.gone = True
            said = f"{error.Get_error_string()}".encode()
            return Message(Kind.GONE, peer.rank, at=time.perf_counter(), payload=as_bytes(said))
        buffer, peer.buffer, peer.request = peer.buffer, None, None
        assert buffer is not None
        message = unpack(buffer, self._status.Get_count(MPI.BYTE), peer.rank)
        peer.ended = message.kind in (Kind.END, Kind.BYE)
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
                self._learn_pace(send)
                self.pool.give(send.buffer)
            else:
                pending.append(send)
        peer.sends = pending

    def _learn_pace(self, send: _Send) -> None:
        if not send.in_turn:
            return
        took, size = time.perf_counter() - send.since, send.buffer.size
        if self._sent:  # a frozen peer tells little
            took = min(took, self.LEAST + 4 * self._pace * size)
        self._took, self._sent = 0.9 * self._took + took, 0.9 * self._sent + size

    def release(self, message: Message) -> None:
        """Give the message's buffer back; its tensor must not be read any more."""
        base = message.payload.base
        if isinstance(base, np.ndarray):
            self.pool.give(base)

    def drained(self) -> bool:
        """Whether everything that was posted to living peers has left."""
        with self._lock:
            waiting = any(not peer.gone for peer, *_ in self._line)
            return not waiting and not any(p.sends for p in self.peers.values() if not p.gone)
