"""Fused blocks, cut into strips or tiles with halos that are computed twice.

Fused tile partitioning of Zhao et al., DeepThings (TCAD 2018, section III), with the blocks fused
where the job says (AOFL, SEC 2019). Weighted strips follow MoDNN (DATE 2017).
"""

from __future__ import annotations

from itertools import takewhile
from operator import le

from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range, split, split_alike, split_weighted
from mpicoded.network.graph import Chain
from mpicoded.network.linear import why_not_linear
from mpicoded.network.pieces import interior_piece, piece, stage_ops, whole_flops
from mpicoded.network.program import Program
from mpicoded.partition.request import Request
from mpicoded.plan import Plan, Shard, Stage


def by_height(request: Request) -> Plan:
    """Cut every stage's output into k strips of rows."""
    return _plan(request, "height", (request.k, 1))


def by_width(request: Request) -> Plan:
    """Cut every stage's output into k strips of columns."""
    return _plan(request, "width", (1, request.k))


def by_tiles(request: Request) -> Plan:
    """Cut every stage's output into a grid of k tiles."""
    grid = request.tiles
    if grid is None or grid[0] * grid[1] != request.k:
        raise PlanError(
            f"tiles = {list(grid) if grid else 'not given'} must be [rows, columns] with rows x "
            f"columns = k = {request.k}"
        )
    return _plan(request, "tiles", grid)


def _plan(request: Request, name: str, grid: tuple[int, int]) -> Plan:
    chain = request.chain
    check_blocks(chain)
    bounds = stage_bounds(request, grid)
    stages = tuple(_stage(request, grid, bounds, s) for s in range(len(bounds)))
    return Plan(
        stages=stages,
        k=request.k,
        r=request.r,
        batch=request.batch,
        split=name,
        head_flops=leader_flops(chain, bounds),
        output_shape=chain.output_shape,
    )


def check_blocks(chain: Chain) -> None:
    """Raise PlanError if nothing can be cut."""
    if not chain.blocks:
        raise PlanError(
            f'no block of this model can be cut: {chain.limit}. Use split = "batch", where a unit '
            "is a whole image"
        )


def stage_bounds(request: Request, grid: tuple[int, int] = (1, 1)) -> list[tuple[int, int]]:
    """Return (first, last) block of every stage.

    >>> # blocks conv1 pool1 conv2 pool2, stages ("pool1", "pool2") -> [(0, 1), (2, 3)]
    """
    chain, names = request.chain, request.stages
    if request.linear:
        names = names or _linear_names(chain)
    elif request.direct:
        names = names or _names_to_cut(request, grid)
    lasts = [chain.index(name) for name in names] or [len(chain.blocks) - 1]
    if sorted(set(lasts)) != lasts:
        order = ", ".join(block.name for block in chain.blocks)
        raise PlanError(
            f"stages = {list(names)}: name the last block of each stage once and in the network's "
            f"order, {order}"
        )
    if request.linear:
        return [(last, last) for last in lasts]
    return list(zip([request.first] + [last + 1 for last in lasts[:-1]], lasts, strict=True))


def _names_to_cut(request: Request, grid: tuple[int, int]) -> tuple[str, ...]:
    """Return the blocks, up to the first whose map has no row or column for every unit."""
    shapes, blocks = request.chain.shapes, request.chain.blocks[request.first :]
    able = takewhile(lambda b: all(map(le, grid, shapes[b.exit][1:])), blocks)
    return tuple(block.name for block in able) or (blocks[0].name,)


def _linear_names(chain: Chain) -> tuple[str, ...]:
    """Return the linear blocks that have work to share."""
    names = tuple(
        block.name
        for block in chain.blocks
        if whole_flops(chain, block.ops) and not why_not_linear(block.ops, block.entry)
    )
    if not names:
        blocks = ", ".join(block.name for block in chain.blocks)
        raise PlanError(
            f"linear = true needs a stage that is linear, and of the blocks {blocks} none is: "
            "a residual block, say, has its activation inside. Use linear = false, and a code for "
            "such stages"
        )
    return names


def leader_flops(chain: Chain, bounds: list[tuple[int, int]]) -> int:
    """FLOPs of what no stage covers, for one image: the leader runs it."""
    covered = {i for first, last in bounds for i in range(first, last + 1)}
    rest = [block.ops for i, block in enumerate(chain.blocks) if i not in covered]
    return sum(whole_flops(chain, ops) for ops in [*rest, chain.head.ops])


def _stage(request: Request, grid: tuple[int, int], bounds: list[tuple[int, int]], s: int) -> Stage:
    chain, (first, last), direct = request.chain, bounds[s], request.direct and s > 0
    inside = request.direct and s + 1 < len(bounds)
    start = bounds[0][0] if direct and not inside else first  # where parity units begin
    entry, exit_ = chain.blocks[first].entry, chain.blocks[last].exit
    height, width = chain.shapes[exit_][1:]
    ranges = _ranges(height, width, grid, request)
    boxes = [Box(rows, cols) for rows in ranges[0] for cols in ranges[1]]
    cut = (grid[0] > 1, grid[1] > 1)
    largest = tuple(max(r.size for r in axis) for axis in ranges)
    windows = []
    for box in boxes:
        extended = Box(*(Range(r.start, r.start + n) for r, n in zip(box, largest, strict=True)))
        windows.append(interior_piece(chain, start, last, extended, cut))
    pieces = [piece(chain, first, last, box) for box in boxes]
    ops = stage_ops(chain, first, last)
    name = " … ".join(dict.fromkeys(chain.blocks[i].name for i in (first, last)))
    _check_windows(name, windows, 0 if inside else request.r)
    return Stage(
        name=name,
        first=first,
        last=last,
        input_shape=chain.shapes[entry],
        output_shape=chain.shapes[exit_],
        grid=grid,
        shards=tuple(Shard(None, p.writes, p.reads, p.flops) for p in pieces),
        windows=tuple(p.reads for p in windows),
        whole_flops=whole_flops(chain, ops),
        parity_flops=windows[0].flops,
        entry=entry,
        exit=exit_,
        direct=direct,
    )


def _check_windows(name: str, windows: list[Program], r: int) -> None:
    """Parity units need one window that fits every unit, wherever it lies."""
    crops = [[(step.crops, step.pads) for step in program.steps] for program in windows]
    if r and any(other != crops[0] for other in crops):
        raise PlanError(
            f"stage {name}: its branches step over the map at different strides, so that its units "
            f"have no common window for r = {r} parity units: end the stage before it, use "
            'split = "batch", or r = 0'
        )


def _ranges(
    height: int, width: int, grid: tuple[int, int], request: Request
) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    weights = request.weights
    if request.linear:
        return split_alike(height, grid[0], "height"), split_alike(width, grid[1], "width")
    if weights is None:
        return split(height, grid[0], "height"), split(width, grid[1], "width")
    if len(weights) != grid[0] * grid[1] or min(grid) > 1:
        raise PlanError(
            f"weights = {list(weights)}: give k = {grid[0] * grid[1]} weights, for strips only "
            '(split = "width" or "height")'
        )
    if grid[0] > 1:
        return split_weighted(height, weights, "height"), split(width, 1, "width")
    return split(height, 1, "height"), split_weighted(width, weights, "width")
