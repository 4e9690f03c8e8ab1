"""forward() may ask sizes; how many images there are stays open, and nothing else is guessed."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import mul

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.errors import ModelError
from mpicoded.network.graph import trace, whole_network
from networks import close, plan_of, run_plan

SHAPE = (2, 9, 10)


class Net(nn.Module):
    """``c`` keeps the size of a map, ``fc`` takes all of its features and ``g`` its channels."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.c = nn.Conv2d(2, 4, 3, padding=1)
        self.fc, self.g = nn.Linear(4 * 9 * 10, 5), nn.Linear(4, 5)
        self.register_buffer("mean", torch.rand(1, 4, 1, 1))
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, mask: Tensor | None = None, *rest: Tensor, k: int = 1) -> Tensor:
        return self.function(self, x) if mask is None and k == 1 and not rest else x


def features(x: Tensor) -> int:
    n = 1
    for size in x.size()[1:]:
        n *= size
    return n


def same(m: Net, x: Tensor) -> Tensor:
    pad = max((math.ceil(x.shape[-1] / 3) - 1) * 3 + 3 - x.shape[-1], 0)
    if pad > 0:
        x = F.pad(x, (pad // 2, pad - pad // 2, 0, 0))
    return m.fc(m.c(x)[..., :9, :10].flatten(1))


def checked(m: Net, x: Tensor) -> Tensor:
    assert x.dim() == 4 and x.ndim == 4 and len(x.shape) == 4 and x.shape[1] == 2, "two channels"
    if x.dtype is not torch.float32 or not x.is_floating_point():
        raise TypeError(f"not {x.dtype}")
    return m.fc(m.c(x).flatten(1))


def alike(m: Net, x: Tensor) -> Tensor:
    y = m.c(x)
    z = y.relu()
    if y.shape != z.shape:
        y = F.interpolate(y, z.shape[2:])
    assert y.size() == z.size() and y.size(0) == x.size(0)
    return m.fc((y + z).flatten(1))


def merged(m: Net, x: Tensor) -> Tensor:
    b, c, h, w = (y := m.c(x)).shape
    y = F.avg_pool2d(y.view(b * c, 1, h, w), 3).view(b, c, h // 3, w // 3)
    return m.g(y.mean((2, 3)))


def attention(m: Net, x: Tensor) -> Tensor:
    b, c, h, w = (y := m.c(x)).size()
    q = y.flatten(2)
    return m.fc((q @ (q.mT @ q / math.sqrt(c)).softmax(-1)).view(b, c, h, w).flatten(1))


RIGHT: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "loop over sizes": lambda m, x: m.fc(m.c(x).view(-1, features(m.c(x)))),
    "padding by size": same,
    "checks": checked,
    "shapes are equal": alike,
    "images and channels merged": merged,
    "attention": attention,
    "np.prod": lambda m, x: m.fc(m.c(x).view(-1, np.prod(m.c(x).shape[1:]))),
    "reduce": lambda m, x: m.fc(m.c(x).view(len(x.shape[:1]) * -1, reduce(mul, [4, *x.shape[2:]]))),
    "numel of one": lambda m, x: m.fc(m.c(x).view(-1, m.c(x)[0].numel())),
    "numel by images": lambda m, x: m.fc((y := m.c(x)).view(-1, y.numel() // y.size(0))),
    "size().numel()": lambda m, x: m.fc((y := m.c(x)).view(y.size(dim=0), y.shape[1:].numel())),
    "starred": lambda m, x: m.fc((y := m.c(x)).reshape(*y.shape[:1], -1)),
    "new zeros": lambda m, x: m.fc((m.c(x) + x.new_zeros(x.size(0), 4, 1, 1)).flatten(1)),
    "zeros": lambda m, x: m.fc((m.c(x) + torch.zeros(x.size(0), 4, 1, 1)).flatten(1)),
    "arange": lambda m, x: m.fc((m.c(x) * torch.arange(x.shape[3], device=x.device)).flatten(1)),
    "buffer expanded": lambda m, x: m.fc((m.c(x) * m.mean.expand(len(x.shape) * 0 + x.size(0), -1,
                                                                 9, 10)).flatten(1)),
    "loop over parts": lambda m, x: m.fc(torch.cat([y.relu() for y in m.c(x).chunk(2, 1)],
                                                   1).flatten(1)),
    "loop over channels": lambda m, x: m.fc(torch.cat([m.c(x)[:, i : i + 1] for i in range(4)],
                                                      1).flatten(1)),
    "branch on a weight": lambda m, x: m.fc(m.c(x).flatten(1)) * (1 if m.gain > 0 else -1),
    "weight as a number": lambda m, x: m.fc(m.c(x).flatten(1)) * float(m.gain),
}  # fmt: skip


@pytest.mark.parametrize("case", RIGHT)
def test_right_for_any_number_of_images(case: str) -> None:
    torch.manual_seed(0)
    model = Net(RIGHT[case]).eval()
    with torch.inference_mode():
        chain = trace(model, SHAPE)
        for count in (1, 2, 4, 7):
            x = torch.rand(count, *SHAPE)
            assert close(whole_network(chain)(x), model(x), 1e-5)
            if chain.blocks:
                assert close(run_plan(chain, plan_of(chain, "height", 2), x), model(x), 1e-5)


def assigned(m: Net, x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def autocast(m: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = m.c(x)
    return m.fc(x.float().flatten(1))


IMAGES = "branches on how many images there are, or needs it as a number"
VALUES = "branches on values of tensors, or turns them into numbers"
REFUSED: dict[str, tuple[Callable[[Net, Tensor], object], str]] = {
    "one image": (lambda m, x: m.c(x)[:1] if x.shape[0] == 1 else m.c(x), IMAGES),
    "loop over images": (lambda m, x: torch.stack([m.c(y[None])[0] for y in x]), IMAGES),
    "range of images": (lambda m, x: torch.cat([x[i : i + 1] for i in range(len(x))]), IMAGES),
    "int": (lambda m, x: m.c(x).view(int(x.size(0)), -1), IMAGES),
    "values": (lambda m, x: m.c(x) if x.max() > 0 else x, VALUES),
    "value": (lambda m, x: x * float(x.mean()), VALUES),
    "item": (lambda m, x: x if x.max().item() > 0 else -x, VALUES),
    "assigns": (assigned, r"assigns to a part of a tensor \(item assignment\)"),
    "autocast": (autocast, r"runs under torch\.autocast \(leave that out\)"),
    "fixed": (
        lambda m, x: m.fc(m.c(x).view(1, -1)), r"takes 1 image at a time and not 2: .*x\.flatten"
    ),
    "fixed two": (
        lambda m, x: m.fc(m.c(x).view(2, -1)), "takes 2 images at a time and not 3: .*x.view"
    ),
    "no answer for each": (
        lambda m, x: x.mean((0, 2, 3), keepdim=True), r"returns \(1, 2, 1, 1\) for 2 images"
    ),
    "nothing": (lambda m, x: None, "returns a NoneType; it must return one tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_its_line(case: str) -> None:
    function, text = REFUSED[case]
    with pytest.raises(ModelError, match=text) as error:
        trace(Net(function).eval(), SHAPE)  # type: ignore[arg-type]
    if "returns" not in text:
        assert "(test_tracer.py, line " in str(error.value)
    assert "\n" not in str(error.value)
