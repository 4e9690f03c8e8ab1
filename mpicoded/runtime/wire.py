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
from collections.abc import Iterable, Sequence
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
    """A message on its way; it is told when a ``paced`` one is taken."""

    request: MPI.Request
    buffer: Buffer
    paced: bool


@dataclass
class _Peer:
    rank: int
    capacity: int
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
            self._reap(to)
            buffer = pack(self.pool, kind, payload, dtype, clock, fields)
            start = self.comm.Issend if paced else self.comm.Isend
            try:
                request = start([buffer, MPI.BYTE], dest=peer, tag=TAG)
            except MPI.Exception:
                return 0  # the posted receive will tell
            to.sends.append(_Send(request, buffer, paced))
            return int(buffer.size)

    def poll(self) -> list[Message]:
        """Return the messages that have come; a peer that died gives one of kind GONE."""
        with self._lock:
            for peer in self.peers.values():
                if any(send.paced for send in peer.sends):
                    self._reap(peer)
            peers = [peer for peer in self.peers.values() if not (peer.gone or peer.ended)]
            messages = [self._read(peer, came) for peer, came in self._test(peers)]
        return [message for message in messages if message is not None]

    def _test(self, peers: Sequence[_Peer]) -> list[tuple[_Peer, int | str]]:
        """Return the peers whose receive is over, with the bytes that came or how it failed.

        One call tests all receives, as each lets other processes have the core: a call a peer would
        take most of the time of a rank that shares its core.
        """
        failed = ((peer, self._receive(peer)) for peer in peers)
        over: list[tuple[_Peer, int | str]] = [(p, error) for p, error in failed if error]
        pairs = [(peer, peer.request) for peer in peers if peer.request is not None]
        requests, statuses = [request for _, request in pairs], list[MPI.Status]()
        try:
            # a call that finds nothing lets messages move, but does not look at them any more
            done = MPI.Request.Testsome(requests, statuses) or MPI.Request.Testsome(
                requests, statuses
            )
        except MPI.Exception as raised:
            return over + _sort_out([peer for peer, _ in pairs], requests, statuses, raised)
        counts = (status.Get_count(MPI.BYTE) for status in statuses)
        return over + [(pairs[i][0], count) for i, count in zip(done or (), counts, strict=False)]

    def beat(self) -> None:
        """Give the peers for which nothing is on its way a sign of life."""
        with self._lock:
            for peer in self.peers.values():
                if not (peer.gone or peer.ended):
                    self._reap(peer)
                    if not peer.sends:
                        self.post(peer.rank, Kind.BEAT)

    def _receive(self, peer: _Peer) -> str | None:
        """Post a receive to a peer, unless one is; return the error if that fails."""
        if peer.request is None:
            peer.buffer = self.pool.take(HEADER + peer.capacity)
            try:
                peer.request = self.comm.Irecv([peer.buffer, MPI.BYTE], source=peer.rank, tag=TAG)
            except MPI.Exception as error:
                return error.Get_error_string()
        return None

    def _read(self, peer: _Peer, came: int | str) -> Message | None:
        if isinstance(came, str):
            peer.gone = True
            payload = as_bytes(came.encode())
            return Message(Kind.GONE, peer.rank, at=time.perf_counter(), payload=payload)
        buffer, peer.buffer, peer.request = peer.buffer, None, None
        assert buffer is not None
        message = unpack(buffer, came, peer.rank)
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
            for peer in self.peers.values():
                self._reap(peer)
            return not any(p.sends for p in self.peers.values() if not p.gone)


def _sort_out(
    peers: Sequence[_Peer],
    requests: Sequence[MPI.Request],
    statuses: Sequence[MPI.Status],
    error: MPI.Exception,
) -> list[tuple[_Peer, int | str]]:
    """Tell what came from what failed in a test of several receives that raised ``error``."""
    fine = [status for status in statuses if status.Get_error() == MPI.SUCCESS]
    came = {status.Get_source(): status.Get_count(MPI.BYTE) for status in fine}
    over = [peer for peer, r in zip(peers, requests, strict=True) if r == MPI.REQUEST_NULL]
    if not over:
        raise error
    return [(peer, came.get(peer.rank, error.Get_error_string())) for peer in over]
