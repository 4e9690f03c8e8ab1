"""A convolution, its batch norm folded in, as filters to deal out and combine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from mpicoded.errors import PlanError
from mpicoded.geometry import Range
from mpicoded.network import layers
from mpicoded.network.graph import Chain
from mpicoded.network.kernels import folded
from mpicoded.network.linear import described
from mpicoded.network.ops import AvgPool, Call, Conv, MaxPool, Op, Ref, batch_norm
from mpicoded.network.pieces import op_program, stage_ops
from mpicoded.network.program import Program

# of pointwise operations: those that mix channels, or hold a number for each of them
NOT_BY_CHANNEL = (
    nn.PReLU, nn.BatchNorm2d, nn.Softmax, nn.Softmax2d, nn.LocalResponseNorm, nn.ChannelShuffle,
)  # fmt: skip
BY_CHANNEL = layers.POINTWISE_FUNCTIONS | layers.POINTWISE_METHODS


@dataclass(frozen=True)
class Filters:
    """A stage that is one convolution, as ``like``: its weights (C', C, h, w), its bias (C',).

    ``tail`` are the operations behind it, which work channel by channel: activations and pools.
    """

    chain: Chain
    entry: str
    name: str
    like: nn.Conv2d
    weight: Tensor
    bias: Tensor
    tail: tuple[Op, ...]

    @classmethod
    def of(cls, chain: Chain, first: int, last: int, linear: bool = True) -> Self:
        """Take the filters of some blocks; PlanError if they are not one convolution.

        Only if they need not be ``linear``, as exact codes need, may something follow it.
        """
        ops = stage_ops(chain, first, last)
        norms = [norm for op in ops[1:2] if (norm := batch_norm(op)) is not None]
        conv, tail = ops[0].layer, ops[1 + len(norms) :]
        for op in (*(() if isinstance(conv, Conv) else ops[:1]), *tail):
            if linear or op is ops[0] or not _is_by_channel(op):
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
        entry, name = chain.blocks[first].entry, ops[len(norms)].name
        return cls(chain, entry, name, conv.module, weight, bias, tail)

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
        like, own = self.like, (weight.clone(), bias.clone())
        conv = Conv(layers.conv(Ref(0), *own, like.stride, like.padding, like.dilation))
        return op_program(self.chain, self.entry, (Op(self.name, (self.entry,), conv), *self.tail))


def _is_by_channel(op: Op) -> bool:
    """Return True if the operation works on each channel by itself, and on all alike."""
    call = op.layer
    if not isinstance(call, Call):
        return isinstance(call, MaxPool | AvgPool)
    if isinstance(call.target, nn.Module):
        return isinstance(call.target, layers.POINTWISE_MODULES) and not isinstance(
            call.target, NOT_BY_CHANNEL
        )
    constants = (*call.args, *call.kwargs.values())
    return (
        len(op.inputs) == 1
        and call.target in BY_CHANNEL - layers.CHANNEL_CONSTANTS
        and not any(isinstance(each, Tensor) for each in constants)
    )
