"""Units that are groups of output channels: every worker gets the whole map, and some filters.

Nothing is computed twice and no unit has a halo, but the whole input goes to every worker (channel
partitioning of Hadidi et al., arXiv 2104.04447). A stage is one convolution; without a code also
the activation and the pools behind it.
"""

from collections.abc import Sequence
from contextlib import suppress
from math import prod

import torch
from torch import Tensor

from mpicoded.cluster import Work
from mpicoded.errors import PlanError
from mpicoded.geometry import Range, split, split_weighted
from mpicoded.network.filters import Filters
from mpicoded.network.graph import Chain
from mpicoded.network.pieces import whole_box
from mpicoded.network.program import Program
from mpicoded.plan import Shard, Stage
from mpicoded.split.base import (
    Bounds,
    Price,
    Request,
    Split,
    Units,
    Works,
    linear_names,
    stage_bounds,
)


class Channels(Split):
    """Deals the filters of every stage out to k units."""

    encodes = False

    def bounds(self, request: Request) -> Bounds:
        """Return the stages; by themselves, the convolutions with filters for all units."""
        chain, names = request.chain, request.stages
        if request.linear and not names and chain.blocks:
            names, able = linear_names(chain), list[str]()
            for name in names:
                with suppress(PlanError):
                    filters = Filters.of(chain, i := chain.index(name), i)
                    able += [name] * (len(filters.weight) >= request.k)
            names = tuple(able) or names
        return stage_bounds(request, names)

    def units(self, request: Request, bounds: Bounds, s: int) -> Units:
        """Deal the filters of the stage's one convolution out."""
        chain, (first, last) = request.chain, bounds[s]
        filters = Filters.of(chain, first, last, request.linear or request.r > 0)
        groups = _groups(request, chain.blocks[first].name, len(filters.weight))
        reads = whole_box(chain.shapes[chain.blocks[first].entry])
        writes = whole_box(chain.shapes[chain.blocks[last].exit])
        flops = [filters.program(group).flops for group in groups]
        parts = zip(flops, groups, strict=True)
        shards = tuple(Shard(None, writes, reads, each, group) for each, group in parts)
        return Units(shards, (reads,) * request.k, max(flops))

    def cut(self, x: Tensor, stage: Stage) -> list[Tensor]:
        """Give every unit the whole map."""
        return [x] * stage.k

    def trim(self, y: Tensor, stage: Stage, unit: int) -> Tensor:
        """(B, C, H, W) of the largest group -> the unit's own channels."""
        return y[:, : stage.channels(unit)]

    def stitch(self, outputs: Sequence[Tensor], stage: Stage) -> Tensor:
        """Join the groups of channels."""
        return torch.cat([self.trim(y, stage, unit) for unit, y in enumerate(outputs)], 1)

    def program(self, chain: Chain, stage: Stage, unit: int | None) -> Program:
        """Return a group of filters; all of them, for a code to combine."""
        own = None if unit is None else stage.shards[unit].channels
        filters = Filters.of(chain, stage.first, stage.last, linear=False)
        return filters.program(own or Range(0, stage.output_shape[0]))

    def works(self, chain: Chain, stage: Stage, unit: int | None, price: Price) -> Works:
        """Yield the work of the group's filters, and of the pools behind them, on whole maps."""
        flops = stage.parity_flops if unit is None else stage.shards[unit].flops
        channels = stage.channels(stage.k if unit is None else unit)
        for block in chain.blocks[stage.first : stage.last + 1]:
            yield block.name, Work(flops, channels * prod(chain.shapes[block.exit][1:]))
            flops = 0  # the first block has the convolution


def _groups(request: Request, name: str, count: int) -> tuple[Range, ...]:
    if request.k > count:
        raise PlanError(
            f"stage {name}: cannot deal {count} output channels out to k = {request.k} units: use "
            f"k from 1 to {count}, or leave the stage out of stages"
        )
    if request.weights is None:
        return split(count, request.k, "channels")
    return split_weighted(count, request.weights, "channels")
