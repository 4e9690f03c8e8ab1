"""Random networks and plans for tests, small reference blocks, and a plan's run without MPI."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range
from mpicoded.network.graph import Chain
from mpicoded.network.pieces import shard_program
from mpicoded.network.program import Program
from mpicoded.plan import Plan, Stage
from mpicoded.split import SPLITS, Request
from units import cut, stitch

Random = random.Random
Maker = Callable[[Random, int], nn.Module]
LARGEST = 40  # rows or columns of any map

torch.set_num_threads(1)  # the maps are small


class Apply(nn.Module):
    """A function as a module; torch.fx looks into it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Scale(nn.Module):
    """A number for each channel, from a parameter and a buffer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels, 1, 1) + 0.5)
        self.register_buffer("shift", torch.rand(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale - self.shift


class Residual(nn.Module):
    """A sum of a body and a shortcut, written in several ways."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, form: str) -> None:
        super().__init__()
        self.body, self.shortcut, self.form = body, shortcut, form
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.body(x), self.shortcut(x)
        if self.form == "+":
            return torch.relu(y + z)
        if self.form == "+=":
            y += z
            return self.relu(y)
        if self.form == "add_":
            y.add_(z)
            y.relu_()
            return y
        return F.relu(torch.add(y, z), inplace=True) * 0.5 + z


class Branches(nn.Module):
    """Inception: branches side by side, concatenated."""

    def __init__(self, branches: Sequence[nn.Module], form: str) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        maps = [branch(x) for branch in self.branches]
        if self.form == "kwargs":
            return torch.cat(tensors=maps, dim=-3)
        return torch.cat(maps, 1) if self.form == "args" else torch.cat(maps, axis=1)


class Halves(nn.Module):
    """Channels in two halves; one is changed, as in ShuffleNet V2."""

    def __init__(self, body: nn.Module, form: str) -> None:
        super().__init__()
        self.body, self.form = body, form

    def forward(self, x: Tensor) -> Tensor:
        if self.form == "chunk":
            a, b = x.chunk(2, 1)
        elif self.form == "split":
            a, b = torch.split(x, x.shape[1] // 2, dim=1)
        else:
            c = x.size(1) // 2
            a, b = x[:, :c], x[:, c:, :, :]
        return torch.cat((b, self.body(a)), dim=1)


def _pair(r: Random, low: int, high: int) -> tuple[int, int]:
    same = r.randint(low, high)
    return (same, same) if r.random() < 0.6 else (r.randint(low, high), r.randint(low, high))


def conv(r: Random, channels: int, stride: tuple[int, int] | None = None) -> nn.Module:
    """A convolution of any kind; "same" padding where it has no stride."""
    kernel = _pair(r, 1, 7) if r.random() < 0.5 else _pair(r, 1, 3)
    stride = stride or (1, 1 if r.random() < 0.6 else 3)
    dilation = _pair(r, 1, 2)
    padding: tuple[int, int] | str = tuple(r.randint(0, k + 1) for k in kernel)  # type: ignore[assignment]
    if stride == (1, 1) and r.random() < 0.4:
        padding = r.choice(["same", "same", "valid"])
    groups = r.choice([1, 1, 1, 2, channels])
    groups = groups if channels % groups == 0 else 1
    width = groups * r.randint(1, 4) if groups < channels else channels
    return nn.Conv2d(
        channels, width, kernel, stride, padding, dilation, groups, bias=r.random() < 0.6
    )  # fmt: skip


def norm(r: Random, channels: int) -> nn.Module:
    """Batch norm that has seen something."""
    bn = nn.BatchNorm2d(channels, affine=r.random() < 0.8)
    assert bn.running_mean is not None and bn.running_var is not None
    nn.init.normal_(bn.running_mean)
    nn.init.uniform_(bn.running_var, 0.5, 2.0)
    if bn.affine:
        nn.init.normal_(bn.weight)
        nn.init.normal_(bn.bias)
    return bn


def activation(r: Random, channels: int) -> nn.Module:
    """Anything that works position by position."""
    functions: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.relu_(),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.leaky_relu(input=x, negative_slope=0.2),
        lambda x: 1 - x,
        lambda x: x.mul_(0.5).add_(1),
        lambda x: torch.clamp(x, min=-1, max=1),
        lambda x: torch.maximum(x, -x),
        lambda x: x.softmax(1),
        lambda x: F.dropout(x, training=False) / 2,
        F.hardswish,
        F.gelu,
    ]
    modules: list[nn.Module] = [
        nn.ReLU(inplace=True), nn.ReLU(), nn.PReLU(channels), nn.SiLU(inplace=True), nn.Tanh(),
        nn.Softmax(dim=-3), nn.Sequential(nn.Identity(), nn.Sequential(nn.ELU(inplace=True))),
        nn.Dropout2d(), nn.LocalResponseNorm(3), Scale(channels),
    ]  # fmt: skip
    return Apply(r.choice(functions)) if r.random() < 0.5 else r.choice(modules)


def pool(r: Random, channels: int) -> nn.Module:
    """Max or average, as a module or a function, with every padding rule."""
    kernel = _pair(r, 1, 4)
    stride = _pair(r, 1, 3)
    padding = (r.randint(0, kernel[0] // 2), r.randint(0, kernel[1] // 2))
    ceil = r.random() < 0.4
    if r.random() < 0.5:
        dilation = _pair(r, 1, 2)
        if r.random() < 0.4:
            return Apply(lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil))
        return nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil)
    counted, divisor = r.random() < 0.5, r.choice([None, None, 3])
    if r.random() < 0.4:
        return Apply(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted, divisor))
    return nn.AvgPool2d(kernel, stride, padding, ceil, counted, divisor)


def layer(r: Random, channels: int) -> nn.Module:
    """A convolution with what usually follows."""
    made = conv(r, channels, r.choice([None, (1, 1), (2, 2)]))
    width = made.out_channels
    assert isinstance(width, int)
    parts: list[nn.Module] = [made]
    if r.random() < 0.4:
        parts.append(norm(r, width))
    if r.random() < 0.7:
        parts.append(activation(r, width))
    return nn.Sequential(*parts)


def sized(channels: int, width: int, kernel: int, stride: int, dilation: int = 1) -> nn.Conv2d:
    """A convolution with output ceil(size / stride)."""
    pad = dilation * (kernel - 1) // 2
    return nn.Conv2d(channels, width, kernel, stride, pad, dilation)


def residual(r: Random, channels: int) -> nn.Module:
    """A residual block; its shortcut is strided, a 1x1 convolution, or nothing."""
    stride = r.choice([1, 1, 2])
    width = r.randint(1, 4) if stride == 2 else channels
    first = sized(channels, width, r.choice([1, 3, 5]), stride, r.choice([1, 2]))
    second = sized(width, width, r.choice([1, 3, 7]), 1)
    body = nn.Sequential(first, norm(r, width), activation(r, width), second)
    plain = stride == 1 and r.random() < 0.6
    shortcut = nn.Identity() if plain else sized(channels, width, 1, stride)
    return Residual(body, shortcut, r.choice(["+", "+=", "add_", "twice"]))


def inception(r: Random, channels: int) -> nn.Module:
    """Two to four branches with different kernels."""
    stride = r.choice([1, 1, 2])
    branches: list[nn.Module] = []
    for kernel in r.sample([1, 3, 5, 7], r.randint(2, 4)):
        last = sized(channels, r.randint(1, 2), kernel, stride, r.choice([1, 2]))
        pools = [nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(3, 1, 1, count_include_pad=False)]
        before = r.choice([nn.Identity(), sized(channels, channels, 3, 1), *pools])
        branches.append(nn.Sequential(before, last))
    return Branches(branches, r.choice(["args", "kwargs", "axis"]))


def halves(r: Random, channels: int) -> nn.Module:
    """Half of the channels goes round the body; with an odd number, a plain layer."""
    if channels % 2:
        return layer(r, channels)
    body = sized(channels // 2, channels // 2, 3, 1)
    return Halves(body, r.choice(["chunk", "split", "slices"]))


PARTS: tuple[Maker, ...] = (
    layer,
    layer,
    layer,
    pool,
    pool,
    residual,
    inception,
    halves,
    activation,
)


def random_network(
    seed: int, parts: Sequence[Maker] = PARTS, most: int = 6, sizes: tuple[int, int] = (5, 24)
) -> tuple[nn.Module, tuple[int, ...]]:
    """Return a network of 1 to ``most`` parts, in eval mode, and its input shape (C, H, W)."""
    r = random.Random(seed)
    torch.manual_seed(seed)
    shape = (r.randint(1, 4), r.randint(*sizes), r.randint(*sizes))
    model, x = nn.Sequential(), torch.rand(1, *shape)
    for _ in range(r.randint(1, most)):
        part = r.choice(parts)(r, x.shape[1]).eval()
        try:
            with torch.no_grad():
                y = part(x.clone())
        except RuntimeError:  # the map is too small for this part
            continue
        if min(y.shape[2:]) >= 1 and max(y.shape[2:]) <= LARGEST and bool(y.isfinite().all()):
            model.append(part)
            x = y
    if not any(isinstance(m, nn.Conv2d | nn.MaxPool2d) for m in model.modules()):
        model.append(nn.Conv2d(x.shape[1], 2, 3, padding=1))
    return model.eval(), shape


def random_request(seed: int, chain: Chain) -> tuple[str, Request]:
    """Return a split of the chain's blocks into 1 to 3 stages and 1 to n shards."""
    r = random.Random(seed)
    last = len(chain.blocks) - 1
    ends = sorted(r.sample(range(last), min(last, r.randint(0, 2)))) + [last]
    maps = [chain.shapes[chain.blocks[end].exit] for end in ends]
    height, width = min(m[1] for m in maps), min(m[2] for m in maps)
    split = r.choice(["height", "width", "tiles"])
    tiles = (r.randint(1, min(height, 5)), r.randint(1, min(width, 5)))
    k = {"height": height, "width": width}.get(split, 0)
    k = (k if r.random() < 0.2 else r.randint(1, k)) if k else tiles[0] * tiles[1]
    weighted = split != "tiles" and r.random() < 0.4
    weights = tuple(r.uniform(0.1, 3) for _ in range(k)) if weighted else None
    names = tuple(chain.blocks[end].name for end in ends)
    return split, Request(
        chain, k, 0, names, tiles if split == "tiles" else None, weights, batch=2
    )  # fmt: skip


def plan_of(chain: Chain, split: str, k: int, r: int = 0, *stages: str, **more: object) -> Plan:
    """Return the plan; ``more`` is what else a Request takes."""
    return SPLITS[split].plan(Request(chain, k, r, stages, **more))  # type: ignore[arg-type]


def programs(chain: Chain, stage: Stage) -> list[Program]:
    """Return the programs of a stage's data units."""
    return [shard_program(chain, stage.first, stage.last, shard.writes) for shard in stage.shards]


def interior(chain: Chain, stage: Stage) -> Program:
    """Return the program that a parity unit runs."""
    rows, cols = stage.unit_output
    unbounded = (stage.grid[0] > 1, stage.grid[1] > 1)
    box = Box(Range(0, rows), Range(0, cols))
    return shard_program(chain, stage.first, stage.last, box, unbounded)


def run_stage(chain: Chain, stage: Stage, x: Tensor) -> Tensor:
    """Cut, compute every unit, stitch."""
    units = zip(programs(chain, stage), cut(x, stage), strict=True)
    return stitch([program(window) for program, window in units], stage)


def run_plan(chain: Chain, plan: Plan, x: Tensor) -> Tensor:
    """Run every stage of the plan and the head, in this process."""
    for stage in plan.stages:
        x = run_stage(chain, stage, x)
    result: Tensor = chain.head_after(plan.stages[-1].last)(x)
    return result


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether a is b, up to ``tolerance`` of b's largest number."""
    finite = b[b.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=0, atol=tolerance * max(scale, 1e-30), equal_nan=True
    )


def odd() -> nn.Module:
    """Odd and even kernels, strides, dilation, uneven padding, a residual block and branches."""
    body = nn.Sequential(nn.Conv2d(6, 6, 7, padding=3), nn.ReLU(), nn.Conv2d(6, 6, 5, padding=2))
    branches: list[nn.Module] = [
        nn.Conv2d(6, 3, (1, 9), 2, padding=(0, 4)),
        nn.Conv2d(6, 2, 9, 2, padding=4),
        nn.Sequential(nn.AvgPool2d(3, 1, 1), nn.Conv2d(6, 3, 3, 2, padding=2, dilation=2)),
    ]
    return nn.Sequential(
        nn.Conv2d(3, 6, (5, 3), (2, 1), padding=(4, 1)),
        nn.ReLU(),
        Residual(body, nn.Identity(), "+"),
        nn.MaxPool2d(3, 1),
        nn.Conv2d(6, 6, 4, padding=2),
        Branches(branches, "args"),
        nn.Conv2d(8, 4, 11, padding=5),
    )


def mixed(chain: Chain, workers: int, seed: int, batch: int = 1) -> Plan:
    """Return stages of unlike cuts, k, shares and homes; some blocks, or all, are in none."""
    r, stages, first = random.Random(seed), list[Stage](), 0
    while first < len(chain.blocks) and r.random() < 0.95:
        first += r.random() < 0.1  # the leader's own
        last = r.randint(first, len(chain.blocks) - 1) if first < len(chain.blocks) else first
        with suppress(PlanError, IndexError):
            stages.append(_one_stage(chain, r, first, last, workers, batch))
            first = last
        first += 1
    base = plan_of(chain, "height", 1, batch=batch)
    k = max((stage.k for stage in stages), default=1)
    return replace(base, stages=tuple(stages), k=k, split="mixed")


def _one_stage(chain: Chain, r: Random, first: int, last: int, workers: int, batch: int) -> Stage:
    split, name = r.choice(["height", "width", "tiles", "channels"]), chain.blocks[last].name
    k = r.randint(1, workers + 2)
    tiles = (2, (k + 1) // 2) if split == "tiles" else None
    k = tiles[0] * tiles[1] if tiles else k
    weights = tuple(r.uniform(1, 4) for _ in range(k)) if not tiles and r.random() < 0.5 else None
    more = {"weights": weights, "tiles": tiles, "batch": batch, "first": first}
    stage = plan_of(chain, split, k, 0, name, **more).stages[0]
    ranks = r.sample(range(1, workers + 1), workers)
    ranks = [ranks[i % workers] for i in range(k)] if k > workers else ranks[:k]
    return replace(stage, ranks=tuple(ranks))
