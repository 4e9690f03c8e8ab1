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
    slot: int  # of its receive among the wire's requests
    buffer: Buffer | None = None
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
        self.peers: dict[int, _Peer] = {}
        self.quiet = Stopwatch()  # since anything was heard, of any peer
        self.limit = inf  # s of quiet that a worker bears
        self.taken: list[int] = []
        self.kept: object = None  # what open requests still point to
        self._lock = threading.RLock()
        # a poll must cost the same however many peers are silent: it looks at these lists alone
        self._requests: list[MPI.Request] = []  # a receive of each peer, by slot
        self._slots: list[_Peer] = []
        self._vacant: list[_Peer] = []  # a receive is to be posted
        self._paced: list[_Peer] = []  # a paced message is on its way
        for rank in peers:
            self._add(rank, SMALL)

    def _add(self, rank: int, capacity: int) -> _Peer:
        peer = self.peers[rank] = _Peer(rank, capacity, len(self._slots))
        self._slots.append(peer)
        self._requests.append(MPI.REQUEST_NULL)
        self._vacant.append(peer)
        return peer

    def expect(self, capacity: int, peers: Iterable[int] | None = None) -> None:
        """Make room for payloads of ``capacity`` bytes from these peers, new ones or all."""
        for rank in list(self.peers) if peers is None else peers:
            peer = self.peers.get(rank) or self._add(rank, capacity)
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
            if paced:
                self._paced.append(to)
            return int(buffer.size)

    def poll(self) -> list[Message]:
        """Return the messages that have come; a peer that died gives one of kind GONE."""
        with self._lock:
            for peer in self._paced:
                self._reap(peer)
            self._paced = [p for p in self._paced if any(send.paced for send in p.sends)]
            vacant, self._vacant = self._vacant, []
            failed = [(peer, error) for peer in vacant if (error := self._receive(peer))]
            messages = [self._read(peer, came) for peer, came in [*failed, *self._test()]]
        return [message for message in messages if message is not None]

    def _test(self) -> list[tuple[_Peer, int | str]]:
        """Return the peers whose receive is over, with the bytes that came or how it failed.

        One call tests all receives, as each lets other processes have the core: a call a peer would
        take most of the time of a rank that shares its core.
        """
        requests, statuses = self._requests, list[MPI.Status]()
        try:
            # a call that finds nothing lets messages move, but does not look at them any more
            done = MPI.Request.Testsome(requests, statuses) or MPI.Request.Testsome(
                requests, statuses
            )
        except MPI.Exception as raised:
            return self._sort_out(statuses, raised)
        counts = (status.Get_count(MPI.BYTE) for status in statuses)
        return [(self._slots[i], count) for i, count in zip(done or (), counts, strict=False)]

    def _sort_out(
        self, statuses: Sequence[MPI.Status], error: MPI.Exception
    ) -> list[tuple[_Peer, int | str]]:
        """Tell what came from what failed in a test of the receives that raised ``error``."""
        fine = [status for status in statuses if status.Get_error() == MPI.SUCCESS]
        came = {status.Get_source(): status.Get_count(MPI.BYTE) for status in fine}
        posted = [p for p in self._slots if p.buffer is not None and not p.gone]
        over = [peer for peer in posted if self._requests[peer.slot] == MPI.REQUEST_NULL]
        if not over:
            raise error
        return [(peer, came.get(peer.rank, error.Get_error_string())) for peer in over]

    def beat(self) -> None:
        """Give the peers for which nothing is on its way a sign of life."""
        with self._lock:
            for peer in self.peers.values():
                if not (peer.gone or peer.ended):
                    self._reap(peer)
                    if not peer.sends:
                        self.post(peer.rank, Kind.BEAT)

    def _receive(self, peer: _Peer) -> str | None:
        """Post a receive to a peer; return the error if that fails."""
        peer.buffer = self.pool.take(HEADER + peer.capacity)
        try:
            self._requests[peer.slot] = self.comm.Irecv(
                [peer.buffer, MPI.BYTE], source=peer.rank, tag=TAG
            )
        except MPI.Exception as error:
            peer.gone = True
            return error.Get_error_string()
        return None

    def _read(self, peer: _Peer, came: int | str) -> Message | None:
        if isinstance(came, str):
            peer.gone = True
            payload = as_bytes(came.encode())
            return Message(Kind.GONE, peer.rank, at=time.perf_counter(), payload=payload)
        buffer, peer.buffer = peer.buffer, None
        assert buffer is not None
        message = unpack(buffer, came, peer.rank)
        peer.ended = message.kind in (Kind.END, Kind.BYE)
        if not peer.ended:
            self._vacant.append(peer)
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

    def give_up(self, rank: int) -> None:
        """Take a peer that does not answer for dead; its open receive stays as it is."""
        peer = self.peers[rank]
        peer.gone, self._requests[peer.slot] = True, MPI.REQUEST_NULL

    def parted(self, apart: int) -> bool:
        """Return True if all peers but ``apart`` have sent their last message, or are dead."""
        return all(p.ended or p.gone for p in self.peers.values() if p.rank != apart)

    def drained(self) -> bool:
        """Return True if everything that was posted to living peers has left."""
        with self._lock:
            for peer in self.peers.values():
                self._reap(peer)
            return not any(p.sends for p in self.peers.values() if not p.gone)
