"""Who computes what: stages of blocks, each cut into k data units and r parity units.

Plain numbers only. A planner in :mod:`mpicoded.partition` makes a Plan from a traced network;
:mod:`mpicoded.units` cuts real tensors by it.

A stage of 6 columns, k = 3, two 3x3 convolutions (halo 2):

    unit 0   oo^^..        o  columns of the output that the unit owns
    unit 1   ^^oo^^        ^  halo: columns of the input that it borrows
    unit 2   ..^^oo

Unequal shards. Data units run exactly their own shard. Parity units need one shape, so every data
unit has a *coded window*: the input that the largest shard needs far from any border, laid so that
it starts where the unit's own output starts; what lies outside the map is zero. A parity unit is a
combination of the k windows and runs the stage on that window without any padding on the cut axes;
its output is as large as the largest shard's, and a smaller shard uses the first rows and columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

from mpicoded.cluster import Cluster
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range

Shape = tuple[int, ...]
HEADINGS = (
    "rank", "unit", "rows written", "columns", "rows read", "columns", "MFLOP", "kB in", "kB out",
)  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One unit's part of a stage: what it writes, what it reads, what that costs an image."""

    images: Range | None  # the images of a query, when units are images
    writes: Box
    reads: Box
    flops: int


@dataclass(frozen=True)
class Stage:
    """Blocks ``first`` to ``last`` (inclusive), run without any exchange: one fused block.

    ``shards`` are the k data units in the order of the grid, row by row. ``window`` is the coded
    window of a unit (rows, columns) and ``parity_flops`` what a parity unit costs an image that
    runs the base model on it.
    """

    name: str
    first: int
    last: int
    input_shape: Shape  # (C, H, W), or whatever the network takes if units are images
    output_shape: Shape
    grid: tuple[int, int]
    shards: tuple[Shard, ...]
    windows: tuple[Box, ...]  # each unit's coded window, unclipped
    whole_flops: int
    parity_flops: int

    @property
    def by_images(self) -> bool:
        """Whether a unit is an image (or several) rather than a shard."""
        return self.shards[0].images is not None

    @property
    def unit_output(self) -> tuple[int, int]:
        """Rows and columns of the largest shard: the common shape of coded outputs."""
        rows = max(s.writes.rows.size for s in self.shards)
        cols = max(s.writes.cols.size for s in self.shards)
        return rows, cols

    @property
    def redundancy(self) -> float:
        """Work of all data units over the work of the unsplit stage, minus 1 (AOFL, eq. 2)."""
        work = sum(s.flops for s in self.shards)
        if self.by_images or not self.whole_flops:
            return 0.0
        return work / self.whole_flops - 1


@dataclass(frozen=True)
class Plan:
    """Stages in order, then the head on the leader. ``batch`` is the number of images a query."""

    stages: tuple[Stage, ...]
    k: int
    r: int
    batch: int
    split: str
    head_flops: int
    output_shape: Shape

    @property
    def n(self) -> int:
        """Units a stage: k data and r parity units."""
        return self.k + self.r

    @cached_property
    def redundancy(self) -> float:
        """Compute redundancy of the data units over all stages: 0.25 is a quarter more work."""
        whole = sum(s.whole_flops for s in self.stages)
        return sum(s.redundancy * s.whole_flops for s in self.stages) / whole if whole else 0.0

    def check(self, cluster: Cluster, sharing: bool) -> None:
        """Check the plan against the cluster, before anything runs.

        Raises
        ------
        PlanError
            If the workers are too few and may not take several units each, or the images of a
            query cannot be dealt out to k units.
        """
        workers = len(cluster.workers)
        if workers and workers < self.n and not sharing:
            raise PlanError(
                f"k + r = {self.k} + {self.r} = {self.n} units need {self.n} workers, there are "
                f"{workers}: start {self.n + 1} ranks (mpirun -n {self.n + 1}), lower k or r, or "
                "set sharing = true in [runtime] so that a worker takes several units"
            )
        if self.stages[0].by_images and self.batch % self.k:
            raise PlanError(
                f"batch = {self.batch} images a query cannot be dealt out to k = {self.k} units: "
                f"set batch in [input] to a multiple of {self.k}"
            )

    def home(self, unit: int, cluster: Cluster) -> int:
        """Return the rank that computes ``unit`` as long as nothing goes wrong."""
        workers = cluster.workers
        turn = unit // len(workers)  # with sharing, a copy must not lie where its original does
        return workers[(unit + turn) % len(workers)]

    def __str__(self) -> str:
        return self.table(Cluster.local(self.n + 1))

    def table(self, cluster: Cluster) -> str:
        """Return rank x stage as text: what each rank writes and reads, its work and its bytes.

        Ranges are half-open, 0:6 is rows 0 to 5. A parity unit has no place in the map; it shows
        the size of its coded window and output.
        """
        lines = [
            f"split = {self.split}, k = {self.k} data units, r = {self.r} parity units, "
            f"images a query: {self.batch}"
        ]
        for s, stage in enumerate(self.stages):
            maps = [" x ".join(map(str, x)) for x in (stage.input_shape, stage.output_shape)]
            lines += ["", f"stage {s + 1} of {len(self.stages)}: {stage.name}, {' -> '.join(maps)}"]
            lines += aligned([HEADINGS, *(self._row(s, i, cluster) for i in range(self.n))])
        return "\n".join([*lines, "", *self._totals(cluster)])

    def _row(self, stage: int, unit: int, cluster: Cluster) -> tuple[str, ...]:
        rank = str(self.home(unit, cluster) if cluster.workers else 0)
        numbers = (
            f"{self.flops(stage, unit) / 1e6:.3f}",
            f"{self.bytes_in(stage, unit) / 1e3:.1f}",
            f"{self.bytes_out(stage, unit) / 1e3:.1f}",
        )
        name = f"{unit}" if unit < self.k else f"{unit} parity"
        return rank, name, *_extents(self.stages[stage], unit), *numbers

    def _totals(self, cluster: Cluster) -> list[str]:
        data, parity = (
            sum(self.flops(s, i) for s, i in self.units() if (i >= self.k) == coded) / 1e6
            for coded in (False, True)
        )
        sent = sum(self.bytes_in(s, i) for s, i in self.units()) / 1e3
        back = sum(self.bytes_out(s, i) for s, i in self.units()) / 1e3
        head = self.head_flops * self.batch / 1e6
        spare = ", ".join(map(str, cluster.workers[self.n :]))
        lines = [
            f"data units    {data:.3f} MFLOP a query, {100 * self.redundancy:.1f} % redundancy",
            f"parity units  {parity:.3f} MFLOP a query, if they run the base model",
            f"head          {head:.3f} MFLOP a query, on rank 0",
            f"messages      {sent:.1f} kB out and {back:.1f} kB back a query, in float32",
            f"spare ranks   {spare}",
        ]
        return [line for line, here in zip(lines, (1, self.r, 1, 1, spare), strict=True) if here]

    def units(self) -> Iterator[tuple[int, int]]:
        """Iterate over all (stage, unit)."""
        return ((s, i) for s in range(len(self.stages)) for i in range(self.n))

    def bytes_in(self, stage: int, unit: int, itemsize: int = 4) -> int:
        """Bytes of one unit's input for a query."""
        st = self.stages[stage]
        if st.by_images:
            return itemsize * prod(st.input_shape) * self.batch // self.k
        box = st.shards[unit].reads if unit < self.k else st.windows[0]
        return itemsize * st.input_shape[0] * box.area * self.batch

    def bytes_out(self, stage: int, unit: int, itemsize: int = 4) -> int:
        """Bytes of one unit's output for a query."""
        st = self.stages[stage]
        if st.by_images:
            return itemsize * prod(st.output_shape) * self.batch // self.k
        rows, cols = st.unit_output
        area = st.shards[unit].writes.area if unit < self.k else rows * cols
        return itemsize * st.output_shape[0] * area * self.batch

    def flops(self, stage: int, unit: int) -> int:
        """FLOPs of one unit for a query; of a parity unit, if it runs the base model."""
        st = self.stages[stage]
        per_image = st.shards[unit].flops if unit < self.k else st.parity_flops
        return per_image * (self.batch // self.k if st.by_images else self.batch)


def _extents(stage: Stage, unit: int) -> tuple[str, str, str, str]:
    """Return the rows and columns written and read, as words."""
    if stage.by_images:
        images = stage.shards[unit].images if unit < len(stage.shards) else None
        return f"images {images.start}:{images.stop}" if images else "coded", "all", "all", "all"
    if unit < len(stage.shards):
        shard = stage.shards[unit]
        ranges = (*shard.writes, *shard.reads)
        rows, cols, read_rows, read_cols = (f"{r.start}:{r.stop}" for r in ranges)
        return rows, cols, read_rows, read_cols
    sizes = (*stage.unit_output, *(r.size for r in stage.windows[0]))
    rows, cols, read_rows, read_cols = (f"{n} coded" for n in sizes)
    return rows, cols, read_rows, read_cols


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines, every column right-justified."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
