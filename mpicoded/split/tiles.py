"""Units that are strips or tiles of a map, with halos that are computed twice or exchanged.

Fused tile partitioning of Zhao et al., DeepThings (TCAD 2018, section III), with the blocks fused
where the job says (AOFL, SEC 2019). Weighted strips follow MoDNN (DATE 2017), strips that exchange
their halos CoEdge (Zeng et al., ToN 2020).
"""

from collections.abc import Sequence
from itertools import takewhile
from operator import le

import torch
import torch.nn.functional as F
from torch import Tensor

from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range, split, split_alike, split_weighted
from mpicoded.network.graph import Chain
from mpicoded.network.pieces import shard_program
from mpicoded.network.program import Program
from mpicoded.plan import Shard, Stage
from mpicoded.split.base import (
    Bounds,
    Price,
    Request,
    Split,
    Unbounded,
    Units,
    Works,
    linear_names,
    stage_bounds,
)
from mpicoded.stage import Shape


class Tiles(Split):
    """Cuts a map into k strips of rows ("height") or of columns ("width"), or into tiles."""

    def bounds(self, request: Request) -> Bounds:
        """Return the stages: by themselves, as far as a map has a row or column for each unit."""
        chain, grid, names = request.chain, self._grid(request), request.stages
        if names or not chain.blocks:
            return stage_bounds(request, names)

        def fits(name: str) -> bool:
            shape = chain.shapes[chain.blocks[chain.index(name)].exit]
            return all(map(le, grid, shape[1:]))

        if request.linear:
            names = linear_names(chain)
            return stage_bounds(request, tuple(filter(fits, names)) or names)
        names = tuple(block.name for block in chain.blocks[request.first :])
        able = tuple(takewhile(fits, names)) or names[:1]
        return stage_bounds(request, able if request.direct else able[-1:])

    def _grid(self, request: Request) -> tuple[int, int]:
        k, grid = request.k, request.tiles
        if self.name != "tiles":
            return (k, 1) if self.name == "height" else (1, k)
        if grid is None or grid[0] * grid[1] != k:
            raise PlanError(
                f"tiles = {list(grid) if grid else 'not given'} must be [rows, columns] with rows "
                f"x columns = k = {k}"
            )
        return grid

    def units(self, request: Request, bounds: Bounds, s: int) -> Units:
        """Cut the output, and lay the coded windows of the stage's segment."""
        chain, (first, last), grid = request.chain, bounds[s], self._grid(request)
        inside = request.direct and s + 1 < len(bounds)
        start = bounds[0][0] if request.direct and not inside else first  # of parity units
        ranges = _ranges(chain.shapes[chain.blocks[last].exit], grid, request)
        boxes = [Box(rows, cols) for rows in ranges[0] for cols in ranges[1]]
        largest = [max(r.size for r in axis) for axis in ranges]
        grown = [
            Box(*(Range(r.start, r.start + n) for r, n in zip(box, largest, strict=True)))
            for box in boxes
        ]
        windows = [shard_program(chain, start, last, box, _unbounded(grid)) for box in grown]
        _check_windows(self.part(chain, first, last)[0], windows, 0 if inside else request.r)
        pieces = [shard_program(chain, first, last, box) for box in boxes]
        shards = tuple(Shard(None, p.writes, p.reads, p.flops) for p in pieces)
        return Units(shards, tuple(p.reads for p in windows), windows[0].flops, grid)

    def cut(self, x: Tensor, stage: Stage) -> list[Tensor]:
        """Input map (B, C, H, W) -> the k exact inputs (B, C, h, w), as views."""
        boxes = [shard.reads for shard in stage.shards]
        return [x[:, :, rows.start : rows.stop, cols.start : cols.stop] for rows, cols in boxes]

    def windows(self, x: Tensor, stage: Stage) -> Tensor:
        """Input map (B, C, H, W) -> coded windows (k, B, C, h, w), zero outside the map."""
        height, width = x.shape[-2:]
        rows, cols = zip(*stage.windows, strict=True)
        top, left = max(0, -min(r.start for r in rows)), max(0, -min(c.start for c in cols))
        bottom = max(0, max(r.stop for r in rows) - height)
        right = max(0, max(c.stop for c in cols) - width)
        x = F.pad(x, (left, right, top, bottom))
        pieces = [
            x[:, :, r.start + top : r.stop + top, c.start + left : c.stop + left]
            for r, c in stage.windows
        ]
        return torch.stack(pieces)  # (k, B, C, h, w)

    def trim(self, y: Tensor, stage: Stage, unit: int) -> Tensor:
        """(B, C, h, w) of the largest shard -> that of the unit's own."""
        return _corner(y, stage.shards[unit].writes)

    def stitch(self, outputs: Sequence[Tensor], stage: Stage) -> Tensor:
        """Join the shards; leave out what the next one computes too, if they are of one size."""
        cols = stage.grid[1]
        kept = [_corner(y, stage.owned(unit)[0].box) for unit, y in enumerate(outputs)]
        strips = [torch.cat(kept[i : i + cols], 3) for i in range(0, len(kept), cols)]
        return torch.cat(strips, 2)

    def program(self, chain: Chain, stage: Stage, unit: int | None) -> Program:
        """Pad a data unit at the map's borders; a coded one not at all along the cut axes."""
        return shard_program(chain, stage.first, stage.last, *_writes(stage, unit))

    def works(self, chain: Chain, stage: Stage, unit: int | None, price: Price) -> Works:
        """Yield the work of every block on the box that the next one reads, the last first."""
        box, unbounded = _writes(stage, unit)
        for i in range(stage.last, stage.first - 1, -1):
            box, work = price(i, box, unbounded)
            yield chain.blocks[i].name, work


def _writes(stage: Stage, unit: int | None) -> tuple[Box, Unbounded]:
    """Return the box that a unit writes, and where the map has no borders for it."""
    if unit is None:
        return Box.of(*stage.unit_output), _unbounded(stage.grid)
    return stage.shards[unit].writes, (False, False)


def _unbounded(grid: tuple[int, int]) -> Unbounded:
    return grid[0] > 1, grid[1] > 1


def _corner(y: Tensor, box: Box) -> Tensor:
    """Return the first rows and columns, as many as the box has."""
    return y[:, :, : box.rows.size, : box.cols.size]


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
    shape: Shape, grid: tuple[int, int], request: Request
) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    (height, width), weights = shape[1:], request.weights
    how = split_alike if request.linear else split
    if request.linear or weights is None:
        return how(height, grid[0], "height"), how(width, grid[1], "width")
    if len(weights) != grid[0] * grid[1] or min(grid) > 1:
        raise PlanError(
            f"weights = {list(weights)}: give k = {grid[0] * grid[1]} weights, for strips only "
            '(split = "width" or "height")'
        )
    if grid[0] > 1:
        return split_weighted(height, weights, "height"), split(width, 1, "width")
    return split(height, 1, "height"), split_weighted(width, weights, "width")
