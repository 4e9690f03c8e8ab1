"""Linear operations, and chains whose blocks may end before their activation.

An exact code takes combinations of inputs for those of outputs. So it needs one map F(x) = A x + c
for all units: linear operations, the same zeros outside the map for a unit at its border as for one
inside, and a known c (the bias).
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mpicoded.network.graph import Block, Chain, cuts
from mpicoded.network.ops import AvgPool, Call, Conv, Op, Ref
from mpicoded.network.rearrange import Pad, SpaceToDepth

# in eval mode, for all of their inputs at once
LINEAR_MODULES = (
    nn.BatchNorm2d, nn.BatchNorm1d, nn.ChannelShuffle, nn.Linear, nn.Flatten, nn.Conv2d,
    nn.AvgPool2d, nn.AdaptiveAvgPool2d, SpaceToDepth,
)  # fmt: skip
LINEAR_CALLS: frozenset[Any] = frozenset((
    operator.add, operator.sub, operator.neg, operator.getitem, torch.add, torch.sub, torch.neg,
    torch.cat, torch.concat, torch.flatten, torch.mean, F.batch_norm, F.linear, F.conv2d,
    F.adaptive_avg_pool2d, F.avg_pool2d, "add", "sub", "neg", "narrow", "flatten", "view",
    "reshape", "mean", "size", "contiguous", "clone", "detach",
))  # fmt: skip
SCALINGS: frozenset[Any] = frozenset((operator.mul, torch.mul, "mul"))  # by a constant
DIVISIONS: frozenset[Any] = frozenset((operator.truediv, torch.div, "div"))
Axes = tuple[bool, bool]  # rows, columns


def why_not_linear(ops: Sequence[Op], entry: str, cut: Axes = (False, False)) -> str:
    """Say which operation keeps units, ``cut`` so, from one linear map; "" if none does."""
    for op in ops:
        if not _is_linear(op):
            return f"{described(op)} is not linear"
        if (why := _why_border(op, entry, cut)) is not None:
            return why
    return ""


def described(op: Op) -> str:
    """Return the operation's name and kind: "relu_1 (ReLU)"."""
    layer = op.layer.target if isinstance(op.layer, Call) else getattr(op.layer, "module", op.layer)
    kind = layer if isinstance(layer, str) else getattr(layer, "__name__", type(layer).__name__)
    return f"{op.name} ({kind})"


def split_at_activations(chain: Chain) -> Chain:
    """Split every block of a chain before and behind its operations that are not linear.

    A block's convolution keeps its name, with the batch norm that follows; what comes before or
    after is a block of its own, which has that name and its own operation's: "conv1:relu".
    """
    return replace(chain, blocks=tuple(part for b in chain.blocks for part in _parts(b)))


def _is_linear(op: Op) -> bool:
    """Return True if the operation is linear (with a constant) in all that it reads."""
    layer = op.layer
    if isinstance(layer, Conv | AvgPool | SpaceToDepth):
        return True
    if isinstance(layer, Pad):
        return layer.module.value == 0
    if not isinstance(layer, Call):
        return False
    refs = sum(isinstance(arg, Ref) for arg in (*layer.args, *layer.kwargs.values()))
    if layer.target in SCALINGS:
        return refs == 1
    if layer.target in DIVISIONS:
        return refs == 1 and isinstance(layer.args[0], Ref)
    return layer.target in LINEAR_CALLS or isinstance(layer.target, LINEAR_MODULES)


def _why_border(op: Op, entry: str, cut: Axes) -> str | None:
    """Say why a unit at the map's border differs from one inside, None if it does not.

    A coded window has zeros outside the map. That is what a padded layer reads there, if it is the
    first; a second one needs zeros where the window has what the first made of zeros.
    """
    if op.windows is None:
        return None
    pads = [bool(w.before or w.after) and axis for w, axis in zip(op.windows, cut, strict=True)]
    if any(pads) and op.inputs != (entry,):
        return (
            f"{described(op)} pads the map of {op.inputs[0]} at the image's border only, where "
            "units inside have none: end the stage before it"
        )
    if isinstance(op.layer, AvgPool) and any(cut):
        pool = op.layer.module
        if pool.ceil_mode or (any(pads) and not pool.count_include_pad):
            return f"{described(op)} averages fewer positions at the image's border than inside"
    return None


def _parts(block: Block) -> Iterator[Block]:
    """Cut a block where linear operations begin and end."""
    groups: list[list[Op]] = []
    bounds = [0, *cuts(block.ops, block.entry, block.exit)]
    for piece in (block.ops[a:b] for a, b in pairwise(bounds)):
        windowed = any(op.windows is not None for op in piece)
        if groups and not windowed and _all_linear(piece) == _all_linear(groups[-1]):
            groups[-1] += piece
        else:
            groups.append(list(piece))
    windows = [any(op.windows is not None for op in group) for group in groups]
    own = windows.index(True) if any(windows) else 0
    entry = block.entry
    for i, group in enumerate(groups):
        name = block.name if i == own else f"{block.name}:{group[-1].name}"
        yield Block(name, entry, tuple(group))
        entry = group[-1].name


def _all_linear(ops: Sequence[Op]) -> bool:
    return all(_is_linear(op) for op in ops)
