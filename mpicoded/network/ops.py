"""Operations of a network on a piece of its map: on windows, or position by position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.geometry import Box, Range, Window


class Pads(NamedTuple):
    """Rows above and below, columns left and right, that lie outside the map."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def split(self) -> tuple[tuple[int, int], Pads]:
        """Return the even pads of rows and columns, which operations do, and the rest."""
        rows = self.top if self.top == self.bottom else 0
        cols = self.left if self.left == self.right else 0
        rest = Pads(self.top - rows, self.bottom - rows, self.left - cols, self.right - cols)
        return (rows, cols), rest


@dataclass(frozen=True)
class Ref:
    """In the arguments of a :class:`Call`: the value of input number ``index``."""

    index: int


@dataclass(frozen=True)
class Call:
    """A function, a module or (as a string) a method, with its constant arguments filled in."""

    target: Callable[..., Any] | str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, *inputs: Any) -> Any:
        """Apply the target to ``inputs`` in the places of the Refs."""
        args = _fill(self.args, inputs)
        kwargs = _fill(self.kwargs, inputs)
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def flops(self, area: int) -> int:
        """Return the FLOPs for ``area`` output positions: of dense layers, convolutions not cut."""
        if isinstance(self.target, nn.Linear):
            return 2 * area * self.target.in_features * self.target.out_features
        return conv_flops(self.target, area) if isinstance(self.target, nn.Conv2d) else 0


def _fill(value: Any, inputs: tuple[Any, ...]) -> Any:
    if isinstance(value, Ref):
        return inputs[value.index]
    if isinstance(value, tuple | list):
        return type(value)(_fill(v, inputs) for v in value)
    if isinstance(value, dict):
        return {k: _fill(v, inputs) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_fill(v, inputs) for v in (value.start, value.stop, value.step)))
    return value


def _outer(x: Tensor, pads: Pads, value: float) -> tuple[Tensor, tuple[int, int]]:
    """Pad each axis with uneven pads by a copy; leave an even pad to the operation itself."""
    even, rest = pads.split()
    if any(rest):
        x = F.pad(x, (rest.left, rest.right, rest.top, rest.bottom), value=value)
    return x, even


class Windowed(ABC):
    """A layer that reads a window around each position."""

    windows: tuple[Window, Window]

    @abstractmethod
    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) with its halo -> (B, C', h', w')."""

    def whole(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), padded as the network says."""
        rows, cols = self.windows
        return self.piece(x, Pads(rows.before, rows.after, cols.before, cols.after), None)

    def flops(self, area: int) -> int:
        """Return the FLOPs for ``area`` output positions; pooling has none, as in the papers."""
        return 0


class Layer(Windowed):
    """One of torch's own layers: ``module``."""

    module: nn.Module

    def whole(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W'), as torch does."""
        result: Tensor = self.module(x)
        return result


class Conv(Layer):
    """A 2-D convolution with zero padding."""

    module: nn.Conv2d

    def __init__(self, module: nn.Conv2d) -> None:
        self.module, m = module, module
        rows, cols = (
            Window(m.kernel_size[a], m.stride[a], *_conv_padding(m, a), m.dilation[a])
            for a in (0, 1)
        )
        self.windows = rows, cols

    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) with its halo -> (B, C', h', w')."""
        m = self.module
        x, padding = _outer(x, pads, 0.0)
        return F.conv2d(x, m.weight, m.bias, m.stride, padding, m.dilation, m.groups)

    def flops(self, area: int) -> int:
        """Return the FLOPs for ``area`` output positions."""
        return conv_flops(self.module, area)


def conv_flops(m: nn.Conv2d, area: int) -> int:
    """Return the FLOPs of a convolution: 2 a multiply-add (EdgeLD eq. 1, without bias)."""
    taps = m.kernel_size[0] * m.kernel_size[1]
    return 2 * area * m.out_channels * (m.in_channels // m.groups) * taps


def _conv_padding(m: nn.Conv2d, axis: int) -> tuple[int, int]:
    if m.padding == "same":
        total = m.dilation[axis] * (m.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    if m.padding == "valid":
        return 0, 0
    pad = int(m.padding[axis])
    return pad, pad


class MaxPool(Layer):
    """2-D max pooling; outside the map is minus infinity."""

    module: nn.MaxPool2d

    def __init__(self, module: nn.MaxPool2d) -> None:
        self.module = module
        self.windows = _pool_windows(module)

    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) with its halo -> (B, C, h', w')."""
        rows, cols = self.windows
        x, padding = _outer(x, pads, float("-inf"))
        if 2 * padding[0] > rows.kernel or 2 * padding[1] > cols.kernel:
            x = F.pad(x, (padding[1],) * 2 + (padding[0],) * 2, value=float("-inf"))
            padding = (0, 0)
        kernel, stride = (rows.kernel, cols.kernel), (rows.stride, cols.stride)
        return F.max_pool2d(x, kernel, stride, padding, (rows.dilation, cols.dilation))


class AvgPool(Layer):
    """2-D average pooling; the divisor of every position comes with the piece."""

    module: nn.AvgPool2d

    def __init__(self, module: nn.AvgPool2d) -> None:
        self.module = module
        self.windows = _pool_windows(module)

    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) with its halo -> (B, C, h', w'), sums over ``divisor`` (h', w')."""
        rows, cols = self.windows
        if any(pads):
            x = F.pad(x, (pads.left, pads.right, pads.top, pads.bottom))
        kernel, stride = (rows.kernel, cols.kernel), (rows.stride, cols.stride)
        if divisor is None:
            return F.avg_pool2d(x, kernel, stride, divisor_override=self.module.divisor_override)
        return F.avg_pool2d(x, kernel, stride, divisor_override=1) / divisor.to(x)

    def divisor(self, out: Box, sizes: tuple[int | None, int | None]) -> Tensor | None:
        """Return how many positions each output averages, (h', w'); None: the whole kernel."""
        if self.module.divisor_override:
            return None
        counts = [
            _counts(w, r, n, self.module.count_include_pad)
            for w, r, n in zip(self.windows, out, sizes, strict=True)
        ]
        full = self.windows[0].kernel * self.windows[1].kernel
        divisor = torch.tensor(counts[0])[:, None] * torch.tensor(counts[1])[None, :]  # (h', w')
        return None if bool((divisor == full).all()) else divisor


def _counts(window: Window, out: Range, size: int | None, pads_count: bool) -> list[int]:
    if size is None:
        return [window.kernel] * out.size
    low = -window.before if pads_count else 0
    high = size + window.after if pads_count else size
    reads = [window.reads(Range(j, j + 1)) for j in range(out.start, out.stop)]
    return [min(r.stop, high) - max(r.start, low) for r in reads]


def _pool_windows(m: nn.MaxPool2d | nn.AvgPool2d) -> tuple[Window, Window]:
    kernel, stride, pad = (_pair(v) for v in (m.kernel_size, m.stride, m.padding))
    dilation = _pair(m.dilation) if isinstance(m, nn.MaxPool2d) else (1, 1)
    rows, cols = (Window(kernel[a], stride[a], pad[a], pad[a], dilation[a]) for a in (0, 1))
    return rows, cols


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, tuple | list) else (int(value),) * 2


@dataclass(frozen=True)
class Op:
    """One operation of the network: the value ``name`` is ``layer`` of the values ``inputs``."""

    name: str
    inputs: tuple[str, ...]
    layer: Windowed | Call

    @property
    def windows(self) -> tuple[Window, Window] | None:
        """Return the windows of rows and columns; None if it works position by position."""
        return None if isinstance(self.layer, Call) else self.layer.windows

    def flops(self, area: int) -> int:
        """Return the FLOPs for ``area`` output positions of one image."""
        return self.layer.flops(area)

    def whole(self, *inputs: Any) -> Any:
        """Run it on whole maps."""
        return self.layer(*inputs) if isinstance(self.layer, Call) else self.layer.whole(*inputs)


@dataclass(frozen=True)
class Normalize:
    """8-bit pixels -> the numbers that the network was trained on: (x / 255 - mean) / std.

    ``scale`` and ``shift`` are (C, 1, 1). The same arithmetic runs wherever the pixels arrive, so
    that bits do not depend on what travelled.
    """

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> Normalize:
        """Make it from the mean and deviation of each channel, of values from 0 to 1."""
        m, s = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
        return cls(1 / (255 * s), -m / s)

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of bytes -> float32."""
        return x.to(torch.float32) * self.scale + self.shift


def batch_norm(op: Op) -> nn.BatchNorm2d | None:
    """Return the batch norm of an operation that is one with statistics of its own."""
    target = op.layer.target if isinstance(op.layer, Call) else None
    if isinstance(target, nn.BatchNorm2d) and target.running_mean is not None:
        return target
    return None
