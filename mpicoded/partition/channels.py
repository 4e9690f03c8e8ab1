"""Units that are groups of output channels: every worker gets the whole map, and some filters.

Nothing is computed twice and no unit has a halo, but the whole input goes to every worker (channel
partitioning of Hadidi et al., arXiv 2104.04447). A stage is one convolution.
"""

from __future__ import annotations

from mpicoded.errors import PlanError
from mpicoded.geometry import Range, split, split_weighted
from mpicoded.network.filters import Filters
from mpicoded.network.pieces import stage_ops, whole_box, whole_flops
from mpicoded.partition.fused import check_blocks, leader_flops, stage_bounds
from mpicoded.partition.request import Request
from mpicoded.plan import Plan, Shard, Stage


def by_channels(request: Request) -> Plan:
    """Deal the filters of every stage out to k units."""
    chain = request.chain
    check_blocks(chain)
    bounds = stage_bounds(request)
    return Plan(
        stages=tuple(_stage(request, block) for block, _ in bounds),
        k=request.k,
        r=request.r,
        batch=request.batch,
        split="channels",
        head_flops=leader_flops(chain, bounds),
        output_shape=chain.output_shape,
    )


def _stage(request: Request, block: int) -> Stage:
    chain = request.chain
    name, entry, exit_ = (getattr(chain.blocks[block], key) for key in ("name", "entry", "exit"))
    filters = Filters.of(chain, block, block)
    groups = _groups(request, name, len(filters.weight))
    reads, writes = whole_box(chain.shapes[entry]), whole_box(chain.shapes[exit_])
    flops = [filters.program(group).flops for group in groups]
    return Stage(
        name=name,
        first=block,
        last=block,
        input_shape=chain.shapes[entry],
        output_shape=chain.shapes[exit_],
        grid=(1, 1),
        shards=tuple(Shard(None, writes, reads, f, g) for f, g in zip(flops, groups, strict=True)),
        windows=(reads,) * request.k,
        whole_flops=whole_flops(chain, stage_ops(chain, block, block)),
        parity_flops=max(flops),
        entry=entry,
        exit=exit_,
    )


def _groups(request: Request, name: str, count: int) -> tuple[Range, ...]:
    if request.k > count:
        raise PlanError(
            f"stage {name}: cannot deal {count} output channels out to k = {request.k} units: use "
            f"k from 1 to {count}, or leave the stage out of stages"
        )
    if request.weights is None:
        return split(count, request.k, "channels")
    return split_weighted(count, request.weights, "channels")
