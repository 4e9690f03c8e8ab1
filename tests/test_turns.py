"""Large messages take turns on the leader's link; a communicator that only notes what is sent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from mpicoded.runtime.wire import Kind, Wire

LARGE = torch.zeros(Wire.SHORT)  # float32: four times as many bytes
TINY = torch.zeros(8)


@dataclass
class Request:
    """A message on its way to ``dest``; taken when the test says so."""

    dest: int
    taken: bool = False

    def Test(self, status: object = None) -> bool:
        return self.taken


@dataclass
class Comm:
    """Notes who was sent to, in order."""

    sent: list[Request] = field(default_factory=list)

    def Issend(self, buffer: Any, dest: int, tag: int) -> Request:
        self.sent.append(Request(dest))
        return self.sent[-1]

    Isend = Issend

    def Irecv(self, buffer: Any, source: int, tag: int) -> Request:
        return Request(source)

    def ranks(self) -> list[int]:
        return [each.dest for each in self.sent]


@pytest.fixture
def comm() -> Comm:
    return Comm()


@pytest.fixture
def wire(comm: Comm) -> Wire:
    return Wire(comm, range(1, 6))  # type: ignore[arg-type]


def post(wire: Wire, rank: int, x: torch.Tensor = LARGE, alone: bool = False) -> None:
    wire.post(rank, Kind.UNIT, x, in_turn=True, alone=alone)


def test_two_abreast_and_the_next_when_one_is_taken(wire: Wire, comm: Comm) -> None:
    for rank in (1, 2, 3, 4):
        post(wire, rank)
    assert comm.ranks() == [1, 2]
    wire.poll()
    assert comm.ranks() == [1, 2]
    comm.sent[1].taken = True
    wire.poll()
    assert comm.ranks() == [1, 2, 3]


def test_parity_goes_alone(wire: Wire, comm: Comm) -> None:
    post(wire, 1)
    post(wire, 2)
    post(wire, 3, alone=True)
    comm.sent[0].taken = True
    wire.poll()
    assert comm.ranks() == [1, 2], "one data unit is still on the link"
    comm.sent[1].taken = True
    wire.poll()
    assert comm.ranks() == [1, 2, 3]


def test_short_messages_wait_for_no_turn(wire: Wire, comm: Comm) -> None:
    for rank in (1, 2, 3, 4):
        post(wire, rank, TINY, alone=rank > 2)
    assert comm.ranks() == [1, 2, 3, 4]


def test_messages_to_one_rank_keep_their_order(wire: Wire, comm: Comm) -> None:
    """A short one does not overtake the large one that waits for its turn."""
    for rank in (1, 2, 3):
        post(wire, rank)
    wire.post(3, Kind.PING)
    post(wire, 3, TINY)
    assert comm.ranks() == [1, 2]
    assert wire.queued(time.perf_counter()) == {3}
    comm.sent[0].taken = comm.sent[1].taken = True
    wire.poll()
    assert comm.ranks() == [1, 2, 3, 3]


def test_who_lets_its_message_lie_keeps_nobody_waiting(
    wire: Wire, comm: Comm, monkeypatch: pytest.MonkeyPatch
) -> None:
    post(wire, 1)
    post(wire, 2)
    post(wire, 3)
    late = time.perf_counter() + Wire.LEAST + 1.0
    monkeypatch.setattr(time, "perf_counter", lambda: late)
    wire.poll()
    assert comm.ranks() == [1, 2, 3]


def test_stop_goes_at_once_and_drops_what_waits(wire: Wire, comm: Comm) -> None:
    for rank in (1, 2, 3):
        post(wire, rank)
    wire.post(3, Kind.STOP)
    assert comm.ranks() == [1, 2, 3]
    comm.sent[0].taken = comm.sent[1].taken = True
    wire.poll()
    assert comm.ranks() == [1, 2, 3]
    assert not wire.drained()
    comm.sent[2].taken = True
    wire.poll()
    assert wire.drained()
