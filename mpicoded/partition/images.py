"""Units that are images: a query of several images is dealt out, and the model runs whole.

This is the setting of Kosaian et al. (learning-based coded computation, parity models).
"""

from __future__ import annotations

from mpicoded.geometry import split
from mpicoded.network.graph import whole_network
from mpicoded.network.pieces import whole_box, whole_flops
from mpicoded.partition.request import Request
from mpicoded.plan import Plan, Shard, Stage


def by_images(request: Request) -> Plan:
    """Deal the images of a query out to k units; every worker runs the whole network."""
    chain = request.chain
    whole = whole_network(chain)
    flops = whole_flops(chain, whole.ops)
    reads, writes = whole_box(chain.input_shape), whole_box(chain.output_shape)
    images = split(max(request.batch, request.k), request.k, "batch")
    stage = Stage(
        name="whole model",
        first=0,
        last=len(chain.blocks) - 1,
        input_shape=chain.input_shape,
        output_shape=chain.output_shape,
        grid=(1, 1),
        shards=tuple(Shard(part, writes, reads, flops) for part in images),
        windows=(reads,) * request.k,
        whole_flops=flops * request.batch,
        parity_flops=flops,
        entry=whole.entry,
        exit=whole.exit,
    )
    return Plan(
        stages=(stage,),
        k=request.k,
        r=request.r,
        batch=request.batch,
        split="batch",
        head_flops=0,
        output_shape=chain.output_shape,
    )
