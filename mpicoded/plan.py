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

A stage is *gathered* or *direct*: its input comes from the leader, or from the units of the stages
before it. Stages that are chained directly are a *segment*; the leader holds a map at its start and
at its end only. Parity units stand in the last stage of a segment and run the whole of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import NamedTuple

from mpicoded.cluster import Cluster
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range

Shape = tuple[int, ...]
HEADINGS = (
    "rank", "unit", "rows written", "columns", "rows read", "columns", "MFLOP", "kB in", "kB out",
)  # fmt: skip


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


@dataclass(frozen=True)
class Stage:
    """Blocks ``first`` to ``last`` (inclusive), run without any exchange: one fused block.

    ``shards`` are the k data units in the order of the grid, row by row. ``windows`` are their
    coded windows (rows, columns) and ``parity_flops`` what a parity unit costs an image: that
    of running the base model on it, unless the code says another (:meth:`Plan.running`). ``entry``
    and ``exit`` name the values of the network that it reads and writes.

    ``r`` parity units (None: the plan's), ``ranks``, the home of every unit (none: one after the
    other), and ``direct`` are a stage's own.
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

    @property
    def k(self) -> int:
        """Number of data units."""
        return len(self.shards)

    @property
    def by_images(self) -> bool:
        """Whether a unit is an image (or several) rather than a shard."""
        return self.shards[0].images is not None

    @property
    def by_channels(self) -> bool:
        """Whether a unit is a group of output channels of the whole map."""
        return self.shards[0].channels is not None

    def channels(self, unit: int) -> int:
        """Return how many output channels a unit has; a parity unit, as many as the largest."""
        own = [s.channels.size if s.channels else self.output_shape[0] for s in self.shards]
        return own[unit] if unit < len(own) else max(own)

    @property
    def unit_shape(self) -> Shape:
        """Common shape of the outputs of all units of an image, (C, rows, columns)."""
        return (self.channels(len(self.shards)), *self.unit_output)

    @property
    def unit_output(self) -> tuple[int, int]:
        """Rows and columns of the largest shard: the common shape of coded outputs."""
        rows = max(s.writes.rows.size for s in self.shards)
        cols = max(s.writes.cols.size for s in self.shards)
        return rows, cols

    def reads(self, unit: int) -> tuple[Part, ...]:
        """Return what a data unit reads, the main value first."""
        shard = self.shards[unit]
        return (Part(self.entry, shard.reads, _depth(self.input_shape)), *shard.also_reads)

    def writes(self, unit: int) -> tuple[Part, ...]:
        """Return what a data unit writes, the main value first."""
        shard, channels = self.shards[unit], _depth(self.output_shape)
        if shard.channels:
            channels = shard.channels.size
        return (Part(self.exit, shard.writes, channels), *shard.also_writes)

    def owned(self, unit: int) -> tuple[Part, ...]:
        """Return what a data unit alone answers for, the main value first.

        Shards of one size may overlap: what the next one writes too is left out.
        """
        main, *others = self.writes(unit)
        (rows, cols), (down, across) = main.box, self.grid
        below, right = unit + across, unit + 1
        low = rows.stop if below >= down * across else self.shards[below].writes.rows.start
        end = cols.stop if right % across == 0 else self.shards[right].writes.cols.start
        return (main._replace(box=Box(Range(rows.start, low), Range(cols.start, end))), *others)

    @property
    def redundancy(self) -> float:
        """Work of all data units over the work of the unsplit stage, minus 1 (AOFL, eq. 2)."""
        work = sum(s.flops for s in self.shards)
        if self.by_images or not self.whole_flops:
            return 0.0
        return work / self.whole_flops - 1


def _depth(shape: Shape) -> int:
    """Numbers at a position: channels of a map (C, H, W), all of anything else."""
    return shape[0] if len(shape) == 3 else prod(shape)


@dataclass(frozen=True)
class Plan:
    """Stages in order, then the head on the leader. ``batch`` is the number of images a query.

    ``k`` and ``r`` are the units of a stage that does not say its own.

    Without ``systematic`` every unit is coded: the k data units are what is coded, and no worker
    has one of them as it is.
    """

    stages: tuple[Stage, ...]
    k: int
    r: int
    batch: int
    split: str
    head_flops: int
    output_shape: Shape
    systematic: bool = True

    @property
    def n(self) -> int:
        """Units a stage: k data and r parity units."""
        return self.k + self.r

    def parities(self, stage: int) -> int:
        """Return how many parity units a stage has; none, if the next goes on without the leader.

        Raises
        ------
        PlanError
            If the stage asks for some and its outputs do not come to the leader.
        """
        st, inside = self.stages[stage], any(s.direct for s in self.stages[stage + 1 : stage + 2])
        if inside and st.r:
            raise PlanError(
                f"stage {st.name} has r = {st.r} parity units, and its k = {st.k} outputs go on to "
                "the next stage directly: give the parity units to the last stage of the segment, "
                "whose outputs the leader decodes, or gather before the next stage"
            )
        return 0 if inside else self.r if st.r is None else st.r

    @cached_property
    def segments(self) -> tuple[Range, ...]:
        """Ranges of stages between two maps that the leader holds."""
        starts = [s for s, stage in enumerate(self.stages) if not (s and stage.direct)]
        return tuple(map(Range, starts, [*starts[1:], len(self.stages)]))

    @cached_property
    def ranks(self) -> int:
        """Ranks that the plan takes, the leader's too: a unit each, if it names no homes."""
        return 1 + max(max(st.ranks or [self.units_of(s)]) for s, st in enumerate(self.stages))

    @cached_property
    def redundancy(self) -> float:
        """Compute redundancy of the data units over all stages: 0.25 is a quarter more work."""
        whole = sum(s.whole_flops for s in self.stages)
        return sum(s.redundancy * s.whole_flops for s in self.stages) / whole if whole else 0.0

    def running(self, flops: Iterable[int | None]) -> Plan:
        """Return the plan with what a coded unit of each stage costs an image, where one says it.

        A code may let workers run another network than the base model's stage on coded units.
        """
        stages = [
            stage if each is None else replace(stage, parity_flops=each)
            for stage, each in zip(self.stages, flops, strict=True)
        ]
        return replace(self, stages=tuple(stages))

    def covers(self, block: int) -> bool:
        """Whether a stage runs the block; the leader runs the others itself."""
        return any(stage.first <= block <= stage.last for stage in self.stages)

    def check(self, cluster: Cluster, sharing: bool) -> None:
        """Check the plan against the cluster, before anything runs.

        Raises
        ------
        PlanError
            If the workers are too few and may not take several units each, or the images of a
            query cannot be dealt out to k units.
        """
        workers = len(cluster.workers)
        self._check_homes(cluster)
        if workers and workers < self.ranks - 1 and not sharing:
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

    def _check_homes(self, cluster: Cluster) -> None:
        for s, stage in enumerate(self.stages):
            units = stage.k + self.parities(s)
            if stage.ranks and len(stage.ranks) != units:
                raise PlanError(
                    f"stage {stage.name} has {units} units and {len(stage.ranks)} home ranks, "
                    f"{', '.join(map(str, stage.ranks))}: give each unit one"
                )
            strays = [rank for rank in stage.ranks if not 0 <= rank < len(cluster.hosts)]
            if strays and cluster.workers:
                raise PlanError(
                    f"stage {stage.name} has a unit on rank {strays[0]}, and the ranks are 0 to "
                    f"{len(cluster.workers)}: start {self.ranks} ranks (mpirun -n {self.ranks}), "
                    "or plan for fewer"
                )

    def coded(self, unit: int, stage: int = 0) -> bool:
        """Whether a unit is made by the code: its window and work are those of the largest."""
        return unit >= self.stages[stage].k or not self.systematic

    def home(self, unit: int, cluster: Cluster, stage: int = 0) -> int:
        """Return the rank that computes ``unit`` of a stage as long as nothing goes wrong."""
        if self.stages[stage].ranks:
            return self.stages[stage].ranks[unit]
        workers = cluster.workers
        turn = unit // len(workers)  # with sharing, a copy must not lie where its original does
        return workers[(unit + turn) % len(workers)]

    def placed(self, cluster: Cluster) -> Plan:
        """Return the plan with the home rank of every unit of every stage."""
        stages = [
            replace(st, ranks=tuple(self.home(i, cluster, s) for i in range(self.units_of(s))))
            for s, st in enumerate(self.stages)
        ]
        return replace(self, stages=tuple(stages))

    def __str__(self) -> str:
        return self.table(Cluster.local(self.ranks))

    def table(self, cluster: Cluster) -> str:
        """Return rank x stage as text: what each rank writes and reads, its work and its bytes.

        Ranges are half-open, 0:6 is rows 0 to 5. A parity unit has no place in the map; it shows
        the size of its coded window and output.
        """
        lines = [
            f"split = {self.split}, k = {self.k} data units, r = {self.r} parity units, "
            f"images a query: {self.batch}" + ("" if self.systematic else ", all units coded")
        ]
        for s, stage in enumerate(self.stages):
            maps = [" x ".join(map(str, x)) for x in (stage.input_shape, stage.output_shape)]
            lines += ["", f"stage {s + 1} of {len(self.stages)}: {stage.name}, {' -> '.join(maps)}"]
            rows = [self._row(s, i, cluster) for i in range(self.units_of(s))]
            lines += aligned([HEADINGS, *rows])
        return "\n".join([*lines, "", *self._totals(cluster)])

    def _row(self, stage: int, unit: int, cluster: Cluster) -> tuple[str, ...]:
        rank = str(self.home(unit, cluster, stage) if cluster.workers else 0)
        numbers = (
            f"{self.flops(stage, unit) / 1e6:.3f}",
            f"{self.bytes_in(stage, unit) / 1e3:.1f}",
            f"{self.bytes_out(stage, unit) / 1e3:.1f}",
        )
        word = "parity" if self.systematic else "coded"
        name = f"{unit} {word}" if self.coded(unit, stage) else f"{unit}"
        place = self.stages[stage].k if self.coded(unit, stage) else unit
        return rank, name, *_extents(self.stages[stage], place), *numbers

    def _totals(self, cluster: Cluster) -> list[str]:
        data, parity = (
            sum(self.flops(s, i) for s, i in self.units() if self.coded(i, s) == coded) / 1e6
            for coded in (False, True)
        )
        sent = sum(self.bytes_in(s, i) for s, i in self.units()) / 1e3
        back = sum(self.bytes_out(s, i) for s, i in self.units()) / 1e3
        head = self.head_flops * self.batch / 1e6
        homes = {self.home(i, cluster, s) for s, i in self.units()} if cluster.workers else set()
        spare = ", ".join(str(p) for p in cluster.workers if p not in homes)
        word = "parity units" if self.systematic else "coded units "
        lines = [
            f"data units    {data:.3f} MFLOP a query, {100 * self.redundancy:.1f} % redundancy",
            f"{word}  {parity:.3f} MFLOP a query",
            f"head          {head:.3f} MFLOP a query, on rank 0",
            f"messages      {sent:.1f} kB out and {back:.1f} kB back a query, in float32",
            f"spare ranks   {spare}",
        ]
        parities = any(self.parities(s) for s in range(len(self.stages)))
        wanted = (self.systematic, parities or not self.systematic, 1, 1, spare)
        return [line for line, here in zip(lines, wanted, strict=True) if here]

    def units(self) -> Iterator[tuple[int, int]]:
        """Iterate over all (stage, unit)."""
        return ((s, i) for s in range(len(self.stages)) for i in range(self.units_of(s)))

    def units_of(self, stage: int) -> int:
        """Return how many units a stage has."""
        return self.stages[stage].k + self.parities(stage)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Bytes that a position of each value takes in a query's message, in float32."""
        found: dict[str, int] = {}
        for st in self.stages:
            images = self.batch // st.k if st.by_images else self.batch
            for part in (p for i in range(st.k) for p in (*st.reads(i), *st.writes(i))):
                found[part.value] = max(found.get(part.value, 0), 4 * part.channels * images)
        return found

    def bytes_in(self, stage: int, unit: int, itemsize: int = 4) -> int:
        """Bytes of one unit's input for a query."""
        st = self.stages[stage]
        if st.by_images:
            return itemsize * prod(st.input_shape) * self.batch // st.k
        if not self.coded(unit, stage):
            return itemsize * st.input_shape[0] * st.shards[unit].reads.area * self.batch
        start = max(segment.start for segment in self.segments if segment.start <= stage)
        return itemsize * self.stages[start].input_shape[0] * st.windows[0].area * self.batch

    def bytes_out(self, stage: int, unit: int, itemsize: int = 4) -> int:
        """Bytes of one unit's output for a query."""
        st = self.stages[stage]
        if st.by_images:
            return itemsize * prod(st.output_shape) * self.batch // st.k
        rows, cols = st.unit_output
        area = rows * cols if self.coded(unit, stage) else st.shards[unit].writes.area
        channels = st.channels(st.k if self.coded(unit, stage) else unit)
        return itemsize * channels * area * self.batch

    def flops(self, stage: int, unit: int) -> int:
        """FLOPs of one unit for a query."""
        st = self.stages[stage]
        per_image = st.parity_flops if self.coded(unit, stage) else st.shards[unit].flops
        return per_image * (self.batch // st.k if st.by_images else self.batch)


def _extents(stage: Stage, unit: int) -> tuple[str, str, str, str]:
    """Return the rows and columns written and read, as words."""
    if stage.by_images:
        images = stage.shards[unit].images if unit < len(stage.shards) else None
        return f"images {images.start}:{images.stop}" if images else "coded", "all", "all", "all"
    if stage.by_channels:
        own = stage.shards[unit].channels if unit < len(stage.shards) else None
        return f"channels {own.start}:{own.stop}" if own else "coded", "all", "all", "all"
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
