"""Convolutions and poolings made ready for the CPU that runs them.

Batch norm is folded into the convolution before it and the activation behind it is fused; weights
are packed once in the layout that oneDNN computes with, which torch otherwise does anew in every
call, and shared by all programs. What oneDNN does not take (other types than float32, a build of
torch without it) runs as before.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.geometry import Window
from mpicoded.network.ops import Conv, MaxPool, Pads, Windowed

NARROW = ("SSE41", "AVX")  # limits of oneDNN's instruction set without kernels for channels-last
NONE = Pads()
SMALL_MAP = 8192  # numbers; below, the calls of several maxima cost more than they save


IN_PLACE: dict[str, Callable[..., Tensor]] = {
    "none": lambda x: x, "relu": torch.relu_, "leaky_relu": F.leaky_relu_, "hardtanh": F.hardtanh_,
}  # fmt: skip


class Activation(NamedTuple):
    """Activation behind a convolution: oneDNN's name and numbers, torch's function's too."""

    name: str
    scalars: tuple[float, ...] = ()


IDENTITY, RELU = Activation("none"), Activation("relu")


@cache
def supported() -> bool:
    """Return True if this build of torch and this CPU run a packed convolution right."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        conv, x, pads = Conv(nn.Conv2d(4, 8, 3)), torch.rand(1, 4, 7, 5), Pads(1, 1, 1, 1)
        right = torch.relu(conv.piece(x, pads, None))
        try:
            result = Kernel(conv, None, RELU).piece(x, pads, None)
        except (RuntimeError, AttributeError):  # an operator that this build lacks
            return False
    return torch.allclose(result, right, rtol=1e-4, atol=1e-5)


@cache
def channels_last() -> bool:
    """Return True if oneDNN is fastest with a position's channels side by side: from AVX2 on."""
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    return wide and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in NARROW


def packs(conv: Conv) -> bool:
    """Return True if a Kernel can stand for this convolution."""
    weight = conv.module.weight
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and supported()


class Kernel(Windowed):
    """A convolution, the batch norm folded into it and the activation behind it."""

    def __init__(self, conv: Conv, norm: nn.BatchNorm2d | None, activation: Activation) -> None:
        m = conv.module
        self.windows, self._flops = conv.windows, conv.flops(1)
        self._activation, self._packed = activation, False
        self._weight, self._bias = folded(m, norm)
        self._stride, self._dilation, self._groups = list(m.stride), list(m.dilation), m.groups
        self._run = self._channels_last if channels_last() else self._blocked

    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) with its halo -> (B, C', h', w')."""
        if not x.numel():  # a piece that reads nothing but padding
            x, pads = _padded(x, pads, 0.0), NONE
        return self._run(x, pads)

    def flops(self, area: int) -> int:
        """Return the FLOPs for ``area`` output positions."""
        return area * self._flops

    def _channels_last(self, x: Tensor, pads: Pads) -> Tensor:
        rows, pads = _even_rows(self.windows[0], pads, x.shape[2])
        x, padding = _even(x.contiguous(memory_format=torch.channels_last), pads)
        name, scalars = self._activation
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._ready(x, padding), self._bias, padding, self._stride, self._dilation,
            self._groups, name, list(scalars), "",
        )  # fmt: skip
        return y if rows is None else y[:, :, rows]

    def _blocked(self, x: Tensor, pads: Pads) -> Tensor:
        x, padding = _even(x, pads)
        y: Tensor = torch.mkldnn_convolution(
            x, self._ready(x, padding), self._bias, padding, self._stride, self._dilation,
            self._groups,
        )  # fmt: skip
        return IN_PLACE[self._activation.name](y, *self._activation.scalars)

    def _ready(self, x: Tensor, padding: list[int]) -> Tensor:
        """Return the packed weights; the first map shows for which sizes to choose the layout."""
        weight = self._weight
        if not self._packed:
            weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(
                weight.to_mkldnn(), padding, self._stride, self._dilation, self._groups,
                list(x.shape),
            )  # fmt: skip
            self._weight, self._packed = weight, True
        return weight


def folded(m: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor | None]:
    """Return weights and bias of the convolution with its batch norm, computed in float64."""
    weight, bias = m.weight.detach(), None if m.bias is None else m.bias.detach()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    scale = 1 / torch.sqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach()
    return (weight * scale.view(-1, 1, 1, 1)).float(), shift.float()


def _even_rows(window: Window, pads: Pads, height: int) -> tuple[slice | None, Pads]:
    """Pad both sides alike, cheaper than a copy of the map; return the rows to take."""
    most = max(pads.top, pads.bottom)
    skipped, rest = divmod(most - pads.top, window.stride)
    if pads.top == pads.bottom or rest:
        return None, pads
    size = (height + pads.top + pads.bottom - window.span) // window.stride + 1
    return slice(skipped, skipped + size), pads._replace(top=most, bottom=most)


def _even(x: Tensor, pads: Pads) -> tuple[Tensor, list[int]]:
    """Leave even pads to the convolution; make uneven ones by a copy."""
    even, rest = pads.split()
    return (_padded(x, rest, 0.0) if any(rest) else x), list(even)


def _padded(x: Tensor, pads: Pads, value: float) -> Tensor:
    """Copy into a larger map of the same layout, which F.pad does 3 times slower."""
    batch, channels, height, width = x.shape
    shape = (batch, channels, height + pads.top + pads.bottom, width + pads.left + pads.right)
    layout = torch.channels_last if channels_last() else torch.contiguous_format
    result = torch.empty(shape, dtype=x.dtype, memory_format=layout).fill_(value)
    result[:, :, pads.top : pads.top + height, pads.left : pads.left + width] = x
    return result


class Maxima(Windowed):
    """Max pooling as maxima of rows, then columns: exact, and up to 8 times faster."""

    def __init__(self, pool: MaxPool) -> None:
        self.windows, self._pool = pool.windows, pool

    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) with its halo -> (B, C, h', w')."""
        if x.numel() < SMALL_MAP:
            return self._pool.piece(x, pads, divisor)
        if pads != NONE:
            x = _padded(x, pads, float("-inf"))
        for axis, window in zip((2, 3), self.windows, strict=True):
            x = _maxima(x, axis, window)
        return x


def _maxima(x: Tensor, axis: int, window: Window) -> Tensor:
    stop = (x.shape[axis] - window.span) // window.stride * window.stride + 1
    firsts = range(0, window.span, window.dilation)
    taps = [slice(first, first + stop, window.stride) for first in firsts]
    maps = [x[:, :, tap] if axis == 2 else x[:, :, :, tap] for tap in taps]
    result = maps[0]
    for each in maps[1:]:
        result = torch.maximum(result, each)
    return result
