"""Units that are images, as of Kosaian et al.: a query is dealt out, the model runs whole."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mpicoded.cluster import HEAD, Work
from mpicoded.geometry import split
from mpicoded.network.graph import Chain, Head, whole_network
from mpicoded.network.pieces import whole_box, whole_flops
from mpicoded.plan import Plan, Shard, Stage
from mpicoded.split.base import Bounds, Price, Request, Split, Units, Works


class Images(Split):
    """Deals the images of a query out to k units; every worker runs the whole network."""

    def plan(self, request: Request) -> Plan:
        """Leave nothing to the leader."""
        return replace(super().plan(request), head_flops=0)

    def bounds(self, request: Request) -> Bounds:
        """Return all blocks as one stage."""
        return [(0, len(request.chain.blocks) - 1)]

    def part(self, chain: Chain, first: int, last: int) -> tuple[str, Head]:
        """Return the whole network."""
        return "whole model", whole_network(chain)

    def units(self, request: Request, bounds: Bounds, s: int) -> Units:
        """Deal the images out."""
        chain = request.chain
        flops = whole_flops(chain, whole_network(chain).ops)
        reads, writes = whole_box(chain.input_shape), whole_box(chain.output_shape)
        images = split(max(request.batch, request.k), request.k, "batch")
        shards = tuple(Shard(part, writes, reads, flops) for part in images)
        return Units(shards, (reads,) * request.k, flops)

    def cut(self, x: Tensor, stage: Stage) -> list[Tensor]:
        """(B, …) -> k of (B / k, …), as views."""
        return list(x.chunk(stage.k))

    def common(self, outputs: Sequence[Tensor], stage: Stage) -> tuple[int, ...]:
        """Return the largest shape: a parity network may give more numbers than the base model."""
        return (*outputs[0].shape[:-1], max(y.shape[-1] for y in outputs))

    def trim(self, y: Tensor, stage: Stage, unit: int) -> Tensor:
        """Leave out what a parity network gives beyond the base model's numbers."""
        return y[..., : stage.output_shape[-1]] if stage.output_shape else y

    def stitch(self, outputs: Sequence[Tensor], stage: Stage) -> Tensor:
        """K of (B / k, …) -> (B, …)."""
        return torch.cat([self.trim(y, stage, unit) for unit, y in enumerate(outputs)])

    def program(self, chain: Chain, stage: Stage, unit: int | None) -> Head:
        """Return the whole network."""
        return whole_network(chain)

    def works(self, chain: Chain, stage: Stage, unit: int | None, price: Price) -> Works:
        """Yield the work of every block on the whole map, and of the head."""
        return whole_works(chain, range(len(chain.blocks)), price, head=True)


def whole_works(chain: Chain, blocks: Sequence[int], price: Price, head: bool = False) -> Works:
    """Yield the work of these blocks on whole maps, and of what follows the last, for an image."""
    for i in blocks:
        box = whole_box(chain.shapes[chain.blocks[i].exit])
        yield chain.blocks[i].name, price(i, box, (False, False))[1]
    if head and chain.head.ops:
        flops = whole_flops(chain, chain.head.ops)
        yield HEAD, Work(flops, flops)
