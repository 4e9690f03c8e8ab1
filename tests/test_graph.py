"""From a module to blocks and head: where it is cut, what is named when it cannot be."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.errors import ModelError, PlanError
from mpicoded.models import build
from mpicoded.network.graph import Chain, trace, whole_network
from networks import Apply, Branches, close, plan_of, run_plan


class Net(nn.Module):
    """conv, then ``function(self, map)``; c, d are 3x3 convolutions of 4 channels, p a 2x2 pool."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 3, padding=1)
        self.d = nn.Conv2d(4, 4, 3, padding=1)
        self.p = nn.MaxPool2d(2)
        self.adaptive = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4, 3)
        self.wide = nn.Linear(4 * 12 * 14, 3)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.spatial = nn.Parameter(torch.rand(1, 4, 12, 14))
        self.register_buffer("mean", torch.rand(1, 4, 1, 1))
        self.register_buffer("one", torch.rand(()))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.conv(x))


SHAPE = (2, 12, 14)


def traced(function: Callable[[Net, Tensor], Tensor]) -> Chain:
    """Trace, and check that blocks and head compute what the model does, split or not, batch 3."""
    torch.manual_seed(0)
    model = Net(function)
    x = torch.rand(3, *SHAPE)
    with torch.inference_mode():
        true = model.eval()(x.clone())
        chain = trace(model, SHAPE)
        assert close(whole_network(chain)(x), true, 1e-6)
        assert torch.equal(model(x.clone()), true), "tracing changed the model"
        if chain.blocks:
            assert close(run_plan(chain, plan_of(chain, "height", 2), x), true, 1e-5)
    return chain


def names(chain: Chain) -> list[str]:
    return [block.name for block in chain.blocks]


def swapped(a: Tensor, b: Tensor) -> Tensor:
    return torch.cat((b, a), 1)


def chunked(m: Net, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return swapped(a, b) + m.c(x)


def parted(m: Net, x: Tensor) -> Tensor:
    a, b = torch.split(x, [1, 3], dim=1)
    return m.c(swapped(a, b))


def flattened(m: Net, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return m.wide(m.d(m.c(x)).view(b, c * h * w))


# What can be cut: the blocks' names.
CUTTABLE: dict[str, tuple[Callable[[Net, Tensor], Tensor], list[str]]] = {
    "chain": (lambda m, x: m.d(torch.relu(m.c(x))), ["conv", "c", "d"]),
    "module twice": (lambda m, x: m.p(m.c(m.p(x))), ["conv", "p", "c", "p#2"]),
    "residual": (lambda m, x: torch.relu(m.d(m.c(x)) + x), ["conv", "d"]),
    "output used twice": (lambda m, x: m.c(x) * torch.sigmoid(m.d(x)), ["conv", "d"]),
    "x.relu_() unused": (lambda m, x: (x.relu_(), m.c(x))[1], ["conv", "c"]),
    "F.relu_(x) unused": (lambda m, x: (F.relu_(x), m.c(x))[1], ["conv", "c"]),
    "F.elu_(x) unused": (lambda m, x: (F.elu_(x), m.c(x))[1], ["conv", "c"]),
    "relu(inplace) unused": (lambda m, x: (m.relu(x), m.c(x))[1], ["conv", "c"]),
    "pre-activation": (lambda m, x: m.d(m.c(m.relu(x))) + x, ["conv", "d"]),
    "x.add_ after read": (lambda m, x: m.d(x) + (x.add_(1), m.c(x))[1], ["conv", "c"]),
    "1 - x": (lambda m, x: 1 - 2 / (x.abs() + 1), ["conv"]),
    "parameter": (lambda m, x: m.c(x * m.scale) * m.scale, ["conv", "c"]),
    "buffers": (lambda m, x: m.c((x - m.mean) / m.one) + m.mean, ["conv", "c"]),
    "new constant": (lambda m, x: m.c(x + torch.full((4, 1, 1), 2.0)), ["conv", "c"]),
    "cat kwargs": (lambda m, x: torch.cat(tensors=(m.c(x), m.d(x)), dim=-3), ["conv", "d"]),
    "cat axis": (lambda m, x: torch.cat((m.c(x), x, x), axis=1), ["conv", "c"]),
    "cat F.concat": (lambda m, x: torch.concat([m.c(x), x], 1), ["conv", "c"]),
    "softmax(-3)": (lambda m, x: m.c(x.softmax(-3)), ["conv", "c"]),
    "F.softmax(dim=1)": (lambda m, x: m.c(F.softmax(x, dim=1)), ["conv", "c"]),
    "chunk": (chunked, ["conv", "c"]),
    "split": (parted, ["conv", "c"]),
    "channels": (lambda m, x: m.c(torch.cat((x[:, 2:], x[:, :2, :, :]), 1)), ["conv", "c"]),
    "shuffle": (lambda m, x: m.c(F.channel_shuffle(x, 2)), ["conv"]),
    "shuffle by views": (
        lambda m, x: m.c(x.view(x.size(0), 2, 2, 12, 14).transpose(1, 2).reshape(-1, 4, 12, 14)),
        ["conv", "c"],
    ),
    "pixel_unshuffle": (lambda m, x: F.pixel_unshuffle(m.c(x), 2), ["conv", "c", "space_to_depth"]),
    "stacked by views": (
        lambda m, x: (
            x.view(-1, 4, 6, 2, 14, 1).permute(0, 3, 1, 5, 2, 4).contiguous().flatten(1, 3)
        ),
        ["conv", "space_to_depth"],
    ),
    "F.pad": (lambda m, x: m.c(F.pad(x, (1, 2, 0, 3), value=2.0)), ["conv", "c"]),
    "F.pad crops columns": (lambda m, x: m.c(F.pad(x, [-1, -2])), ["conv", "c"]),
    "F.batch_norm": (
        lambda m, x: m.c(F.batch_norm(x, m.mean.flatten(), m.scale.flatten())), ["conv", "c"]
    ),
    "F.prelu": (lambda m, x: m.c(F.prelu(x, m.c.bias)), ["conv", "c"]),
    "F.conv2d": (lambda m, x: F.conv2d(x, m.c.weight, None, padding="same"), ["conv", "conv2d"]),
    "F.conv2d grouped": (
        lambda m, x: F.conv2d(input=x, weight=m.c.weight[:, :1], bias=m.c.bias, groups=4),
        ["conv", "conv2d"],
    ),
    "computed weights": (lambda m, x: F.conv2d(x, m.c.weight / 2), ["conv", "conv2d"]),
    "computed constant": (lambda m, x: m.c(x * m.c.bias[:, None, None].exp()), ["conv", "c"]),
    "F.max_pool2d kwargs": (
        lambda m, x: F.max_pool2d(input=x, kernel_size=3, stride=2), ["conv", "max_pool2d"]
    ),
    "pool by size": (lambda m, x: F.avg_pool2d(m.c(x), x.size()[2:][1] // 7), ["conv", "c"]),
    "dropout": (lambda m, x: m.c(F.dropout(F.dropout2d(x, training=False), 0.5, False)), ["conv"]),
    "other calls": (
        lambda m, x: m.c(x.contiguous().clone().float().clamp(-1, 1).pow(2).maximum(x)),
        ["conv", "c"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CUTTABLE)
def test_blocks(case: str) -> None:
    function, expected = CUTTABLE[case]
    chain = traced(function)
    assert names(chain)[: len(expected)] == expected


# Where the head starts: the last block, and what the reason names.
HEADS: dict[str, tuple[Callable[[Net, Tensor], Tensor], list[str], str]] = {
    "adaptive pool": (
        lambda m, x: m.fc(m.adaptive(m.c(x)).flatten(1)), ["conv", "c"],
        "adaptive (AdaptiveAvgPool2d) mixes positions of the map",
    ),
    "flatten": (lambda m, x: m.wide(torch.flatten(x, 1)), ["conv"], "flatten (flatten) mixes all"),
    "mean": (lambda m, x: m.fc(m.c(x).mean((2, 3))), ["conv", "c"], "mean (mean) mixes all"),
    "mean, kept": (lambda m, x: x - x.mean((2, 3), keepdim=True), ["conv"], "mean (mean) mixes"),
    "max pool of all": (lambda m, x: F.adaptive_max_pool2d(x, 2), ["conv"], "adaptive_max_pool2d"),
    "size(0)": (lambda m, x: m.wide(m.c(x).view(x.size(0), -1)), ["conv", "c"], "view (view)"),
    "shape[0]": (lambda m, x: m.wide(m.c(x).reshape(x.shape[0], -1)), ["conv", "c"], "reshape"),
    "all of shape": (flattened, ["conv", "c", "d"], "view (view) mixes all"),
    "squeeze and excite": (
        lambda m, x: m.d(x * torch.sigmoid(m.adaptive(m.c(x)))), ["conv"],
        "adaptive (AdaptiveAvgPool2d)",
    ),
    "squeeze by a large kernel": (
        lambda m, x: m.d(x * F.avg_pool2d(x, (12, 14))), ["conv"],
        "mul (mul) joins maps of different sizes",
    ),
    "read again by the head": (
        lambda m, x: m.fc(m.c(m.p(m.c(x))).mean((2, 3)) + x.mean((2, 3))), ["conv"], "mean (mean)",
    ),
    "softmax over rows": (lambda m, x: m.c(x.softmax(2)), ["conv"], "softmax (softmax) mixes"),
    "cat of rows": (lambda m, x: torch.cat((x, x), 2), ["conv"], "cat (cat) mixes positions"),
    "upsample": (lambda m, x: F.interpolate(x, scale_factor=2), ["conv"], "interpolate (interpol"),
    "upsample to": (
        lambda m, x: F.interpolate(m.p(x), size=x.shape[2:]), ["conv", "p"], "interpolate (interpo"
    ),
    "spatial constant": (
        lambda m, x: m.c(x + m.spatial), ["conv"],
        "takes a constant of shape (1, 4, 12, 14), with a number for each position",
    ),
    "rows only": (lambda m, x: m.c(x[:, :, 1:]), ["conv"], "getitem (getitem) mixes positions"),
    "swapped axes": (lambda m, x: m.c(x.transpose(2, 3)), ["conv"], "transpose (transpose) mixes"),
    "other rows by views": (
        lambda m, x: m.c(x.view(-1, 4, 2, 6, 14).transpose(2, 3).reshape(-1, 4, 12, 14)),
        ["conv"], "view (view) mixes all",
    ),
    "reorg of Darknet": (
        lambda m, x: m.p(
            x.view(-1, 1, 12, 2, 14, 2).permute(0, 3, 5, 1, 2, 4).reshape(-1, 16, 6, 7)
        ),
        ["conv"], "view (view) mixes all",
    ),
    "reflect": (lambda m, x: m.c(F.pad(x, (1, 1, 1, 1), "reflect")), ["conv"], "pad (pad) mixes"),
    "active batch norm": (
        lambda m, x: m.c(F.batch_norm(x, None, None, training=True)), ["conv"],
        "batch_norm (batch_norm) takes the statistics of the whole map",
    ),
    "transposed weights": (
        lambda m, x: F.conv_transpose2d(x, m.c.weight), ["conv"], "conv_transpose2d"
    ),
    "in place on the head": (lambda m, x: m.fc(x.mean((2, 3)).relu_()), ["conv"], "mean (mean)"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
def test_head(case: str) -> None:
    function, expected, reason = HEADS[case]
    chain = traced(function)
    assert names(chain) == expected
    assert chain.limit.startswith("the head begins because ") and reason in chain.limit


MODULES: dict[str, tuple[nn.Module, str]] = {
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 4, 3), "1 (ConvTranspose2d) mixes positions"),
    "Upsample": (nn.Upsample(scale_factor=2), "1 (Upsample) mixes positions"),
    "PixelShuffle": (nn.PixelShuffle(2), "1 (PixelShuffle) mixes positions"),
    "GroupNorm": (nn.GroupNorm(2, 4), "1 (GroupNorm) mixes positions"),
    "InstanceNorm2d": (nn.InstanceNorm2d(4), "1 (InstanceNorm2d) mixes positions"),
    "BatchNorm2d without statistics": (
        nn.BatchNorm2d(4, track_running_stats=False),
        "1 (BatchNorm2d) takes the statistics of the whole map",
    ),
    "reflect padding": (
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        "1 (Conv2d) pads in mode 'reflect', which reads beyond a piece",
    ),
}


@pytest.mark.parametrize("case", MODULES)
def test_module_that_cannot_be_cut_is_named(case: str) -> None:
    module, reason = MODULES[case]
    model = nn.Sequential(nn.Conv2d(2, 4, 3), module).eval()
    chain = trace(model, SHAPE)
    assert names(chain) == ["0"] and reason in chain.limit
    x = torch.rand(3, *SHAPE)
    with torch.inference_mode():
        assert close(run_plan(chain, plan_of(chain, "width", 3), x), model(x), 1e-5)


def test_resnet_blocks_stay_whole() -> None:
    chain = trace(build("resnet18", {"stem": "cifar", "classes": 10}), (3, 32, 32))
    layers = [f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)]
    assert names(chain) == ["conv1", *layers]
    assert [op.name for op in chain.head.ops] == ["avgpool", "flatten", "fc"]
    x = torch.rand(1, 3, 32, 32)
    model = build("resnet18", {"stem": "imagenet", "classes": 10})
    chain = trace(model, (3, 32, 32))
    assert names(chain) == ["conv1", "maxpool", *layers]
    with torch.inference_mode():
        plan = plan_of(chain, "tiles", 4, 0, "layer1.0", "layer2.1", tiles=(2, 2))
        assert close(run_plan(chain, plan, x), model(x), 1e-5)


def test_inception_block_stays_whole() -> None:
    def branch(*kernels: int) -> nn.Module:
        return nn.Sequential(*(nn.Conv2d(4, 4, k, padding=k // 2) for k in kernels))

    pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(4, 4, 1))
    model = nn.Sequential()
    model.add_module("stem", nn.Conv2d(2, 4, 3))
    model.add_module("mixed", Branches([branch(1), branch(1, 3), branch(1, 5), pooled], "args"))
    model.add_module("pool", Apply(lambda x: F.max_pool2d(x, 2)))
    assert names(trace(model, SHAPE)) == ["stem", "mixed", "pool.max_pool2d"]


def test_activations_belong_to_the_block_before() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(nn.Sequential(nn.Tanh()))
    )
    (block,) = trace(model, SHAPE).blocks
    assert [op.name for op in block.ops] == ["_0", "_1", "_2", "_3_0_0"]


def test_what_comes_first_belongs_to_the_block_behind() -> None:
    class Normalised(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward((x[:, :2] - 0.5) / 0.2)

    chain = trace(Normalised(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)), SHAPE)
    assert names(chain) == ["0", "1"] and len(chain.blocks[0].ops) == 4
    assert chain.blocks[0].entry == chain.head_after(-1).entry


def test_not_a_number_is_no_difference() -> None:
    chain = trace(Apply(lambda x: F.max_pool2d(torch.log(x), 2) * float("inf")), SHAPE)
    assert len(chain.blocks) == 1
    assert trace(Apply(lambda x: x.flatten(1).argmax(1)), SHAPE).output_shape == ()
    assert trace(Apply(lambda x: x.flatten(1) > 0), SHAPE).output_shape == (336,)


def test_features_without_a_head() -> None:
    chain = trace(nn.Sequential(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2)), SHAPE)
    assert chain.head.ops == () and chain.output_shape == (4, 5, 6)
    x = torch.rand(1, 4, 5, 6)
    assert chain.head(x) is x and chain.limit == "every block of the model can be cut"


def test_a_subclass_of_conv2d() -> None:
    class Conv2dSame(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, self.bias, self.stride, "same", self.dilation)

    model = nn.Sequential(Conv2dSame(2, 4, 4), nn.ReLU())
    chain = trace(model, SHAPE)
    assert names(chain) == ["0.conv2d"]
    x = torch.rand(1, *SHAPE)
    with torch.inference_mode():
        assert close(run_plan(chain, plan_of(chain, "width", 5), x), model(x), 1e-5)


def test_a_model_that_is_one_layer() -> None:
    for model in (nn.Conv2d(2, 4, 3), nn.AvgPool2d(2), nn.MaxPool2d(2)):
        assert len(trace(model, SHAPE).blocks) == 1
    chain = trace(nn.Identity(), SHAPE)
    x = torch.rand(1, *SHAPE)
    assert chain.blocks == () and whole_network(chain)(x) is x


def test_float64_model() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(480, 2)).double()
    chain = trace(model, SHAPE)
    x = torch.rand(1, *SHAPE, dtype=torch.float64)
    with torch.inference_mode():
        assert close(run_plan(chain, plan_of(chain, "width", 3), x), model(x), 1e-10)


def test_nothing_to_cut() -> None:
    chain = trace(build("base-mlp", {}), (1, 28, 28))
    assert chain.blocks == ()
    with pytest.raises(PlanError, match=r"flatten.*mixes all positions.*split = \"batch\""):
        plan_of(chain, "width", 2)
    (stage,) = plan_of(chain, "batch", 2, 1, batch=2).stages
    assert stage.split == "batch" and stage.output_shape == (10,)
    assert stage.parity_flops == 2 * (784 * 200 + 200 * 100 + 100 * 10)


@pytest.mark.parametrize("case", [*CUTTABLE, *HEADS])
def test_everything_pickles_to_the_same_bits(case: str) -> None:
    function = CUTTABLE[case][0] if case in CUTTABLE else HEADS[case][0]
    chain = trace(Net(function), SHAPE)
    head = whole_network(chain)
    again = pickle.loads(pickle.dumps(head))
    x = torch.rand(2, *SHAPE)
    with torch.inference_mode():
        assert torch.equal(again(x), head(x))


def test_tracing_leaves_the_random_numbers_alone() -> None:
    model = Net(CUTTABLE["F.conv2d"][0])
    before = torch.random.get_rng_state()
    trace(model, SHAPE)
    assert torch.equal(torch.random.get_rng_state(), before)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Two(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask


class Many(nn.Module):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> object:
        return {"a": x} if self.kind is dict else self.kind((x, x))


class Assigning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0
        return x


ERRORS: dict[str, tuple[nn.Module, str]] = {
    "branches": (
        Branching(),
        r"torch.fx cannot follow Branching: its forward\(\) branches on values of tensors.* "
        r"\(test_graph.py, line \d+: return x if x.sum\(\) > 0 else -x\).*factory",
    ),
    "assigns": (Assigning(), r"torch.fx cannot follow Assigning: .*item assignment"),
    "two inputs": (Two(), r"Two takes 2 inputs \(x, mask\); it must take one: give a factory"),
    "tuple": (Many(tuple), r"Many returns a tuple; it must return one tensor: give a factory"),
    "list": (Many(list), r"Many returns a list; it must return one tensor"),
    "dict": (Many(dict), r"Many returns a dict; it must return one tensor"),
    "pair": (nn.MaxPool2d(2, return_indices=True), r"MaxPool2d returns a tuple"),
    "wrong shape": (nn.Conv2d(3, 4, 3), r"Conv2d does not take 2 images of shape \(2, 12, 14\).*3"),
    "fixed batch": (
        Apply(lambda x: x.view(1, 336) * 1),
        r"Apply takes 1 image at a time and not 2: .*write x.flatten\(1\)",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    model, text = ERRORS[case]
    with pytest.raises(ModelError, match=text):
        trace(model.eval(), (2, 12, 14))


def test_unknown_block_lists_the_blocks() -> None:
    chain = trace(build("lenet5", {}), (1, 32, 32))
    with pytest.raises(ModelError, match=r"no block 'pool3'.*conv1, pool1, conv2, pool2 .*flatten"):
        chain.index("pool3")
    assert [chain.index(name) for name in names(chain)] == [0, 1, 2, 3]
    assert [op.name for op in chain.head_after(1).ops][:2] == ["conv2", "relu2"]
