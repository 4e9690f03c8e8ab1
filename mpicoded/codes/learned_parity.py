"""Views and parity networks: the inputs of parity workers, and the networks they run.

The concatenation encoder of parity models (Kosaian et al., SOSP 2019, section 3.3), carried over
from images to shards: a parity unit sees *all* of the map in as many numbers as one window has.

    map (C, H, W)          cut into patches; a linear map makes c numbers of each
    view (c, H/p, W/p)     no more numbers than a window has, and it travels as one
    map (c', H', W')       of 3x3 convolutions, narrower than the base model's; its middle is used
    parity (C', h, w)      each column of it tells of several columns of the map
"""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.codes.parity_models import Design
from mpicoded.geometry import Range
from mpicoded.network.ops import conv_flops
from mpicoded.plan import Stage


class Size(NamedTuple):
    """Channels, rows and columns."""

    channels: int
    rows: int
    cols: int

    @property
    def total(self) -> int:
        """Return how many numbers there are in all."""
        return self.channels * self.rows * self.cols


@dataclass(frozen=True)
class View:
    """``size`` of a stage's view, with patches of ``patch`` rows and columns."""

    patch: int
    size: Size
    window: Size

    @classmethod
    def of(cls, stage: Stage, patch: int) -> Self:
        """Return the view with as many channels as go into a window, and larger patches if none."""
        channels, *sides = stage.input_shape
        window = Size(channels, *(axis.size for axis in stage.windows[0]))
        while True:
            rows, cols = (-(-side // patch) for side in sides)
            if rows * cols <= window.total or patch >= max(sides):
                break
            patch *= 2
        room = min(window.total // (rows * cols), channels * patch**2)
        return cls(patch, Size(room, rows, cols), window)


class Encoder(nn.Module):
    """Windows (k, B, C, h, w) -> parity windows (r, B, C, h, w), each holding a view of the map."""

    def __init__(self, stage: Stage, view: View, r: int) -> None:
        super().__init__()
        self.r, self.view, self.parts = r, view, _parts(stage)
        self.see = nn.Conv2d(stage.input_shape[0] * view.patch**2, r * view.size.channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(k, B, C, h, w) -> (r, B, C, h, w)."""
        view, window, patch = self.view.size, self.view.window, self.view.patch
        whole = self.whole(x)  # (B, C, H, W), or less where nobody reads
        more = (0, view.cols * patch - whole.shape[3], 0, view.rows * patch - whole.shape[2])
        patches = F.pixel_unshuffle(F.pad(whole, more) if any(more) else whole, patch)
        y: Tensor = self.see(patches)  # (B, r c, rows, cols)
        y = y.reshape(len(y), self.r, view.total).transpose(0, 1)  # (r, B, numbers)
        y = F.pad(y, (0, window.total - view.total))
        return y.reshape(*y.shape[:2], *window)

    def whole(self, x: Tensor) -> Tensor:
        """Windows (k, B, C, h, w) -> the map that they were cut from, (B, C, H, W)."""
        (rows, cols), units = self.parts, iter(x.unbind(0))
        strips = [
            torch.cat([next(units)[:, :, slice(*row), slice(*col)] for col in cols], 3)
            for row in rows
        ]
        return torch.cat(strips, 2) if len(strips) > 1 else strips[0]


class ParityNet(nn.Module):
    """Parity window (B, C, h, w) -> parity output (B, C', h', w'): ``fine``, a pool, ``coarse``.

    Both are widths of 3x3 convolutions with batch norm; without ``fine`` there is no pool. In their
    place there may be those of a ``design``. An image costs ``flops``. Positions that are told
    together become channels and a 1x1 convolution: one with as long a stride gives nonsense in
    bfloat16 from 5 on (oneDNN 3.12 with AMX).
    """

    def __init__(
        self,
        stage: Stage,
        view: View,
        fine: tuple[int, ...] = (),
        coarse: tuple[int, ...] = (),
        design: Design | None = None,
    ) -> None:
        super().__init__()
        self.view = tuple(view.size)
        self.count = view.size.total
        sides, step = stage.output_shape[1:], steps(stage)
        if design is None:
            layers, size, work = _two_sizes(view.size, fine, coarse, sides)
        else:
            layers, work = design.layers(view.size.channels), design.conv_flops(view.size)
            size = Size(*design.map(view.size))
        if size.rows < sides[0] or size.cols < sides[1]:
            size = Size(size.channels, max(size.rows, sides[0]), max(size.cols, sides[1]))
            layers.append(nn.Upsample(size[1:]))
        self.body = nn.Sequential(*layers)
        top, left = ((have - need) // 2 for have, need in zip(size[1:], sides, strict=True))
        self.rows, self.cols = slice(top, top + sides[0]), slice(left, left + sides[1])
        (height, width), (down, across) = stage.unit_output, step
        self.more = (0, width * across - sides[1], 0, height * down - sides[0])
        self.spots = (size.channels, height, down, width, across)
        self.squeeze = nn.Conv2d(size.channels * down * across, stage.output_shape[0], 1)
        self.flops = work + conv_flops(self.squeeze, prod(stage.unit_output))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        x = x.flatten(1)[:, : self.count].reshape(-1, *self.view)
        x = self.body(x)[:, :, self.rows, self.cols]  # (B, c', H', W')
        if any(self.more):
            x = F.pad(x, self.more)
        x = x.reshape(-1, *self.spots).permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
        y: Tensor = self.squeeze(x)  # (B, C', h', w')
        return y


def _two_sizes(
    size: Size, fine: tuple[int, ...], coarse: tuple[int, ...], sides: tuple[int, ...]
) -> tuple[list[nn.Module], Size, int]:
    """Return ``fine``, a pool, ``coarse``; the size of their map, and their FLOPs."""
    layers, size, work = _layers(size, fine, size[1:])
    if fine:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
        size = Size(size.channels, -(-size.rows // 2), -(-size.cols // 2))
    more, size, more_work = _layers(size, coarse, sides)
    return [*layers, *more], size, work + more_work


def _layers(
    size: Size, widths: tuple[int, ...], sides: tuple[int, ...]
) -> tuple[list[nn.Module], Size, int]:
    """Return 3x3 convolutions, whose last ones shrink a map beyond ``sides``; its size; FLOPs."""
    layers: list[nn.Module] = []
    flops = 0
    for i, width in enumerate(widths):
        left = len(widths) - i
        bare = [have - need >= 2 * left for have, need in zip(size[1:], sides, strict=True)]
        pads = (int(not bare[0]), int(not bare[1]))
        conv = nn.Conv2d(size.channels, width, 3, padding=pads, bias=False)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        size = Size(width, size.rows - 2 * bare[0], size.cols - 2 * bare[1])
        flops += conv_flops(conv, size.rows * size.cols)
    return layers, size, flops


def steps(stage: Stage) -> tuple[int, int]:
    """Return how many rows and columns of the map one of a parity output stands for."""
    (_, height, width), (rows, cols) = stage.output_shape, stage.unit_output
    return -(-height // rows), -(-width // cols)


def _parts(stage: Stage) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Return rows and columns of each window, within it, that lie before the next one's start."""
    rows = [box.rows for box in stage.windows[:: stage.grid[1]]]
    cols = [box.cols for box in stage.windows[: stage.grid[1]]]
    height, width = stage.input_shape[1:]
    return _parts_of_axis(rows, height), _parts_of_axis(cols, width)


def _parts_of_axis(windows: list[Range], size: int) -> tuple[Range, ...]:
    ends = [*(window.start for window in windows[1:]), size]
    parts = []
    for window, end in zip(windows, ends, strict=True):
        start = max(window.start, 0)
        stop = max(start, min(window.stop, end, size))
        parts.append(Range(start, stop).shift(-window.start))
    return tuple(parts)
