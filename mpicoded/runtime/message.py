"""One message: a header of 21 numbers of 8 bytes, then the payload as raw bytes.

Tensors travel in their own type, as float16, or in 8 bits: as quint8, the values of a message lie
on a line from its least to its greatest, and zero stays zero. The least and the step are in the
header.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain, islice
from math import isfinite
from struct import Struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.formats import FORMATS
from mpicoded.scheduling.layout import Homes, Layout
from mpicoded.steps import Node

Buffer = npt.NDArray[np.uint8]

# kind, query, stage, unit, oldest, size, type, dimensions, five sizes; clock; quantizer; epoch,
# origin
FIELDS = Struct("=13q 3d dq 3q")
HEADER = FIELDS.size  # bytes
EIGHT_BITS = torch.quint8
# What computed maps travel as, by the name in a job's [runtime]; 8-bit images are bytes anyway.
TRAVEL: dict[str, torch.dtype] = {n: getattr(torch, each.dtype) for n, each in FORMATS.items()}
TINY = 1e-30  # a smaller range travels as zeros: float32 has no room for its inverse

DTYPES = (
    torch.float32, torch.float16, torch.uint8, torch.float64,
    torch.bfloat16, torch.int64, torch.int32, torch.bool, EIGHT_BITS,
)  # fmt: skip


class Kind(IntEnum):
    """Kinds of messages."""

    HELLO = 1  # worker: here I am; `size`: its pid, payload: host and machine
    SETUP = 2  # leader: so large is the setup, so large are inputs, and these are your neighbours
    READY = 4  # worker: programs are ready
    UNIT = 5  # leader: compute this unit; a neighbour: a piece of its input
    ANSWER = 6  # worker: its output
    SKIPPED = 7  # worker: that unit was not needed any more
    PING = 8  # leader: are you there?
    PONG = 9  # worker: yes; `size`: units still to do
    ERROR = 10  # worker: an exception; payload: its text
    STOP = 11  # leader: no more units will come
    IDLE = 15  # worker: nothing is left to do
    END = 16  # leader: all is written, this is the last message; `size`: the status it leaves with
    BYE = 12  # worker: this is my last message
    BEAT = 17  # leader: still there; never seen outside of Wire
    PLAN = 20  # leader: another plan; `stage`: the number of its first one
    LAYOUT = 18  # leader: ranks of a direct segment; `epoch`, `stage`: its last one
    TIMES = 19  # worker: what its stages of a direct segment took; `stage`, `unit`: the last task
    GONE = 13  # never sent: the peer is dead; payload: what MPI said
    FAULT = 14  # worker: an injected fault; `size`: the trace's action, `clock`: from when, to when


class Quantizer(NamedTuple):
    """8-bit values q stand for (q - zero) * step."""

    step: float
    zero: int

    @classmethod
    def through(cls, x: Tensor) -> Quantizer | None:
        """Return the line that holds 0 and all of ``x``; None if they are not all finite."""
        if not x.numel():
            return cls(1.0, 0)
        low, high = (float(v) for v in torch.aminmax(x.detach()))
        low, high = min(low, 0.0), max(high, 0.0)
        if not isfinite(high - low):
            return None
        step = (high - low) / 254 if high - low > TINY else 1.0  # 254: both ends may be rounded out
        return cls(step, round(-low / step))

    def write(self, x: Tensor, out: Tensor) -> None:
        """Write the nearest 8-bit value of every number of ``x`` into ``out``."""
        out.copy_(x.mul(1 / self.step).add_(self.zero + 0.5))  # what follows the point is cut off

    def numbers(self, q: Tensor) -> Tensor:
        """Return the numbers that 8-bit values stand for, as float32."""
        return torch.sub(q, float(self.zero)).mul_(self.step)


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
    epoch: int = 0  # of a direct segment's layout
    origin: Node = Node(-1, -1)  # unit that made a piece
    clock: tuple[float, float, float] = (0.0, 0.0, 0.0)
    nbytes: int = 0
    at: float = 0.0  # when it was received, on this rank's clock
    payload: Buffer = field(default_factory=lambda: np.empty(0, np.uint8))
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.uint8
    quantizer: Quantizer = Quantizer(1.0, 0)  # of 8-bit values

    def tensor(self) -> Tensor:
        """Return the payload as a tensor, 8-bit values as float32.

        It lies over the message's own buffer, except for 8-bit values.
        """
        data = torch.from_numpy(self.payload)
        if self.dtype == EIGHT_BITS:
            return self.quantizer.numbers(data.view(self.shape))
        return data.view(self.dtype).view(self.shape)

    def text(self) -> str:
        """Return the payload as text."""
        return self.payload.tobytes().decode("utf-8", "replace")


class Pool:
    """Buffers by size, used again."""

    def __init__(self) -> None:
        self._free: dict[int, list[Buffer]] = {}

    def take(self, size: int) -> Buffer:
        """Return a buffer of ``size`` bytes with any content."""
        free = self._free.get(size)
        return free.pop() if free else np.empty(size, np.uint8)

    def give(self, buffer: Buffer) -> None:
        """Take back a buffer that is not read or written any more."""
        self._free.setdefault(buffer.size, []).append(buffer)


def pack(
    pool: Pool,
    kind: Kind,
    payload: Tensor | bytes | None,
    dtype: torch.dtype | None,
    clock: tuple[float, ...],
    fields: dict[str, int],
) -> Buffer:
    """Lay a message out in one buffer."""
    line = None
    if isinstance(payload, Tensor):
        dtype, line = _type(payload, dtype)
        shape, nbytes = tuple(payload.shape), payload.numel() * dtype.itemsize
    else:
        dtype, shape, nbytes = torch.uint8, (len(payload or b""),), len(payload or b"")
    assert len(shape) <= 5, "the header has room for five sizes"
    buffer = pool.take(HEADER + nbytes)
    FIELDS.pack_into(
        buffer.data,
        0,
        kind,
        *(fields.get(name, -1) for name in ("query", "stage", "unit", "oldest", "size")),
        DTYPES.index(dtype),
        len(shape),
        *shape,
        *(0,) * (5 - len(shape)),
        *clock,
        *(line or (0.0, 0)),
        fields.get("epoch", 0),
        fields.get("origin_stage", -1),
        fields.get("origin_unit", -1),
    )
    data = torch.from_numpy(buffer[HEADER:])
    if line is not None and isinstance(payload, Tensor):
        line.write(payload, data.view(shape))
    elif isinstance(payload, Tensor):
        data.view(dtype).view(shape).copy_(payload)
    elif payload:
        buffer[HEADER:] = as_bytes(payload)
    return buffer


def _type(x: Tensor, dtype: torch.dtype | None) -> tuple[torch.dtype, Quantizer | None]:
    """Return the type in which ``x`` travels; only finite numbers of a float type go in 8 bits."""
    if dtype != EIGHT_BITS:
        return dtype or x.dtype, None
    line = Quantizer.through(x) if x.is_floating_point() else None
    return (EIGHT_BITS, line) if line is not None else (x.dtype, None)


def unpack(buffer: Buffer, count: int, peer: int) -> Message:
    """Return the message of ``count`` bytes that ``peer`` laid out in the buffer."""
    header = FIELDS.unpack_from(buffer.data)
    query, stage, unit, oldest, size, dtype, dimensions = header[1:8]
    return Message(
        kind=Kind(header[0]),
        peer=peer,
        query=query,
        stage=stage,
        unit=unit,
        oldest=oldest,
        size=size,
        epoch=header[18],
        origin=Node(*header[19:]),
        clock=header[13:16],
        nbytes=count,
        at=time.perf_counter(),
        payload=buffer[HEADER:count],
        shape=header[8 : 8 + dimensions],
        dtype=DTYPES[dtype],
        quantizer=Quantizer(*header[16:18]),
    )


def pack_layout(ranks: Homes) -> Tensor:
    """Lay out the ranks of a segment's units: units of each stage, then all ranks."""
    return torch.tensor([len(ranks), *map(len, ranks), *chain(*ranks)])


def unpack_layout(message: Message) -> Layout:
    """Return the layout that a message tells."""
    stages, *rest = message.tensor().tolist()
    sizes, ranks = rest[:stages], iter(rest[stages:])
    return Layout(message.epoch, tuple(tuple(islice(ranks, size)) for size in sizes))


def as_bytes(data: bytes) -> Buffer:
    """Return bytes as an array."""
    return np.frombuffer(data, np.uint8)
