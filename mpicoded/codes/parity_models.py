"""The networks that a parity worker runs: the base model's layers anew, or small students.

A `Copy` has the layers of the base model and weights of its own, which start at random: the
published parity model (Kosaian et al., SOSP 2019). `Students` take a parity image apart into its k
views (:mod:`mpicoded.codes.encoders`) and run the same small ResNet on each, which together costs
no more than the base model on one image.
"""

import copy
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.codes.encoders import ImageEncoder
from mpicoded.errors import PlanError
from mpicoded.network.graph import Chain, Head, trace, whole_network
from mpicoded.network.ops import Call, Op, Ref

SHAPE = (1, 2, 2, 2, 4, 4, 4)  # widths of a student's convolutions, as multiples of the first one's
WIDEST = 256
SIDE = 4  # the last map, of at most this many rows and columns, goes to the dense layer whole


class Copy(nn.Module):
    """The layers of a traced network with fresh weights: ``run`` is the network."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.run: Head = copy.deepcopy(whole_network(chain))
        self.layers = nn.ModuleList(_modules(self.run))
        if not any(True for _ in self.layers.parameters()):
            raise PlanError(
                "the base model's weights are not in layers (nn.Conv2d, nn.Linear), so there is no "
                'parity model of its architecture: set args.network = "student" in [code]'
            )
        self.layers.apply(first_weights)
        self.layers.requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, classes)."""
        y: Tensor = self.run(x)
        return y


class Residual(nn.Module):
    """Two 3x3 convolutions and a way around them (He et al., CVPR 2016)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _norm(width, width), _norm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, H, W) -> the same shape."""
        return F.relu(self.second(F.relu(self.first(x))) + x)


@dataclass(frozen=True)
class Design:
    """Convolutions of the given widths; where the width rises the map is halved.

    The first one has the kernel and stride ``stem``, the others are 3x3. Convolutions of one width
    after the first of it stand in pairs with a way around them. The last map is averaged unless it
    is small. Then come ``hidden`` dense units, if any, and the classes.
    """

    widths: tuple[int, ...]
    stem: tuple[int, int] = (3, 1)
    hidden: int = 0

    def flops(self, shape: tuple[int, ...], classes: int) -> int:
        """Return the FLOPs on an image (C, H, W): 2 a multiply-add, dense layers included."""
        channels, rows, cols = self.map(shape)
        last = channels * (1 if max(rows, cols) > SIDE else rows * cols)
        dense = self.hidden * (last + classes) if self.hidden else last * classes
        return self.conv_flops(shape) + 2 * dense

    def conv_flops(self, shape: tuple[int, ...]) -> int:
        """Return the FLOPs of the convolutions alone."""
        made = self.maps(shape)
        kernels = (self.stem[0], *[3] * (len(made) - 1))
        sizes = zip(kernels, [shape, *made[:-1]], made, strict=True)
        return sum(
            2 * kernel**2 * before * width * rows * cols
            for kernel, (before, *_), (width, rows, cols) in sizes
        )

    def map(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return channels, rows and columns of the last convolution's map."""
        return self.maps(shape)[-1]

    def maps(self, shape: tuple[int, ...]) -> list[tuple[int, int, int]]:
        """Return channels, rows and columns of each convolution's map."""
        rows, cols = (ceil(n / self.stem[1]) for n in shape[1:])
        made = [(self.widths[0], rows, cols)]
        for before, width in pairwise(self.widths):
            if width > before:
                rows, cols = ceil(rows / 2), ceil(cols / 2)
            made.append((width, rows, cols))
        return made

    def layers(self, channels: int) -> list[nn.Module]:
        """Return fresh convolutions for images of so many channels."""
        kernel, stride = self.stem
        width, *left = self.widths
        layers: list[nn.Module] = [_norm(channels, width, stride, kernel), nn.ReLU()]
        while left:
            if left[0] == width and left[1:2] == [width]:
                layers.append(Residual(width))
                del left[:2]
                continue
            layers += [_norm(width, left[0], 2 if left[0] > width else 1), nn.ReLU()]
            width = left.pop(0)
        return layers


class Student(nn.Module):
    """The small ResNet of a Design, for images of ``shape`` (C, H, W)."""

    def __init__(self, shape: tuple[int, ...], classes: int, design: Design) -> None:
        super().__init__()
        layers = design.layers(shape[0])
        width, rows, cols = design.map(shape)
        if max(rows, cols) > SIDE:
            layers.append(nn.AdaptiveAvgPool2d(1))
            rows = cols = 1
        self.features = nn.Sequential(*layers)
        sizes = [width * rows * cols, *([design.hidden] if design.hidden else []), classes]
        dense = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.dense = nn.Sequential(dense[0], nn.ReLU(), dense[1]) if design.hidden else dense[0]
        self._shape = shape
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def run(self) -> Head:
        """Return the network as a worker runs it."""
        return whole_network(trace(self, self._shape))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        y: Tensor = self.dense(torch.flatten(self.features(x), 1))
        return y


def _side_by_side(y: Tensor, k: int) -> Tensor:
    """Logits of all views, (k B, classes), -> (B, k classes)."""
    return torch.cat(y.chunk(k), 1)


class Students(nn.Module):
    """A parity image (B, C, H, W) -> the logits of the k images in it, (B, k classes)."""

    def __init__(self, student: Student, encoder: ImageEncoder) -> None:
        super().__init__()
        self.student = student
        self._encoder = [encoder]  # in a list: its weights are not these

    @property
    def run(self) -> Head:
        """Return the network as a worker runs it."""
        (encoder,) = self._encoder
        head = whole_network(trace(self.student, encoder.view))
        ops = [
            replace(op, inputs=tuple("views" if name == head.entry else name for name in op.inputs))
            for op in head.ops
        ]
        views = Op("views", ("parity",), encoder.views())
        rows = Op("rows", (head.exit,), Call(_side_by_side, (Ref(0), encoder.k), {}))
        return Head("parity", (views, *ops, rows), "rows")


def widest(shape: tuple[int, ...], classes: int, design: Design, flops: int) -> Design:
    """Return the widest design of at most ``flops`` an image; PlanError if there is none."""

    def wider(width: int) -> Design:
        return replace(design, widths=tuple(width * times for times in SHAPE))

    widths = range(1, WIDEST + 1)
    width = bisect_right(widths, flops, key=lambda width: wider(width).flops(shape, classes))
    if not width:
        raise PlanError(
            f"a student for {shape} images would cost more than its share of a data unit, {flops} "
            "FLOPs: lower k, or name the widths of its convolutions in args.widths"
        )
    return wider(width)


def _norm(channels: int, width: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


def _modules(head: Head) -> list[nn.Module]:
    """Return the layers of a traced network, each once."""
    found: dict[int, nn.Module] = {}
    for op in head.ops:
        held = op.layer.target if isinstance(op.layer, Call) else getattr(op.layer, "module", None)
        if isinstance(held, nn.Module):
            found[id(held)] = held
    return list(found.values())


def first_weights(layer: nn.Module) -> None:
    """Draw weights as published: dense N(0, 0.01^2), convolutions Xavier with gain sqrt(2)."""
    if isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    elif isinstance(layer, nn.Conv2d):
        nn.init.xavier_uniform_(layer.weight, 2**0.5)
    elif hasattr(layer, "reset_parameters"):
        layer.reset_parameters()  # type: ignore[operator]
    bias = getattr(layer, "bias", None)
    if isinstance(bias, Tensor):
        nn.init.zeros_(bias)
