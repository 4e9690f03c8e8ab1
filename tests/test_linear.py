"""Which operations are linear, where blocks are opened, and shards of one size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from digits import UNTRAINED
from mpicoded.deploy import deploy
from mpicoded.errors import JobError, PlanError
from mpicoded.geometry import Range, split_alike
from mpicoded.job import Job
from mpicoded.models import build
from mpicoded.network.filters import Filters
from mpicoded.network.graph import trace, whole_network
from mpicoded.network.linear import split_at_activations, why_not_linear


def blocks(model: nn.Module, shape: tuple[int, int, int]) -> list[str]:
    """Names of the opened chain's blocks; those that are not linear in brackets."""
    chain = split_at_activations(trace(model.eval(), shape))
    return [f"({b.name})" if why_not_linear(b.ops, b.entry) else b.name for b in chain.blocks]


def test_opened_lenet() -> None:
    """Each activation is a block of its own."""
    assert blocks(build("lenet5", {}), (1, 32, 32)) == [
        *("conv1", "(conv1:relu1)", "(pool1)", "conv2", "(conv2:relu2)", "(pool2)"),
    ]


def test_batch_norm_stays_with_its_convolution() -> None:
    """And a residual block stays whole."""
    assert blocks(build("vgg9", {}), (3, 32, 32))[:2] == ["features.0", "(features.0:features_2)"]
    names = blocks(build("resnet18", {"classes": 10}), (3, 32, 32))
    assert names[:2] == ["conv1", "(conv1:relu)"] and "(layer1.0)" in names


def test_opened_chain_computes_the_same() -> None:
    """The operations and their order are those of before."""
    torch.manual_seed(0)
    chain = trace(build("vgg9", {}).eval(), (3, 32, 32))
    x = torch.randn(1, 3, 32, 32)
    assert whole_network(split_at_activations(chain)).ops == whole_network(chain).ops
    first, rest = (
        split_at_activations(chain).between(0, 1),
        split_at_activations(chain).head_after(0),
    )
    assert first is not None
    assert torch.equal(rest(first(x)), whole_network(chain)(x))
    assert split_at_activations(chain).between(2, 2) is None


class Row(nn.Module):
    """One function between two convolutions that do not pad."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.one, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, 9, 9) -> (B, 2, 7, 7)."""
        return self.two(self.function(self.one(x)))  # type: ignore[no-any-return]


SCALE = torch.rand(4, 1, 1)
LINEAR = {
    "shift": lambda x: x + 3,
    "scale": lambda x: x * 0.5 / 2,
    "per channel": lambda x: SCALE * x - SCALE,
    "sum": lambda x: x + x.neg(),
    "channels": lambda x: torch.cat((x[:, 2:], x[:, :2]), 1),
    "mean": lambda x: F.avg_pool2d(x, 3, 1, 1),
}
CURVED = {
    "relu": torch.relu,
    "product": lambda x: x * x,
    "quotient": lambda x: 1 / x,
    "leaky": lambda x: F.leaky_relu(x, 0.1),
    "clamp": lambda x: x.clamp(0, 1),
    "abs": torch.abs,
    "softmax": lambda x: x.softmax(1),
    "max": lambda x: F.max_pool2d(x, 3, 1, 1),
    "power": lambda x: x**2,
}


@pytest.mark.parametrize("name", [*LINEAR, *CURVED])
def test_linear_means_linear(name: str) -> None:
    """What is called linear adds up, up to a constant; what is not does not."""
    torch.manual_seed(1)
    net = Row((LINEAR | CURVED)[name])
    chain = trace(net.requires_grad_(False), (2, 9, 9))
    network = whole_network(chain)
    x, y = torch.randn(2, 1, 2, 9, 9)
    zero = network(torch.zeros_like(x))
    together = network(2 * x - y)
    apart = 2 * network(x) - network(y)
    if name in LINEAR:
        assert why_not_linear(network.ops, network.entry) == ""
        assert torch.allclose(together, apart, atol=1e-4)
    else:
        assert "is not linear" in why_not_linear(network.ops, network.entry)
        assert not torch.allclose(together - zero, apart - zero, atol=1e-2)


def test_borders_of_an_average() -> None:
    """A divisor that counts only what is inside is another at the border."""
    pools = (
        nn.AvgPool2d(3, 1, 1),
        nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        nn.AvgPool2d(2, ceil_mode=True),
    )
    whys = []
    for pool in pools:
        chain = trace(nn.Sequential(pool), (2, 9, 9))
        (block,) = chain.blocks
        whys.append(why_not_linear(block.ops, block.entry, (False, True)))
    assert whys[0] == ""
    assert all("fewer positions at the image's border" in why for why in whys[1:])


@pytest.mark.parametrize("size", range(1, 24))
def test_shards_of_one_size(size: int) -> None:
    """They cover all, in order, each has positions of its own, and none is larger than needed."""
    for parts in range(1, size + 1):
        ranges = split_alike(size, parts, "width")
        assert {r.size for r in ranges} == {-(-size // parts)}
        assert ranges[0].start == 0 and ranges[-1].stop == size
        for a, b in zip(ranges[:-1], ranges[1:], strict=True):
            assert a.start < b.start <= a.stop
    with pytest.raises(PlanError, match="k = "):
        split_alike(size, size + 1, "width")


def test_filters_with_batch_norm() -> None:
    """All channels are the block's own output; sums of groups are sums of channels."""
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(7)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    model = nn.Sequential(nn.Conv2d(3, 7, 3, padding="same", stride=1), norm, nn.ReLU())
    chain = split_at_activations(trace(model.requires_grad_(False), (3, 8, 9)))
    filters = Filters.of(chain, 0, 0)
    x = torch.randn(2, 3, 8, 9)
    right = norm(model[0](x))
    assert torch.allclose(filters.program(Range(0, 7))(x), right, atol=1e-5)
    assert torch.allclose(filters.program(Range(2, 5))(x), right[:, 2:5], atol=1e-5)
    both = filters.combined((Range(0, 4), Range(4, 7)), (2.0, -1.0))(x)
    wanted = 2 * right[:, :4]
    wanted[:, :3] -= right[:, 4:]
    assert torch.allclose(both, wanted, atol=1e-4)


def test_filters_of_something_else() -> None:
    """What keeps the stage from being split is named."""
    chain = trace(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (1, 8, 8))
    with pytest.raises(PlanError, match=r"_1 \(ReLU\) cannot be split by channels"):
        Filters.of(chain, 0, 0)


JOB = f"""\
{UNTRAINED}
[plan]
split = "width"
linear = true
[code]
name = "mds"
k = 4
r = 2
"""


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        (('plan.split="batch"', "input.batch=4"), r"linear: cuts a network.*leave it out"),
        (("plan.weights=[1.0, 1.0, 1.0, 2.0]",), r"weights: make shards of many sizes"),
    ],
)
def test_what_does_not_go_with_linear(tmp_path: Path, sets: tuple[str, ...], why: str) -> None:
    """Said before anything is read."""
    (tmp_path / "job.toml").write_text(JOB)
    with pytest.raises(JobError, match=why):
        Job.read(tmp_path / "job.toml", sets)


def test_a_job_with_linear_stages(tmp_path: Path) -> None:
    """By default every convolution; channels need no flag."""
    (tmp_path / "job.toml").write_text(JOB)
    for sets in ((), ('plan.split="channels"', "plan.linear=false")):
        plan = deploy(Job.read(tmp_path / "job.toml", sets), (1, 32, 32)).plan
        assert [stage.name for stage in plan.stages] == ["conv1", "conv2"]
