"""Messages keep what they are given, buffers are used again, polling backs off.

No message is sent here: mpi4py is imported without MPI_Init, which leaves this process and its
environment alone, so that other tests can start mpirun from it.
"""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from mpi4py import MPI

from mpicoded.runtime.backoff import Backoff
from mpicoded.runtime.message import (
    DTYPES,
    EIGHT_BITS,
    HEADER,
    Kind,
    Message,
    Pool,
    pack,
    unpack,
)

CLOCK = (1.5, -2.25, 1e9 + 1e-6)


def send(
    payload: torch.Tensor | bytes | None,
    dtype: torch.dtype | None = None,
    pool: Pool | None = None,
    kind: Kind = Kind.UNIT,
    **fields: int,
) -> Message:
    """Pack a message and unpack it from a larger buffer, as a posted receive does."""
    packed = pack(pool or Pool(), kind, payload, dtype, CLOCK, fields)
    received = np.full(packed.size + 1000, 0xAB, np.uint8)
    received[: packed.size] = packed
    return unpack(received, packed.size, peer=3)


def test_this_process_has_not_initialised_mpi() -> None:
    assert not MPI.Is_initialized()


@pytest.mark.parametrize("kind", Kind)
def test_the_header_comes_through(kind: Kind) -> None:
    message = send(None, kind=kind, query=2**40, stage=7, unit=11, oldest=2**62, size=123456789)
    assert (message.kind, message.peer) == (kind, 3)
    assert (message.query, message.stage, message.unit) == (2**40, 7, 11)
    assert (message.oldest, message.size, message.clock) == (2**62, 123456789, CLOCK)
    assert message.nbytes == HEADER
    assert message.payload.size == 0


def test_a_field_that_is_not_given_is_minus_one() -> None:
    message = send(b"")
    assert (message.query, message.stage, message.unit, message.size) == (-1, -1, -1, -1)


NUMBERS = [dtype for dtype in DTYPES if dtype != EIGHT_BITS]


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize(
    "shape", [(), (0,), (2, 0, 3), (1,), (3, 5), (1, 6, 16, 9), (2, 3, 4, 5, 6)], ids=str
)
def test_a_tensor_comes_through(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.rand(shape) * 255).to(dtype)
    message = send(x)
    y = message.tensor()
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert torch.equal(x, y)
    assert message.nbytes == HEADER + x.numel() * dtype.itemsize


def test_a_tensor_may_travel_as_another_type() -> None:
    x = torch.randn(2, 3, 4)
    message = send(x, torch.float16)
    assert message.nbytes == HEADER + 2 * x.numel()
    assert torch.equal(message.tensor(), x.half())
    assert torch.equal(send(torch.arange(256), torch.uint8).tensor(), torch.arange(256).byte())


@pytest.mark.parametrize("low", [0.0, -0.5, -100.0, 3.0])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 64, 30, 31), (7,)], ids=str)
def test_eight_bits_are_off_by_half_a_step_at_most(shape: tuple[int, ...], low: float) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 7.3 + low
    x.view(-1)[::5] = 0.0
    message = send(x, EIGHT_BITS)
    y = message.tensor()
    assert message.nbytes == HEADER + x.numel()
    assert (y.dtype, y.shape) == (torch.float32, x.shape)
    step = (max(0.0, float(x.max())) - min(0.0, float(x.min()))) / 254
    assert float((x - y).abs().max()) <= 0.5 * step * (1 + 1e-3)
    assert bool((y[x == 0] == 0).all()), "zero stays zero"


def test_eight_bits_of_any_scale() -> None:
    """Ends that lie between two steps do not wrap around; a map of zeros stays one."""
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        scale = 10.0 ** float(torch.empty(()).uniform_(-25, 25, generator=generator))
        x = torch.randn(50, generator=generator) * scale
        step = (max(0.0, float(x.max())) - min(0.0, float(x.min()))) / 254
        assert float((send(x, EIGHT_BITS).tensor() - x).abs().max()) <= 0.51 * step
    for x in (torch.zeros(3, 4), torch.full((5,), 1e-42), torch.empty(2, 0, 3)):
        assert torch.equal(send(x, EIGHT_BITS).tensor(), torch.zeros_like(x))


@pytest.mark.parametrize("odd", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_travels_as_it_is(odd: float) -> None:
    x = torch.tensor([1.0, odd, -2.0])
    assert torch.equal(send(x, EIGHT_BITS).tensor().nan_to_num(9), x.nan_to_num(9))


def test_whole_numbers_are_not_rounded_to_eight_bits() -> None:
    x = torch.arange(5000, dtype=torch.int32)
    assert torch.equal(send(x, EIGHT_BITS).tensor(), x)


def test_a_view_of_a_map_travels_without_its_surroundings() -> None:
    x = torch.randn(1, 3, 8, 10)
    assert torch.equal(send(x[:, :, 2:5, 1:9]).tensor(), x[:, :, 2:5, 1:9])
    assert torch.equal(send(x.transpose(2, 3)).tensor(), x.transpose(2, 3))
    assert torch.equal(send(x[:1, :1].expand(1, 4, 8, 10)).tensor(), x[:, :1].expand(1, 4, 8, 10))


@pytest.mark.parametrize("text", ["", "node-7", "Traceback …\n  ümlaut"])
def test_text_comes_through(text: str) -> None:
    assert send(text.encode()).text() == text


def test_text_that_was_cut_in_the_middle_of_a_letter_is_still_text() -> None:
    assert send("aü".encode()[:-1]).text() == "a\N{REPLACEMENT CHARACTER}"


def test_a_buffer_is_used_again_for_the_same_size_only() -> None:
    pool = Pool()
    first, second = pool.take(200), pool.take(200)
    pool.give(first)
    assert pool.take(300) is not first
    assert pool.take(200) is first
    assert pool.take(200) is not second, "which was not given back"


def test_nothing_of_an_old_message_is_left_in_a_buffer() -> None:
    pool = Pool()
    old = pack(pool, Kind.UNIT, torch.ones(2, 3, 4), None, CLOCK, {"query": 5, "unit": 6})
    pool.give(old)
    new = pack(pool, Kind.PONG, bytes(24 * 4), None, (0.0, 0.0, 0.0), {})
    assert new is old
    message = unpack(new, new.size, 0)
    assert (message.query, message.unit, message.clock) == (-1, -1, (0.0, 0.0, 0.0))
    assert message.shape == (96,)
    assert not message.payload.any()


def test_the_payload_is_the_received_buffer_itself() -> None:
    packed = pack(Pool(), Kind.ANSWER, torch.zeros(4), None, CLOCK, {})
    message = unpack(packed, packed.size, 0)
    assert message.payload.base is packed, "or release() could not give it back"
    message.tensor()[2] = 1.0
    assert packed[HEADER:].view(np.float32).tolist() == [0, 0, 1, 0]


class Clock:
    """A time that sleeping alone moves on."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def perf_counter(self) -> float:
        return self.now

    def acquire(self, timeout: float) -> bool:
        self.slept.append(timeout)
        self.now += timeout
        return False


def test_polling_backs_off_with_the_time_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock.perf_counter)
    backoff = Backoff(longest=0.015)
    monkeypatch.setattr(backoff, "_bell", clock)
    while clock.now < 101.0:
        backoff.sleep()
    assert clock.slept[0] == Backoff.SHORTEST
    assert clock.slept[-1] == 0.015
    assert clock.slept == sorted(clock.slept)
    assert len(clock.slept) < 400, "a second of silence is few polls"
    waited = np.cumsum(clock.slept) - clock.slept
    assert np.all(clock.slept <= np.maximum(waited / 20, Backoff.SHORTEST)), "late by 5 % at most"
    backoff.reset()
    backoff.sleep()
    assert clock.slept[-1] == Backoff.SHORTEST


def test_rest_is_long_from_the_first_poll_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, backoff = Clock(), Backoff(longest=0.015)
    monkeypatch.setattr(backoff, "_bell", clock)
    backoff.reset()
    backoff.rest()
    assert clock.slept == [0.015]


@pytest.mark.parametrize("how", ["sleep", "rest"])
def test_waking_ends_a_sleep(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backoff, "SHORTEST", 20.0)
    backoff = Backoff(longest=20.0)
    threading.Timer(0.05, backoff.wake).start()
    began = time.perf_counter()
    getattr(backoff, how)()
    assert time.perf_counter() - began < 5.0
    assert not backoff._bell.acquire(blocking=False), "once"
