"""A convolution, its batch norm folded in, as filters to deal out and combine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mpicoded.errors import PlanError
from mpicoded.geometry import Range
from mpicoded.network import layers
from mpicoded.network.graph import Chain
from mpicoded.network.kernels import folded
from mpicoded.network.linear import described
from mpicoded.network.ops import Conv, Op, Pads, Ref, batch_norm
from mpicoded.network.pieces import stage_ops, whole_box
from mpicoded.network.program import Program, Step


@dataclass(frozen=True)
class Filters:
    """A stage that is one convolution, as ``like``: its weights (C', C, h, w), its bias (C',)."""

    chain: Chain
    block: int
    like: Conv
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, chain: Chain, first: int, last: int) -> Self:
        """Take the filters of some blocks; PlanError if they are not one convolution."""
        ops = stage_ops(chain, first, last)
        conv, norms = ops[0].layer, [batch_norm(op) for op in ops[1:]]
        for i, op in enumerate(ops):
            if not isinstance(conv, Conv) or (i and (i > 1 or norms[0] is None)):
                raise PlanError(
                    f"stage {chain.blocks[last].name}: {described(op)} cannot be split by "
                    "channels, only one convolution with its batch norm can: name such blocks in "
                    'stages, or use split = "width"'
                )
        assert isinstance(conv, Conv)
        if conv.module.groups > 1:
            raise PlanError(
                f"stage {chain.blocks[last].name}: {described(ops[0])} has groups = "
                f"{conv.module.groups}, so that its filters read other channels each and do not "
                'add up: use split = "width"'
            )
        weight, bias = folded(conv.module, norms[0] if norms else None)
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return cls(chain, first, conv, weight, bias)

    def program(self, channels: Range) -> Program:
        """Return the program of the output channels ``channels`` of the whole map."""
        own = slice(channels.start, channels.stop)
        return self._program(self.weight[own], self.bias[own])

    def combined(self, groups: Sequence[Range], factors: Sequence[float]) -> Program:
        """Return the program of a weighted sum of groups of filters, padded with zeros."""
        size = max(group.size for group in groups)
        weight = self.weight.new_zeros((size, *self.weight.shape[1:]), dtype=torch.float64)
        bias = self.bias.new_zeros(size, dtype=torch.float64)
        for group, factor in zip(groups, factors, strict=True):
            own = slice(group.start, group.stop)
            weight[: group.size] += factor * self.weight[own].double()
            bias[: group.size] += factor * self.bias[own].double()
        return self._program(weight.float(), bias.float())

    def _program(self, weight: Tensor, bias: Tensor) -> Program:
        like, block = self.like.module, self.chain.blocks[self.block]
        own = (weight.clone(), bias.clone())
        conv = Conv(layers.conv(Ref(0), *own, like.stride, like.padding, like.dilation))
        rows, cols = conv.windows
        pads = Pads(rows.before, rows.after, cols.before, cols.after)
        writes = whole_box(self.chain.shapes[block.exit])
        op = Op(block.exit, (block.entry,), conv)
        reads = whole_box(self.chain.shapes[block.entry])
        step = Step(op, (None,), pads, None, (block.entry,))
        return Program(block.entry, reads, writes, (step,), conv.flops(writes.area))
