"""Where the stages of one split and one k end, parity units included: behind stages = "auto".

A dynamic program over the boundaries of blocks, exact because the leader separates the stages and
their times add up (OFL of Zhou et al., AOFL, SEC 2019, section 4.2, over prefixes: n states). The
leader goes on alone wherever that is faster than one more stage.
"""

from dataclasses import replace
from math import inf

from mpicoded.cost.model import CostModel
from mpicoded.errors import PlanError
from mpicoded.split.base import Request, Split


def stages(request: Request, split: Split, model: CostModel) -> tuple[str, ...]:
    """Return the name of each stage's last block, at least one.

    Cuts that ``split`` refuses (more shards than rows, say) are left out. Raises PlanError if it
    refuses them all, in its own words about the first, or if stages are to exchange halos.
    """
    if request.direct:
        raise PlanError(
            'stages = "auto" is for stages that the leader gathers, and these exchange halos: '
            "leave it out, for a stage a block, or name the last block of each"
        )
    if request.linear:
        return _worth_it(request, split, model)
    count = len(request.chain.blocks)
    if not count:
        split.plan(request)  # raises: nothing of this network can be cut
    best, cut = [0.0] + [inf] * count, [0] * (count + 1)  # best[b]: blocks 0 to b - 1 in stages
    refused: PlanError | None = None
    for end in range(1, count + 1):
        for first in range(end):
            try:
                names = (request.chain.blocks[end - 1].name,)
                plan = split.plan(replace(request, first=first, stages=names))
                seconds = best[first] + model.stage(plan, 0).total
            except PlanError as error:
                refused = refused or error
                continue
            if seconds < best[end]:
                best[end], cut[end] = seconds, first
    end = min(range(1, count + 1), key=lambda b: best[b] + model.single_device(request.batch, b))
    if best[end] == inf:
        assert refused is not None
        raise refused
    ends = [end]
    while cut[ends[0]]:
        ends.insert(0, cut[ends[0]])
    return tuple(request.chain.blocks[b - 1].name for b in ends)


def _worth_it(request: Request, split: Split, model: CostModel) -> tuple[str, ...]:
    """Return the linear blocks that workers run faster than the leader (CoCoI), or the best one."""
    gains, refused = list[tuple[float, str]](), None
    for block, _ in split.bounds(request):
        name = request.chain.blocks[block].name
        try:
            plan = split.plan(replace(request, stages=(name,)))
        except PlanError as error:
            refused = refused or error
            continue
        gains.append((model.own(block, request.batch) - model.stage(plan, 0).total, name))
    if not gains:
        assert refused is not None, "there is a linear block"
        raise refused
    return tuple(name for gain, name in gains if gain > 0) or (max(gains)[1],)
