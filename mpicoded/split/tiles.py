"""Units that are strips or tiles of a map, with halos that are computed twice or exchanged.

Fused tile partitioning of Zhao et al., DeepThings (TCAD 2018, section III), with the blocks fused
where the job says (AOFL, SEC 2019). Weighted strips follow MoDNN (DATE 2017), strips that exchange
their halos CoEdge (Zeng et al., ToN 2020).
"""

from collections.abc import Iterator, Sequence
from itertools import product, takewhile
from operator import le

import torch
import torch.nn.functional as F
from torch import Tensor

from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range, around, split, split_alike, split_weighted
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
        boxes = _boxes(chain.shapes[chain.blocks[last].exit], grid, request)
        largest = [max(r.size for r in axis) for axis in zip(*boxes, strict=True)]
        grown = [
            Box(*(Range(r.start, r.start + n) for r, n in zip(box, largest, strict=True)))
            for box in boxes
        ]
        windows = [shard_program(chain, start, last, box, _unbounded(grid)) for box in grown]
        _check_windows(self.part(chain, first, last)[0], windows, 0 if inside else request.r)
        pieces = [shard_program(chain, first, last, box) for box in boxes]
        reads = [p.reads for p in pieces]
        if inside and s == 0 and request.keeps:
            reads = list(map(around, zip(*self._sources(request, bounds), strict=True)))
        shards = tuple(
            Shard(None, p.writes, box, p.flops) for p, box in zip(pieces, reads, strict=True)
        )
        return Units(shards, tuple(p.reads for p in windows), windows[0].flops, grid)

    def _sources(self, request: Request, bounds: Bounds) -> Iterator[list[Box]]:
        """Yield, stage by stage, the input of the segment that each unit's output depends on.

        A unit that is given all of these can compute any halo that does not come.
        """
        chain, grid = request.chain, self._grid(request)
        for _, last in bounds:
            boxes = _boxes(chain.shapes[chain.blocks[last].exit], grid, request)
            yield [shard_program(chain, bounds[0][0], last, box).reads for box in boxes]

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
        given = None if unit is None else stage.shards[unit].reads
        return shard_program(chain, stage.first, stage.last, *_writes(stage, unit), given)

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


def _boxes(shape: Shape, grid: tuple[int, int], request: Request) -> list[Box]:
    (height, width), weights = shape[1:], request.weights
    if weights is not None and not request.linear:
        if len(weights) != grid[0] * grid[1]:
            raise PlanError(f"weights = {list(weights)}: give k = {grid[0] * grid[1]} weights")
        return tile_boxes(shape, grid, weights)
    how = split_alike if request.linear else split
    return [
        Box(*box) for box in product(how(height, grid[0], "height"), how(width, grid[1], "width"))
    ]


def tile_boxes(shape: Shape, grid: tuple[int, int], weights: Sequence[float]) -> list[Box]:
    """Cut a map (C, H, W) into bands of rows, and each into columns, in proportion to weights."""
    (_, height, width), across = shape, grid[1]
    bands = [weights[i : i + across] for i in range(0, len(weights), across)]
    rows = split_weighted(height, list(map(sum, bands)), "height")
    cols = [split_weighted(width, band, "width") for band in bands]
    return [Box(r, c) for r, own in zip(rows, cols, strict=True) for c in own]
