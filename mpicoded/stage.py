"""One stage of a plan: blocks, cut into k data units and protected by r parity units.

A stage of 6 columns, k = 3, two 3x3 convolutions (halo 2):

    unit 0   oo^^..        o  columns of the output that the unit owns
    unit 1   ^^oo^^        ^  halo: columns of the input that it borrows
    unit 2   ..^^oo

Unequal shards. Data units run exactly their own shard. Parity units need one shape, so every data
unit has a *coded window*: the input that the largest shard needs far from any border, laid so that
it starts where the unit's own output starts; what lies outside the map is zero. A parity unit is a
combination of the k windows and runs the stage on that window without any padding on the cut axes;
its output is as large as the largest shard's, and a smaller shard uses the first rows and columns.

A stage is *gathered* or *direct*: its input comes from the leader, or from the units of the stages
before it. Stages that are chained directly are a *segment*; the leader holds a map at its start and
at its end only. Parity units stand in the last stage of a segment and run the whole of it. Data
units of such a segment may keep its input (``keeps``), all that their halos are made of too: then a
halo that does not come is computed by the unit that reads it.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import NamedTuple

from mpicoded.geometry import Box, Range

Shape = tuple[int, ...]


class Part(NamedTuple):
    """A box of one value of the network, which has ``channels`` numbers at each position."""

    value: str
    box: Box
    channels: int


@dataclass(frozen=True)
class Shard:
    """One unit's part of a stage: what it writes, what it reads, what that costs an image.

    ``images`` of a query are its own when units are images, ``channels`` of the output when they
    are groups of channels; then it reads the whole map. ``also_writes`` and ``also_reads`` are
    parts of further values, where the network is cut with several of them alive. Sums over the map
    are such values too: row u of a map of k rows and one column is the sum over unit u's part.
    """

    images: Range | None
    writes: Box
    reads: Box
    flops: int
    channels: Range | None = None
    also_writes: tuple[Part, ...] = ()
    also_reads: tuple[Part, ...] = ()

    @property
    def share(self) -> str:
        """Its images or channels as words; nothing for a box of the map."""
        parts = ("images", self.images), ("channels", self.channels)
        return "".join(f"{name} {part.start}:{part.stop}" for name, part in parts if part)


@dataclass(frozen=True)
class Stage:
    """Blocks ``first`` to ``last`` (inclusive), run without any exchange: one fused block.

    ``shards`` are the k data units in the order of the grid, row by row. ``windows`` are their
    coded windows (rows, columns) and ``parity_flops`` what a parity unit costs an image: that
    of running the base model on it, unless the code says another (:meth:`Plan.running`). ``entry``
    and ``exit`` name the values of the network that it reads and writes.

    ``r`` parity units (None: the plan's), ``ranks``, the home of every unit (none: one after the
    other), ``direct`` and ``keeps`` (of a segment's first stage) are a stage's own. ``split`` names
    what cuts it, of :data:`mpicoded.split.SPLITS`. With ``borders_first``, a unit computes what
    other ranks read before the rest, which hides the exchange.
    """

    name: str
    first: int
    last: int
    input_shape: Shape  # (C, H, W), or whatever the network takes if units are images
    output_shape: Shape
    grid: tuple[int, int]
    shards: tuple[Shard, ...]
    windows: tuple[Box, ...]  # each unit's coded window of its segment's input, unclipped
    whole_flops: int
    parity_flops: int
    entry: str = ""
    exit: str = ""
    r: int | None = None
    ranks: tuple[int, ...] = ()
    direct: bool = False
    keeps: bool = False
    split: str = "tiles"
    borders_first: bool = False

    @property
    def k(self) -> int:
        """Number of data units."""
        return len(self.shards)

    @property
    def dealt(self) -> int:
        """Units that the images of a query are dealt out to; 1 if each takes part in all."""
        return self.k if self.shards[0].images else 1

    @property
    def spatial(self) -> bool:
        """True if units are boxes of one map, with neighbours."""
        return not self.shards[0].share

    def channels(self, unit: int) -> int:
        """Return how many output channels a unit has; a parity unit, as many as the largest."""
        if unit >= self.k:
            return max(map(self.channels, range(self.k)))
        own = self.shards[unit].channels
        return own.size if own else _depth(self.output_shape)

    @cached_property
    def unit_shape(self) -> Shape:
        """Common shape of the outputs of all units of an image, (C, rows, columns)."""
        return (self.channels(self.k), *self.unit_output)

    @property
    def unit_output(self) -> tuple[int, int]:
        """Rows and columns of the largest shard: the common shape of coded outputs."""
        rows = max(s.writes.rows.size for s in self.shards)
        cols = max(s.writes.cols.size for s in self.shards)
        return rows, cols

    def reads(self, unit: int) -> tuple[Part, ...]:
        """Return the parts that a data unit reads, the main value first."""
        shard = self.shards[unit]
        return (Part(self.entry, shard.reads, _depth(self.input_shape)), *shard.also_reads)

    def writes(self, unit: int) -> tuple[Part, ...]:
        """Return the parts that a data unit writes, the main value first."""
        shard = self.shards[unit]
        return (Part(self.exit, shard.writes, self.channels(unit)), *shard.also_writes)

    def owned(self, unit: int) -> tuple[Part, ...]:
        """Return what a data unit alone answers for: what the next one writes too is left out."""
        main, *others = self.writes(unit)
        (rows, cols), (down, across) = main.box, self.grid
        below, right = unit + across, unit + 1
        low = rows.stop if below >= down * across else self.shards[below].writes.rows.start
        end = cols.stop if right % across == 0 else self.shards[right].writes.cols.start
        return (main._replace(box=Box(Range(rows.start, low), Range(cols.start, end))), *others)

    @property
    def redundancy(self) -> float:
        """Work of all data units over the work of the unsplit stage, minus 1 (AOFL, eq. 2)."""
        work = sum(s.flops * (s.images.size if s.images else 1) for s in self.shards)
        return work / self.whole_flops - 1 if self.whole_flops else 0.0


def _depth(shape: Shape) -> int:
    """Numbers at a position: channels of a map (C, H, W), all of anything else."""
    return shape[0] if len(shape) == 3 else prod(shape)
