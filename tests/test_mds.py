"""The exact code: every erasure pattern of a linear stage comes out right, however it is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import units
from mpicoded.codes import CODES, CodeRequest
from mpicoded.codes.erasures import erasures
from mpicoded.codes.mds import FilterMds, Mds
from mpicoded.errors import PlanError
from mpicoded.network.graph import Chain, trace
from mpicoded.network.linear import split_at_activations
from mpicoded.network.ops import Normalize
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS, Request

SHAPE = (3, 17, 22)
SIZES = [(1, 2), (2, 1), (3, 2), (4, 2), (6, 2), (4, 3), (5, 1)]


class Net(nn.Module):
    """Convolutions of several kinds with bias and batch norm, activations and pools between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 13, 5, stride=2, padding=2, bias=False)
        self.bn2 = nn.BatchNorm2d(13)
        self.conv3 = nn.Conv2d(13, 12, 3, dilation=(2, 1), padding=(2, 0), groups=1)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.fc = nn.Linear(12 * 5 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 17, 22) -> (B, 4)."""
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = self.pool(torch.relu(self.conv3(x)))
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chain() -> Chain:
    """The network, traced and opened, with statistics and large biases."""
    torch.manual_seed(3)
    model = Net().requires_grad_(False)
    for norm in (model.bn2,):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.normal_()
        norm.bias.normal_(0, 3)
    model.conv1.bias.normal_(0, 3)
    return split_at_activations(trace(model, SHAPE))


def deployed(chain: Chain, split: str, k: int, r: int, *stages: str, **more: Any) -> Deployment:
    """A deployment of the code on linear stages."""
    request = Request(chain, k, r, stages, linear=True, **more)
    plan = SPLITS[split].plan(request)
    codes = tuple(CODES["mds"](CodeRequest(k, r, stage, chain=chain)) for stage in plan.stages)
    return Deployment(chain, plan, codes)


def outputs(deployment: Deployment, s: int, x: Tensor) -> Tensor:
    """What all units of stage ``s`` give, as workers run them, (n, B, C, h, w)."""
    x = deployment.prologue(s, x)
    inputs = deployment.inputs(s, x, deployment.parity(s, x))
    programs = deployment.ready_programs[s]
    assert [tuple(x.shape) for x in inputs] == list(deployment.input_shapes()[s])
    made = [run(u) for run, u in zip(programs, inputs, strict=True)]
    plan = deployment.plan
    assert [4 * y.numel() for y in made] == [plan.bytes_out(s, i) for i in range(plan.n)]
    assert [4 * x.numel() for x in inputs] == [plan.bytes_in(s, i) for i in range(plan.n)]
    return units.stack(made, plan.stages[s])


def truth(chain: Chain, deployment: Deployment, s: int, x: Tensor) -> Tensor:
    """The stage's output map by the unsplit network."""
    head = chain.between(0, deployment.plan.stages[s].last + 1)
    assert head is not None
    return head(x)  # type: ignore[no-any-return]


def stitched(deployment: Deployment, s: int, data: Tensor) -> Tensor:
    """Decoded data units -> the stage's output map."""
    stage = deployment.plan.stages[s]
    return units.stitch([units.trim(d, stage, i) for i, d in enumerate(data)], stage)


def relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest number."""
    return float((a - b).abs().max() / b.abs().max())


@torch.inference_mode()
def check_all_patterns(chain: Chain, deployment: Deployment, x: Tensor) -> None:
    """Every pattern of at most r losses gives the unsplit map; none lost, the same bits."""
    for s, code in enumerate(deployment.codes):
        before = x if s == 0 else truth(chain, deployment, s - 1, x)
        y, right = outputs(deployment, s, before), truth(chain, deployment, s, x)
        own = stitched(deployment, s, y[: code.k])
        assert relative(own, right) < 2e-6
        for arrived in erasures(code.n, code.r):
            here = torch.from_numpy(arrived).view(-1, *[1] * (y.dim() - 1))
            decoded = code.decode(torch.where(here, y, torch.nan), arrived)
            result = stitched(deployment, s, decoded)
            if arrived[: code.k].all():
                assert torch.equal(result, own)
            assert relative(result, right) < 1e-5, (s, arrived)


@pytest.mark.parametrize(("k", "r"), SIZES)
@pytest.mark.parametrize("split", ["width", "height", "channels"])
def test_every_pattern_is_exact(chain: Chain, split: str, k: int, r: int) -> None:
    """Bias, batch norm, strides, dilation, shards that do not divide the map, several stages."""
    deployment = deployed(chain, split, k, r, batch=2)
    assert [stage.name for stage in deployment.plan.stages] == ["conv1", "conv2", "conv3"]
    check_all_patterns(chain, deployment, torch.randn(2, *SHAPE))


@pytest.mark.parametrize("tiles", [(2, 2), (2, 3), (1, 4), (3, 1)])
def test_tiles(chain: Chain, tiles: tuple[int, int]) -> None:
    """Both axes are cut, and neither divides."""
    deployment = deployed(chain, "tiles", tiles[0] * tiles[1], 2, tiles=tiles)
    check_all_patterns(chain, deployment, torch.randn(1, *SHAPE))


def test_shards_have_one_size(chain: Chain) -> None:
    """22 columns for 4: of 6 each, two of which are computed twice; the work says so."""
    plan = deployed(chain, "width", 4, 2, "conv1").plan
    (stage,) = plan.stages
    assert [tuple(s.writes.cols) for s in stage.shards] == [(0, 6), (5, 11), (10, 16), (16, 22)]
    assert stage.redundancy == pytest.approx(24 / 22 - 1)


def test_shards_of_many_sizes_are_refused(chain: Chain) -> None:
    """The message has both sizes and the way out."""
    plan = SPLITS["width"].plan(Request(replace(chain, blocks=chain.blocks[:1]), 4, 2))
    with pytest.raises(PlanError, match=r"conv1 has shards of 17 x 6 and of 17 x 5.*linear = true"):
        CODES["mds"](CodeRequest(4, 2, plan.stages[0], chain=chain))


def test_the_leader_runs_what_no_stage_covers(chain: Chain) -> None:
    """conv1 is the leader's, and so are the activations and the head."""
    deployment = deployed(chain, "width", 3, 2, "conv2", "conv3")
    names = [[op.name for op in each.ops] if each else None for each in deployment.prologues()]
    assert names == [["conv1", "relu"], ["relu_1"]]
    assert deployment.head is not None
    assert [op.name for op in deployment.head.ops][:2] == ["relu_2", "pool"]
    x = torch.randn(1, *SHAPE)
    y = deployment.prologue(0, x)
    for s, code in enumerate(deployment.codes):
        y = deployment.prologue(s, y) if s else y
        inputs = deployment.inputs(s, y, deployment.parity(s, y))
        programs = deployment.ready_programs[s]
        made = units.stack(
            [run(u) for run, u in zip(programs, inputs, strict=True)], deployment.plan.stages[s]
        )
        arrived = np.array([False, True, False, True, True])
        y = stitched(deployment, s, code.decode(made, arrived))
    assert relative(deployment.head(y), deployment.run_unsplit(x)) < 1e-5
    whole = deployment.plan.head_flops + sum(s.whole_flops for s in deployment.plan.stages)
    everything = deployed(chain, "width", 3, 2, "conv1", "conv2", "conv3").plan
    assert whole == everything.head_flops + sum(s.whole_flops for s in everything.stages)


def test_pixels(chain: Chain) -> None:
    """8-bit images travel as they are; coded windows are of the numbers that they stand for."""
    deployment = replace(
        deployed(chain, "width", 4, 2, "conv1"), pixels=Normalize.of((0.3,), (0.2,))
    )
    x = torch.randint(0, 256, (1, *SHAPE), dtype=torch.uint8)
    parity = deployment.parity(0, x)
    assert parity is not None and parity.dtype == torch.float32
    inputs = [deployment.normalize(u) for u in deployment.inputs(0, x, parity)]
    programs = deployment.ready_programs[0]
    y = units.stack(
        [run(u) for run, u in zip(programs, inputs, strict=True)], deployment.plan.stages[0]
    )
    arrived = np.array([True, False, True, False, True, True])
    result = stitched(deployment, 0, deployment.codes[0].decode(y, arrived))
    assert relative(result, truth(chain, deployment, 0, deployment.normalize(x))) < 1e-5


class Several(nn.Module):
    """Linear layers in a row: pads come first, and no others."""

    def __init__(self, second: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = second
        self.fc = nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, 12, 16) -> (B, 3)."""
        return self.fc(torch.flatten(self.second(self.first(x)), 1))  # type: ignore[no-any-return]


def several(second: nn.Module) -> tuple[Chain, Plan]:
    """Both layers as one stage, cut by width into four."""
    model = Several(second)
    model(torch.zeros(1, 2, 12, 16))
    chain = trace(model.requires_grad_(False), (2, 12, 16))
    return chain, SPLITS["width"].plan(Request(chain, 4, 2))


@pytest.mark.parametrize(
    "second", [nn.Conv2d(4, 5, 3, padding=(1, 0), stride=(1, 2)), nn.AvgPool2d(2)]
)
def test_several_linear_layers(second: nn.Module) -> None:
    """Exact together, as only the first one pads along the axis that is cut."""
    chain, plan = several(second)
    if len({s.writes.cols.size for s in plan.stages[0].shards}) > 1:
        plan = SPLITS["width"].plan(Request(chain, 7, 2))
    code = CODES["mds"](CodeRequest(plan.k, 2, plan.stages[0], chain=chain))
    check_all_patterns(chain, Deployment(chain, plan, (code,)), torch.randn(1, 2, 12, 16))


REFUSED = [
    pytest.param(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)), r"second_0 \(ReLU\) is not linear"),
    pytest.param(nn.MaxPool2d(2), r"second \(MaxPool2d\) is not linear"),
    pytest.param(nn.Conv2d(4, 4, 3, padding=1), r"second \(Conv2d\) pads the map of first"),
    pytest.param(nn.Sigmoid(), r"second \(Sigmoid\) is not linear"),
]


@pytest.mark.parametrize(("second", "why"), REFUSED)
def test_what_is_not_linear_is_named(second: nn.Module, why: str) -> None:
    """And the message says what to do instead."""
    chain, plan = several(second)
    with pytest.raises(PlanError, match=why + ".*linear = true"):
        CODES["mds"](CodeRequest(4, 2, plan.stages[0], chain=chain))


def test_images_of_a_linear_network() -> None:
    """Units that are images, where the whole network is linear; its bias comes out right."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5))
    chain = trace(model.requires_grad_(False), (1, 8, 8))
    plan = SPLITS["batch"].plan(Request(chain, 3, 2, batch=6))
    code = CODES["mds"](CodeRequest(3, 2, plan.stages[0], chain=chain))
    deployment = Deployment(chain, plan, (code,))
    x = torch.randn(6, 1, 8, 8)
    inputs = deployment.inputs(0, x, deployment.parity(0, x))
    y = torch.stack([run(u) for run, u in zip(deployment.programs()[0], inputs, strict=True)])
    for arrived in erasures(5, 2):
        assert relative(torch.cat(list(code.decode(y, arrived))), model(x)) < 1e-5


def test_images_of_another_network(chain: Chain) -> None:
    """Its first activation is named, and codes that can."""
    plan = SPLITS["batch"].plan(Request(chain, 2, 1, batch=2))
    with pytest.raises(PlanError, match=r"relu \(relu\) is not linear.*parity.*linear = true"):
        CODES["mds"](CodeRequest(2, 1, plan.stages[0], chain=chain))


def test_nothing_is_encoded_for_filters(chain: Chain) -> None:
    """Every unit gets the map itself; parity filters are sums made once."""
    deployment = deployed(chain, "channels", 4, 2, "conv2")
    (code,) = deployment.codes
    assert isinstance(code, FilterMds)
    x = deployment.prologue(0, torch.randn(1, *SHAPE))
    assert deployment.parity(0, x) is None
    assert all(each is x for each in deployment.cut(0, x))
    (stage,) = deployment.plan.stages
    assert [s.channels for s in stage.shards] == [(0, 4), (4, 7), (7, 10), (10, 13)]
    assert stage.unit_shape == (4, *stage.output_shape[1:])
    assert stage.redundancy == 0
    assert stage.parity_flops == stage.shards[0].flops
    table = str(deployment.plan)
    assert "channels 0:4" in table and "coded" in table


def test_filters_that_do_not_add_up() -> None:
    """Groups of a convolution read other channels."""
    chain = split_at_activations(
        trace(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()), (4, 8, 8))
    )
    with pytest.raises(PlanError, match="groups = 2"):
        deployed(chain, "channels", 2, 1)


def test_too_many_units_for_the_channels(chain: Chain) -> None:
    """Both numbers are named."""
    with pytest.raises(PlanError, match=r"conv1: cannot deal 8 output channels out to k = 9"):
        deployed(chain, "channels", 9, 1, "conv1")


def test_other_codes_do_not_code_filters(chain: Chain) -> None:
    """A code for pieces of a map would give parity units the wrong network."""
    plan = SPLITS["channels"].plan(Request(chain, 2, 1, ("conv1",), linear=True))
    with pytest.raises(PlanError, match='units of a stage split by channels.*"mds"'):
        Deployment(chain, plan, (Mds(2, 1),))


def test_replicated_filters(chain: Chain) -> None:
    """A copy of a unit runs its filters."""
    plan = SPLITS["channels"].plan(Request(chain, 2, 2, ("conv1",), linear=True))
    code = CODES["replication"](CodeRequest(2, 2, plan.stages[0], chain=chain))
    deployment = Deployment(chain, plan, (code,))
    x = torch.randn(1, *SHAPE)
    y = outputs(deployment, 0, x)
    assert torch.equal(y[0], y[2]) and torch.equal(y[1], y[3])
    assert relative(stitched(deployment, 0, y[:2]), truth(chain, deployment, 0, x)) < 2e-6


def test_a_network_without_linear_stages() -> None:
    """Planning says what is there."""
    chain = split_at_activations(trace(nn.Sequential(nn.MaxPool2d(2)), (1, 8, 8)))
    with pytest.raises(PlanError, match="linear = true needs a stage that is linear"):
        SPLITS["width"].plan(Request(chain, 2, 1, linear=True))


def test_options_are_checked(chain: Chain) -> None:
    """It has none."""
    plan = SPLITS["width"].plan(Request(chain, 2, 1, ("conv1",), linear=True))
    with pytest.raises(PlanError, match="args.hidden"):
        CODES["mds"](CodeRequest(2, 1, plan.stages[0], args={"hidden": 3}, chain=chain))


def test_what_an_answer_is_made_from() -> None:
    """All data that is here, and a parity unit for each that is not."""
    code = Mds(4, 3)
    arrived = np.array([True, False, True, True, True, True, True])
    used = code.used(arrived)
    assert used[:4].tolist() == arrived[:4].tolist() and used[4:].sum() == 1
    assert code.exact(arrived) and not code.complete(arrived)
