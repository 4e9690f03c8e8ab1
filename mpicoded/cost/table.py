"""Tables of a network's blocks, for planners, which price boxes of its maps by the thousand.

Rows and columns are mapped back independently of each other, and where the input begins depends on
where the output begins only; so two arrays an axis say it all:

    output rows [a, b)  ->  input rows [starts[a], stops[b - 1])

The same holds for every operation inside a block, and so for its FLOPs. Numbers are those of
:func:`mpicoded.network.program.compile_piece`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mpicoded.cluster import Cluster, Device
from mpicoded.network.graph import Block, Chain

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Axis(NamedTuple):
    """Where the positions begin and end that each output reads, along one axis."""

    starts: Ints
    stops: Ints

    def back(self, start: Ints, stop: Ints) -> tuple[Ints, Ints]:
        """Map outputs [start, stop) back, many at a time."""
        return self.starts[start], self.stops[stop - 1]


class BlockTable(NamedTuple):
    """Reads of a block along rows and columns; FLOPs a position of its operations, and theirs.

    ``values`` are numbers at an output position, which count where there are no FLOPs.
    """

    reads: tuple[Axis, Axis]
    works: tuple[tuple[int, Axis, Axis], ...]
    values: int

    @classmethod
    def of(cls, chain: Chain, block: Block) -> BlockTable:
        """Map a block's outputs back, one axis after the other."""
        rows, cols = (_needs(chain, block, axis) for axis in (0, 1))
        counts = [(op.name, op.flops(1)) for op in block.ops]
        works = tuple((flops, rows[name], cols[name]) for name, flops in counts if flops)
        return cls((rows[block.entry], cols[block.entry]), works, chain.shapes[block.exit][0])


def _needs(chain: Chain, block: Block, axis: int) -> dict[str, Axis]:
    """Return what each output position needs of every value in the block."""
    outputs = np.arange(chain.shapes[block.exit][1 + axis])
    needs = {block.exit: Axis(outputs, outputs + 1)}
    for op in reversed(block.ops):
        starts, stops = needs[op.name]
        if op.windows is not None:
            window, size = op.windows[axis], chain.shapes[op.inputs[0]][1 + axis]
            starts = starts * window.stride - window.before
            stops = (stops - 1) * window.stride - window.before + window.span
            starts, stops = starts.clip(0, size - 1), stops.clip(1, size)
        for name in op.inputs:
            have = needs.get(name, Axis(starts, stops))
            needs[name] = Axis(np.minimum(have.starts, starts), np.maximum(have.stops, stops))
    return needs


class Rates(NamedTuple):
    """Seconds of blocks (blocks, kinds of devices): for a unit of work, and besides.

    ``kinds`` says of every rank which of the different devices it is.
    """

    seconds: Floats
    fixed: Floats
    kinds: Ints

    @classmethod
    def of(cls, chain: Chain, cluster: Cluster, tables: list[BlockTable]) -> Rates:
        """Look every block up on every kind of device."""
        different: list[Device] = []
        for device in cluster.devices:
            if device not in different:
                different.append(device)
        kinds = np.array([different.index(device) for device in cluster.devices])
        pairs = [
            [_rate(device, block.name, bool(table.works)) for device in different]
            for block, table in zip(chain.blocks, tables, strict=True)
        ]
        both = np.array(pairs, float).reshape(len(tables), len(different), 2)
        return cls(both[..., 0], both[..., 1], kinds)


def _rate(device: Device, name: str, has_flops: bool) -> tuple[float, float]:
    rate = device.blocks.get(name)
    if rate is not None:
        return 1 / rate.speed, rate.fixed
    return 1 / (device.flops if has_flops else device.values), 0.0


class Boxes:
    """Boxes of one block's output, each on a rank, mapped back block by block to price a stage.

    ``area`` is that of the boxes mapped back so far; ``seconds`` their ranks' for an image.
    """

    def __init__(
        self, rows: tuple[Ints, Ints], cols: tuple[Ints, Ints], kinds: Ints, batch: int
    ) -> None:
        self.rows, self.cols, self._kinds, self._batch = rows, cols, kinds, batch
        self.seconds = np.zeros(len(kinds))

    @property
    def area(self) -> Ints:
        """Positions that are read."""
        return (self.rows[1] - self.rows[0]) * (self.cols[1] - self.cols[0])

    def back(self, table: BlockTable, seconds: Floats, fixed: Floats) -> None:
        """Map back through a block, which takes ``seconds`` of every kind of device."""
        amount = np.zeros(len(self._kinds)) if table.works else table.values * self.area
        for flops, rows, cols in table.works:
            high, wide = rows.back(*self.rows), cols.back(*self.cols)
            amount = amount + flops * (high[1] - high[0]) * (wide[1] - wide[0])
        self.seconds += self._batch * amount * seconds[self._kinds] + fixed[self._kinds]
        self.rows = table.reads[0].back(*self.rows)
        self.cols = table.reads[1].back(*self.cols)


class Strips:
    """All strips of rows of one block's output, by (first, last) row, mapped back likewise.

    Their seconds are differences: those up to a strip's last row less those before its first.
    """

    def __init__(self, shape: tuple[int, ...], kinds: int, batch: int) -> None:
        rows, self._cols = np.arange(shape[1]), (np.array([0]), np.array([shape[2]]))
        self._rows, self._batch = (rows, rows + 1), batch
        self._before, self._upto = np.zeros((2, kinds, shape[1]))
        self._fixed = np.zeros(kinds)

    @property
    def width(self) -> int:
        """Columns that are read."""
        return int(self._cols[1][0] - self._cols[0][0])

    def back(self, table: BlockTable, seconds: Floats, fixed: Floats) -> None:
        """Map back through a block."""

        def work(of: Callable[[Axis], Ints], edge: Ints) -> Floats:
            if not table.works:
                return (table.values * self.width * edge).astype(float)
            amount = np.zeros(len(edge))
            for flops, rows, cols in table.works:
                wide = cols.back(*self._cols)
                amount += flops * int(wide[1][0] - wide[0][0]) * of(rows)
            return amount

        start, stop = self._rows
        rate = self._batch * seconds[:, None]
        self._before += rate * work(lambda rows: rows.starts[start], start)
        self._upto += rate * work(lambda rows: rows.stops[stop - 1], stop)
        self._fixed += fixed
        self._rows = table.reads[0].back(start, stop)
        self._cols = table.reads[1].back(*self._cols)

    def reads(self, start: Ints, stop: Ints) -> Ints:
        """Return the rows that strips read."""
        return self._rows[1][stop - 1] - self._rows[0][start]

    def seconds(self, kinds: Ints, start: Ints, stop: Ints) -> Floats:
        """Return the seconds of strips, each on a kind of device."""
        upto: Floats = self._upto[kinds, stop - 1] + self._fixed[kinds]
        return upto - self._before[kinds, start]

    def slopes(self, kinds: Ints) -> Floats:
        """Return the seconds of a row of the map, without halos."""
        whole: Floats = self._upto[kinds, -1] - self._before[kinds, 0]
        return np.asarray(whole / self._upto.shape[1])
