"""Setups travel once for all: packed by the leader, passed along a chain, loaded by every rank.

No message is sent here: mpi4py is imported without MPI_Init, and a chain's ranks live in a list.
"""

from __future__ import annotations

import gc
import random
import threading
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn

from mpicoded.codes import CODES, CodeRequest
from mpicoded.errors import ModelError
from mpicoded.faults import Fault
from mpicoded.network.graph import Head, trace, whole_network
from mpicoded.network.kernels import Kernel
from mpicoded.runtime.chain_broadcast import AHEAD, SEGMENT, ChainBroadcast
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.setup import Setup, check_packs, load, own_parts, pack
from networks import plan_of


def deployment() -> Deployment:
    torch.manual_seed(0)
    wide = nn.Conv2d(16, 128, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), wide, nn.BatchNorm2d(128), nn.ReLU())
    chain = trace(model, (1, 14, 20))
    plan = plan_of(chain, "width", 4)
    codes = tuple(CODES["uncoded"](CodeRequest(4, 0, stage, None, {})) for stage in plan.stages)
    return Deployment(chain, plan, codes)


def test_all_ranks_load_their_own_from_one_array() -> None:
    whole = deployment()
    faults = [Fault("slow", 3, 0, 10)]
    units = {1: [(0, 0), (0, 3)], 2: [(0, 1)], 3: [(0, 2)]}
    array = pack(whole.setup(2, "int8", "float16"), own_parts(units, faults, 7))
    weights = sum(
        p.numel() * 4 for p in whole.chain.head_after(-1).ops[0].layer.module.parameters()
    )
    assert weights < array.size < weights + 16 * 128 * 9 * 4 + 60_000, "weights are there once"
    setups = {rank: load(array.copy(), rank) for rank in (1, 2, 3)}
    own = [setups[rank].own.units for rank in (1, 2, 3)]
    assert own == [((0, 0), (0, 3)), ((0, 1),), ((0, 2),)]
    assert [bool(setups[rank].own.faults.faults) for rank in (1, 2, 3)] == [False, False, True]
    x = torch.randn(1, 1, 14, 20)
    for setup in setups.values():
        assert (setup.threads, setup.answers, setup.wire) == (2, "int8", "float16")
        assert setup.inputs == whole.input_shapes()
        for unit, piece in enumerate(whole.inputs(0, x, None)):
            with torch.inference_mode():
                result = setup.programs[0][unit](piece)
                assert torch.allclose(result, whole.programs()[0][unit](piece), atol=1e-5)


def test_weights_lie_over_the_array_until_they_are_packed() -> None:
    chain = trace(nn.Sequential(nn.Conv2d(1, 16, 3), nn.Conv2d(16, 128, 3)), (1, 14, 20))
    plan = plan_of(chain, "width", 1)
    codes = tuple(CODES["uncoded"](CodeRequest(1, 0, stage, None, {})) for stage in plan.stages)
    whole = Deployment(chain, plan, codes)
    array = pack(whole.setup(1, "float32", "float32"), own_parts({1: [(0, 0)]}, (), 0))
    program = load(array, 1).programs[0][0]
    layer = program.steps[1].op.layer
    if not isinstance(layer, Kernel):
        pytest.skip("this build of torch has no oneDNN convolutions")
    assert np.shares_memory(layer._weight.numpy(), array)
    with torch.inference_mode():
        program(torch.randn(1, 1, 14, 20))
    alive = weakref.ref(array)
    del array
    gc.collect()
    assert alive() is None, "nothing keeps the array when the weights are packed"


def traced(*layers: nn.Module) -> Head:
    return whole_network(trace(nn.Sequential(*layers).eval(), (1, 6, 6)))


def through_pickle(head: Head) -> Head:
    setup = Setup(((head,),), (((1, 1, 6, 6),),), None, 0, 1)
    array = pack(setup, own_parts({1: [(0, 0)]}, (), 0))
    result = load(array, 1).programs[0][0]
    assert isinstance(result, Head)
    return result


def test_weights_that_are_computed_travel_as_they_are() -> None:
    spectral, wn = nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm
    model = (spectral(nn.Conv2d(1, 4, 3)), nn.ReLU(), wn(nn.Conv2d(4, 4, 3)), nn.Flatten(),
             wn(nn.Linear(16, 3)))  # fmt: skip
    head, x = traced(*model), torch.randn(2, 1, 6, 6)
    with torch.inference_mode():
        assert torch.allclose(through_pickle(head)(x), nn.Sequential(*model).eval()(x), atol=1e-6)
    assert nn.utils.parametrize.is_parametrized(model[0]), "the user's own layer is as it was"


class Constant(nn.Module):
    def __init__(self, constant: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("constant", constant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.constant.to_dense()).flatten(1)


@pytest.mark.parametrize(
    "constant",
    [torch.rand(6, 6).bfloat16(), torch.eye(6).to_sparse(), torch.eye(6, dtype=torch.bool)],
    ids=["bfloat16", "sparse", "bool"],
)
def test_constants_that_numpy_has_not(constant: torch.Tensor) -> None:
    head, x = traced(Constant(constant)), torch.randn(2, 1, 6, 6)
    with torch.inference_mode():
        assert torch.equal(through_pickle(head)(x), Constant(constant)(x))


def quantised() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).eval()
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)[1]


def with_a(thing: object) -> nn.Module:
    layer = nn.Linear(36, 3)
    layer.thing = thing
    return layer


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (quantised(), r"layer 1 \(Linear\) .* its numbers are quantised \(torch\.qint8\)"),
        (with_a(lambda: 0), r"layer 1 \(Linear\) cannot be sent to workers: .*pickle.*lambda"),
        (with_a(threading.Lock()), r"layer 1 \(Linear\) .*lock.*Give a float layer, take off"),
    ],
    ids=["quantised", "lambda", "lock"],
)
def test_what_cannot_travel_is_named(layer: nn.Module, text: str) -> None:
    head = traced(nn.Flatten(), layer)
    with pytest.raises(ModelError, match=text):
        check_packs([[head]])


@dataclass
class Request:
    """A transfer that ends some polls after both sides have asked for it."""

    array: np.ndarray
    peer: Request | None = None
    polls: int = 0

    def Test(self) -> bool:  # noqa: N802  # as mpi4py spells it
        self.polls += 1
        return self.peer is not None and min(self.polls, self.peer.polls + 2) > 2


@dataclass
class Net:
    """Ranks in one process: sends and receives meet in the order in which they were asked."""

    dead: set[int] = field(default_factory=set)
    open: dict[tuple[int, int, str], list[Request]] = field(default_factory=dict)
    most: int = 0

    def comm(self, rank: int) -> Comm:
        return Comm(self, rank)

    def ask(self, source: int, target: int, side: str, array: np.ndarray) -> Request:
        if self.dead & {source, target}:
            raise MPI.Exception(MPI.ERR_OTHER)
        request, other = Request(array), {"send": "recv", "recv": "send"}[side]
        waiting = self.open.setdefault((source, target, other), [])
        if waiting:
            request.peer = waiting.pop(0)
            request.peer.peer = request
            give, take = (request, request.peer) if side == "send" else (request.peer, request)
            take.array[:] = give.array
        else:
            self.open.setdefault((source, target, side), []).append(request)
            self.most = max(self.most, len(self.open[source, target, side]))
        return request


@dataclass
class Comm:
    net: Net
    rank: int

    def Isend(self, buffer: list, dest: int, tag: int) -> Request:  # noqa: N802
        return self.net.ask(self.rank, dest, "send", buffer[0])

    def Irecv(self, buffer: list, source: int, tag: int) -> Request:  # noqa: N802
        return self.net.ask(source, self.rank, "recv", buffer[0])


def chain(net: Net, array: np.ndarray, ranks: int) -> list[ChainBroadcast]:
    first = ChainBroadcast(net.comm(0), array, None, 1)
    rest = [
        ChainBroadcast(net.comm(p), np.zeros_like(array), p - 1, p + 1 if p + 1 < ranks else None)
        for p in range(1, ranks)
    ]
    return [first, *rest]


@pytest.mark.parametrize("size", [1, SEGMENT, 7 * SEGMENT + 13], ids=["1", "1 segment", "8"])
@pytest.mark.parametrize("ranks", [2, 3, 9])
def test_everybody_gets_the_array(size: int, ranks: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    net = Net()
    relays, order = chain(net, array, ranks), random.Random(1)
    for _ in range(100_000):
        if all(relay.done for relay in relays):
            break
        order.choice(relays).move()
    assert all(relay.done and relay.received for relay in relays)
    assert all(np.array_equal(relay.array, array) for relay in relays)
    assert net.most <= AHEAD, "no more than a few segments wait in MPI"
    assert not any(relay.move() for relay in relays)


def test_a_dead_neighbour_breaks_the_chain_behind_it() -> None:
    net = Net(dead={2})
    relays = chain(net, np.ones(3 * SEGMENT, np.uint8), 5)
    for _ in range(1000):
        for rank, relay in enumerate(relays):
            if rank != 2:
                relay.move()
    assert [relay.broken for relay in relays] == [False, True, False, True, False]
    assert relays[1].done and not relays[3].received and not relays[4].done
