"""Messages between the leader and its workers: the only place with point-to-point MPI.

A message is one buffer: a header of 16 integers, then the payload as raw bytes. Both sides keep
one receive posted to every peer, which also is how the death of a peer shows (Open MPI's ULFM
raises on it). Nothing is ever cancelled: a late message lands in the posted receive like any other.

One thread calls all methods; only :meth:`Wire.release` may be called from others too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from mpi4py import MPI
from torch import Tensor

Buffer = npt.NDArray[np.uint8]

HEADER = 128  # bytes: 16 integers of 8 bytes
SMALL = 65536  # capacity of a receive before the sizes of units are known
TAG = 77

DTYPES = (
    torch.float32, torch.float16, torch.uint8, torch.float64,
    torch.bfloat16, torch.int64, torch.int32, torch.bool,
)  # fmt: skip


class Kind(IntEnum):
    """What a message says."""

    HELLO = 1  # worker: here I am; `size`: its pid, payload: host and machine
    SETUP = 2  # leader: a pickled setup of `size` bytes follows
    BODY = 3  # leader: that setup
    READY = 4  # worker: programs are ready
    UNIT = 5  # leader: compute this unit
    ANSWER = 6  # worker: its output
    SKIPPED = 7  # worker: that unit was not needed any more
    PING = 8  # leader: are you there?
    PONG = 9  # worker: yes; `size`: units still to do
    ERROR = 10  # worker: an exception; payload: its text
    STOP = 11  # leader: no more units will come
    BYE = 12  # worker: this is my last message
    GONE = 13  # never sent: the peer is dead; payload: what MPI said
    FAULT = 14  # worker: an injected fault; `size`: the trace's action, `clock`: from when, to when


@dataclass
class Message:
    """One message; ``clock`` are three times in seconds on the sender's own clock."""

    kind: Kind
    peer: int
    query: int = -1
    stage: int = -1
    unit: int = -1
    oldest: int = 0
    size: int = 0
    clock: tuple[float, float, float] = (0.0, 0.0, 0.0)
    nbytes: int = 0
    at: float = 0.0  # when it was received, on this rank's clock
    payload: Buffer = field(default_factory=lambda: np.empty(0, np.uint8))
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.uint8

    def tensor(self) -> Tensor:
        """Return the payload as a tensor over the message's own buffer."""
        return torch.from_numpy(self.payload).view(self.dtype).view(self.shape)

    def text(self) -> str:
        """Return the payload as text."""
        return self.payload.tobytes().decode("utf-8", "replace")


@dataclass
class _Peer:
    rank: int
    buffer: Buffer | None = None
    request: MPI.Request | None = None
    sends: list[tuple[MPI.Request, Buffer]] = field(default_factory=list)
    gone: bool = False
    ended: bool = False  # its last message has come: MPI_Finalize must find no open receive


class Pool:
    """Buffers by size, used again."""

    def __init__(self) -> None:
        self._free: dict[int, list[Buffer]] = {}

    def take(self, size: int) -> Buffer:
        """Return a buffer of ``size`` bytes with any content."""
        free = self._free.get(size)
        return free.pop() if free else np.empty(size, np.uint8)

    def give(self, buffer: Buffer) -> None:
        """Return a buffer that nobody reads or writes any more."""
        self._free.setdefault(buffer.size, []).append(buffer)


class Wire:
    """Messages to and from ``peers``; ``capacity`` is the largest payload that may arrive."""

    def __init__(self, comm: MPI.Comm, peers: Iterable[int]) -> None:
        self.comm = comm
        self.capacity = SMALL
        self.pool = Pool()
        self.peers = {rank: _Peer(rank) for rank in peers}
        self._status = MPI.Status()

    def post(
        self,
        peer: int,
        kind: Kind,
        payload: Tensor | bytes | None = None,
        *,
        dtype: torch.dtype | None = None,
        clock: tuple[float, float, float] = (0.0, 0.0, 0.0),
        **fields: int,
    ) -> int:
        """Send a message; a tensor travels as ``dtype``. Return its bytes, 0 if it is gone."""
        return self._send(self.peers[peer], _pack(self.pool, kind, payload, dtype, clock, fields))

    def _send(self, peer: _Peer, buffer: Buffer) -> int:
        if peer.gone:
            return 0
        try:
            request = self.comm.Isend([buffer, MPI.BYTE], dest=peer.rank, tag=TAG)
        except MPI.Exception:
            return 0  # the posted receive will tell
        peer.sends.append((request, buffer))
        return int(buffer.size)

    def poll(self) -> list[Message]:
        """Return the messages that have come; a peer that died gives one of kind GONE."""
        messages = []
        for peer in self.peers.values():
            if not peer.gone:
                self._reap(peer)
                message = None if peer.ended else self._receive(peer)
                if message is not None:
                    messages.append(message)
        return messages

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
            return Message(Kind.GONE, peer.rank, at=time.perf_counter(), payload=_bytes(said))
        buffer, peer.buffer, peer.request = peer.buffer, None, None
        assert buffer is not None
        message = _unpack(buffer, self._status.Get_count(MPI.BYTE), peer.rank)
        peer.ended = message.kind in (Kind.STOP, Kind.BYE)
        return message

    def _reap(self, peer: _Peer) -> None:
        """Take back the buffers of what has been sent; what goes to a dead peer stays its own."""
        pending = []
        for request, buffer in peer.sends:
            try:
                done = request.Test()
            except MPI.Exception:
                continue
            if done:
                if buffer[0] != Kind.BODY:  # sent once, and large
                    self.pool.give(buffer)
            else:
                pending.append((request, buffer))
        peer.sends = pending

    def release(self, message: Message) -> None:
        """Give the message's buffer back; its tensor must not be read any more."""
        base = message.payload.base
        if isinstance(base, np.ndarray):
            self.pool.give(base)

    def drained(self) -> bool:
        """Whether everything that was posted to living peers has left."""
        return not any(peer.sends for peer in self.peers.values() if not peer.gone)


def _pack(
    pool: Pool,
    kind: Kind,
    payload: Tensor | bytes | None,
    dtype: torch.dtype | None,
    clock: tuple[float, ...],
    fields: dict[str, int],
) -> Buffer:
    """Lay a message out in one buffer."""
    if isinstance(payload, Tensor):
        dtype = dtype or payload.dtype
        shape, nbytes = tuple(payload.shape), payload.numel() * dtype.itemsize
    else:
        dtype, shape, nbytes = torch.uint8, (len(payload or b""),), len(payload or b"")
    assert len(shape) <= 5, "the header has room for five sizes"
    buffer = pool.take(HEADER + nbytes)
    header = buffer[:HEADER].view(np.int64)
    header[:] = 0
    header[0] = kind
    header[1:6] = [fields.get(name, -1) for name in ("query", "stage", "unit", "oldest", "size")]
    header[6:8] = DTYPES.index(dtype), len(shape)
    header[8 : 8 + len(shape)] = shape
    header[13:16].view(np.float64)[:] = clock
    if isinstance(payload, Tensor):
        torch.from_numpy(buffer[HEADER:]).view(dtype).view(shape).copy_(payload)
    elif payload:
        buffer[HEADER:] = _bytes(payload)
    return buffer


def _unpack(buffer: Buffer, count: int, peer: int) -> Message:
    header = buffer[:HEADER].view(np.int64)
    query, stage, unit, oldest, size = (int(v) for v in header[1:6])
    clock = header[13:16].view(np.float64)
    return Message(
        kind=Kind(int(header[0])),
        peer=peer,
        query=query,
        stage=stage,
        unit=unit,
        oldest=oldest,
        size=size,
        clock=(float(clock[0]), float(clock[1]), float(clock[2])),
        nbytes=count,
        at=time.perf_counter(),
        payload=buffer[HEADER:count],
        shape=tuple(int(v) for v in header[8 : 8 + header[7]]),
        dtype=DTYPES[int(header[6])],
    )


def _bytes(data: bytes) -> Buffer:
    return np.frombuffer(data, np.uint8)


class Backoff:
    """Sleep between two polls: a part of the time already waited, so that it costs little of it.

    A spinning rank would burn the core that another needs. ``wake`` ends a sleep at once.
    """

    WAITING, WORKING = 1 / 24, 1 / 6  # while this rank has nothing else to do, and while it has
    SHORTEST, LONGEST = 20e-6, 15e-3

    def __init__(self) -> None:
        self.event = threading.Event()
        self._since = time.perf_counter()

    def reset(self) -> None:
        """Something happened: poll quickly again."""
        self._since = time.perf_counter()

    def sleep(self, working: bool = False) -> None:
        """Sleep a little, longer the longer nothing has happened."""
        waited = time.perf_counter() - self._since
        share = self.WORKING if working else self.WAITING
        self.event.wait(min(max(waited * share, self.SHORTEST), self.LONGEST))
        self.event.clear()

    def wake(self) -> None:
        """End the sleep of the polling thread: there is work for it."""
        self._since = time.perf_counter()
        self.event.set()
