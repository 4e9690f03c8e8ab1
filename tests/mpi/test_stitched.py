"""What real ranks compute together is what the unsplit model computes alone.

One file for 9, 5, 3 ranks and one: one rank runs alone, few workers share the units, many stand by.
Nine ranks are at first together, and then apart: five, three and one, at the same time.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from mpi4py import MPI
from torch import Tensor, nn

from mpicoded import Group, Mode
from mpicoded.codes import CODES, CodeRequest
from mpicoded.models import build
from mpicoded.models.resnet import BasicBlock
from mpicoded.models.vgg import LAYERS, features
from mpicoded.network.graph import trace
from mpicoded.network.ops import Normalize
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.runtime.leader import Leader
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.worker import serve
from mpicoded.settings import Settings
from networks import close, mixed, norm, odd, plan_of

RANKS = (9,)
WORLD = MPI.COMM_WORLD
APART = (5, 3, 1)
ALL = float("inf")  # a deadline that waits for every data unit


@pytest.fixture(scope="module", params=["together", "apart"])
def comm(request: pytest.FixtureRequest) -> Iterator[MPI.Intracomm]:
    """All ranks, and after that each rank's part of them."""
    parts = [part for part, size in enumerate(APART) for _ in range(size)]
    color = parts[WORLD.Get_rank()] if request.param == "apart" else 0
    comm = WORLD.Split(color)
    yield comm
    all_done = WORLD.Ibarrier()
    while not all_done.Test():  # a wait of MPI's own would take the cores of those at work
        time.sleep(0.01)
    comm.Free()


def lenet() -> nn.Module:
    return build("lenet5", {})


def resnet_block() -> nn.Module:
    """A block with a strided shortcut and one without; their batch norms have seen something."""
    model = nn.Sequential(BasicBlock(3, 8, 2), BasicBlock(8, 8, 1))
    for block in model:
        for name, child in list(block.named_modules()):
            if isinstance(child, nn.BatchNorm2d):
                block.set_submodule(name, norm(random.Random(0), child.num_features))
    return model.eval()


def vgg_block() -> nn.Module:
    """The first two groups of VGG-16: two convolutions and a pool each."""
    return features(LAYERS[16])[:10]


@dataclass(frozen=True)
class Case:
    """A network, an image's shape, and how it is cut."""

    network: Any
    shape: tuple[int, ...]
    split: str
    k: int
    more: dict[str, Any] = field(default_factory=dict)


CASES = {
    "lenet5, width": Case(lenet, (1, 32, 32), "width", 4),
    "lenet5, height, two stages": Case(
        lenet, (1, 32, 32), "height", 3, {"stages": ["pool1", "pool2"]}
    ),
    "lenet5, tiles": Case(lenet, (1, 32, 32), "tiles", 4, {"tiles": (2, 2)}),
    "lenet5, strips thinner than the halo": Case(lenet, (1, 32, 32), "width", 6),
    "lenet5, batch": Case(lenet, (1, 32, 32), "batch", 2, {"batch": 4}),
    "resnet block, width": Case(resnet_block, (3, 23, 37), "width", 4),
    "resnet block, height, two stages": Case(
        resnet_block, (3, 23, 37), "height", 3, {"stages": ["0", "1"], "batch": 2}
    ),
    "resnet block, tiles": Case(resnet_block, (3, 23, 37), "tiles", 6, {"tiles": (2, 3)}),
    "vgg block, width": Case(vgg_block, (3, 24, 36), "width", 4),
    "vgg block, height, two stages": Case(
        vgg_block, (3, 24, 36), "height", 3, {"stages": ["4", "9"]}
    ),
    "vgg block, tiles": Case(vgg_block, (3, 24, 36), "tiles", 4, {"tiles": (2, 2)}),
}
CODED = {"uncoded": 0, "replication": 1}  # parity units, as a multiple of k


@pytest.mark.parametrize("code", CODED)
@pytest.mark.parametrize("name", CASES)
def test_stitched_is_unsplit(comm, name, code):
    case = CASES[name]
    model = case.network()
    batch = case.more.get("batch", 1)
    images = torch.randn(3, batch, *case.shape)
    how = {"code": code, "k": case.k, "r": CODED[code] * case.k, "deadline": ALL, "sharing": True}
    with Group(comm, model, case.shape, split=case.split, **how, **case.more) as group:
        if group is None:
            return
        answers = [future.result(60) for future in [group.submit(x) for x in images]]
    with torch.inference_mode():
        expected = [model(x) for x in images]
    assert all(close(a.output, y, 1e-5) for a, y in zip(answers, expected, strict=True))
    assert {a.mode for a in answers} == {Mode.AVAILABLE}
    if comm.Get_size() > 1:
        for answer in answers:
            here = answer.arrived[:, : case.k]
            if code == "replication":  # a unit may have been taken from its copy
                here = here | answer.arrived[:, case.k :]
            assert here.all()


NEIGHBOURS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "vgg": (vgg_block, (3, 24, 36)),
    "resnet": (resnet_block, (3, 23, 37)),
    "odd": (odd, (3, 43, 37)),
}


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
def test_stages_of_their_own_are_the_unsplit_model(comm, most):
    """Unlike cuts, k, shares and homes, on ``most`` workers or as many as there are."""
    network, shape = NEIGHBOURS[["vgg", "resnet", "odd"][most % 3]]
    torch.manual_seed(0)
    model = network().eval()
    chain = trace(model, shape)
    plan = mixed(chain, max(1, min(most, comm.Get_size() - 1)), seed=most + 10, batch=2)
    deployment = uncoded(chain, plan, None)
    images = torch.randn(3, 2, *shape)
    given = outputs(comm, deployment, images)
    if given is not None:
        with torch.inference_mode():
            assert all(close(y, model(x), 1e-5) for y, x in zip(given, images, strict=True))


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_strips_that_exchange_halos_are_the_unsplit_model(comm, name):
    """All strips from two on, one a worker: what is not a neighbour's is a spare's."""
    build, shape = NEIGHBOURS[name]
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(3, 1, *shape)
    workers = comm.Get_size() - 1
    with torch.inference_mode():
        expected = [model(x) for x in images]
    formats = [("float32", 1e-5)] * max(1, workers - 1) + [("float16", 5e-3), ("int8", 5e-2)]
    for i, (wire, error) in enumerate(formats):
        how = {"exchange": "neighbours", "deadline": ALL, "sharing": True, "split": "height"}
        with Group(comm, model, shape, k=min(2 + i, max(2, workers)), wire=wire, **how) as group:
            if group is None:
                continue
            answers = [future.result(60) for future in [group.submit(x) for x in images]]
            assert any(stage.direct for stage in group.plan.stages)
        assert all(close(a.output, y, error) for a, y in zip(answers, expected, strict=True))
        assert {a.mode for a in answers} == {Mode.AVAILABLE}


def test_few_workers_share_and_many_stand_by(comm):
    with Group(comm, lenet(), (1, 32, 32), k=4, deadline=ALL, sharing=True) as group:
        if group is None:
            return
        for _ in range(5):
            group.infer(torch.randn(1, 32, 32))
        events = group.trace.drain()
    workers = comm.Get_size() - 1
    asked = {int(rank) for rank in events["rank"][events["unit"] >= 0]} - {0}
    assert asked == set(range(1, min(workers, 4) + 1))


@contextmanager
def leading(
    comm: MPI.Intracomm, deployment: Deployment, settings: Settings
) -> Iterator[Leader | None]:
    """Rank 0 leads the deployment, the others serve."""
    if comm.Get_rank() > 0:
        assert serve(comm, 60) == 0
        yield None
        return
    pool = WorkerPool(comm, 60)
    leader = Leader(pool, pool.connect(60), deployment, settings)
    try:
        yield leader
    finally:
        leader.close()
        pool.release()


def outputs(
    comm: MPI.Intracomm, deployment: Deployment, images: Tensor, **settings: Any
) -> list[Tensor] | None:
    """The outputs of all images, (B, C, H, W) each; None on the workers."""
    with leading(comm, deployment, Settings(deadline=ALL, sharing=True, **settings)) as leader:
        if leader is None:
            return None
        return [leader.submit(x).result(60).output for x in images]


def deployed(model: nn.Module, *stages: str, pixels: Normalize | None = None) -> Deployment:
    chain = trace(model, (1, 32, 32))
    plan = plan_of(chain, "width", 4, 0, *stages)
    codes = tuple(CODES["uncoded"](CodeRequest(4, 0, stage, None, {})) for stage in plan.stages)
    return Deployment(chain, plan, codes, pixels)


def test_bytes_on_the_wire_give_the_same_bits(comm):
    deployment = deployed(lenet(), pixels=Normalize.of((0.1307,), (0.3081,)))
    pixels = torch.randint(0, 256, (3, 1, 1, 32, 32), dtype=torch.uint8)
    as_bytes = outputs(comm, deployment, pixels, wire="uint8")
    as_floats = outputs(comm, deployment, torch.stack([deployment.normalize(x) for x in pixels]))
    if as_bytes is not None and as_floats is not None:
        assert all(torch.equal(a, b) for a, b in zip(as_bytes, as_floats, strict=True))


def test_halves_on_the_wire_are_close(comm):
    model = lenet()
    images = torch.rand(3, 1, 1, 32, 32)
    halves = outputs(comm, deployed(model, "pool1", "pool2"), images, wire="float16")
    if halves is not None:
        with torch.inference_mode():
            assert all(close(y, model(x), 5e-3) for y, x in zip(halves, images, strict=True))


@pytest.mark.parametrize("wire", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("answers", "error"), [("float16", 5e-3), ("int8", 3e-2)])
def test_small_answers_are_close(comm, wire, answers, error):
    model = lenet()
    images = torch.rand(3, 1, 1, 32, 32)
    small = outputs(comm, deployed(model, "pool1", "pool2"), images, wire=wire, answers=answers)
    again = outputs(comm, deployed(model, "pool1", "pool2"), images, wire=wire, answers=answers)
    if small is not None and again is not None:
        assert all(torch.equal(a, b) for a, b in zip(small, again, strict=True))
        error = max(error, 3e-2 if wire == "int8" else 0.0)
        with torch.inference_mode():
            assert all(close(y, model(x), error) for y, x in zip(small, images, strict=True))
            assert not all(torch.equal(y, model(x)) for y, x in zip(small, images, strict=True))
