"""Plans: stages of blocks, each with k data units and r parity units, and the head.

Plain numbers only. :mod:`mpicoded.split` makes a Plan from a traced network and cuts real tensors
by it, :mod:`mpicoded.moves` says who sends what to whom.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from mpicoded.cluster import Cluster
from mpicoded.errors import PlanError
from mpicoded.geometry import Range
from mpicoded.stage import Part, Shape, Shard, Stage

__all__ = ["Part", "Plan", "Shard", "Stage", "aligned"]

HEADINGS = (
    "rank", "unit", "rows written", "columns", "rows read", "columns", "MFLOP", "kB in", "kB out",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Stages in order, then the head on the leader. ``batch`` is the number of images a query.

    ``k`` is the most data units of a stage, ``r`` the parity units of one that does not say its
    own. A plan without stages leaves all to the leader: one device.

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
        """Units of a stage, the most: data and parity units."""
        return max(map(self.units_of, range(len(self.stages))), default=0)

    def parities(self, stage: int) -> int:
        """Return how many parity units a stage has: none within a segment, or PlanError."""
        st, inside = self.stages[stage], self.inside(stage + 1)
        if inside and st.r:
            raise PlanError(
                f"stage {st.name} has r = {st.r} parity units, and its k = {st.k} outputs go on to "
                "the next stage directly: give the parity units to the last stage of the segment, "
                "whose outputs the leader decodes, or gather before the next stage"
            )
        return 0 if inside else self.r if st.r is None else st.r

    def inside(self, stage: int) -> bool:
        """True if there is such a stage and its input comes from the units of those before it."""
        return 0 < stage < len(self.stages) and self.stages[stage].direct

    @property
    def direct(self) -> bool:
        """True if units of some stage have their input from other units."""
        return len(self.segments) < len(self.stages)

    @cached_property
    def segments(self) -> tuple[Range, ...]:
        """Ranges of stages between two maps that the leader holds."""
        starts = [s for s in range(len(self.stages)) if not self.inside(s)]
        return tuple(map(Range, starts, [*starts[1:], len(self.stages)]))

    @cached_property
    def ranks(self) -> int:
        """Ranks that the plan takes, the leader's too: a unit each, if it names no homes."""
        homes = (max(st.ranks or [self.units_of(s)]) for s, st in enumerate(self.stages))
        return 1 + max(homes, default=0)

    def last_of(self, s: int) -> int:
        """Return the last stage of the segment that stage ``s`` is in."""
        return next(segment.stop - 1 for segment in self.segments if s < segment.stop)

    def seen_by(self, unit: int, s: int) -> Stage:
        """Return what a unit of stage ``s`` runs: the stage, or all of the segment if coded."""
        return self.fused(s) if unit >= self.stages[s].k else self.stages[s]

    def fused(self, s: int) -> Stage:
        """Return the segment that ends with stage ``s`` as one stage: as its coded units see it."""
        (segment,) = (each for each in self.segments if each.stop == s + 1)
        stages = self.stages[slice(*segment)]
        first, last = stages[0], stages[-1]
        if first is last:
            return last
        shards = tuple(
            replace(own, reads=given.reads, flops=sum(st.shards[i].flops for st in stages))
            for i, (own, given) in enumerate(zip(last.shards, first.shards, strict=True))
        )
        return replace(
            last, first=first.first, input_shape=first.input_shape, entry=first.entry,
            shards=shards, whole_flops=sum(st.whole_flops for st in stages), direct=False,
        )  # fmt: skip

    @property
    def shape(self) -> tuple[int, int]:
        """(stages, n) of what is noted of every unit: at least one of each."""
        return max(1, len(self.stages)), max(1, self.n)

    @property
    def dealt(self) -> int:
        """Units that the images of a query are dealt out to: of a split by images, else 1."""
        return max((stage.dealt for stage in self.stages), default=1)

    @property
    def alike(self) -> bool:
        """True if all stages have as many units, cut in the same way."""
        cuts = {(st.k, self.units_of(s), st.split) for s, st in enumerate(self.stages)}
        return len(cuts) == 1

    @cached_property
    def redundancy(self) -> float:
        """Compute redundancy of the data units over all stages: 0.25 is a quarter more work."""
        whole = sum(s.whole_flops for s in self.stages)
        return sum(s.redundancy * s.whole_flops for s in self.stages) / whole if whole else 0.0

    def running(self, flops: Iterable[int | None]) -> Plan:
        """Return the plan with the FLOPs of coded units that run a network of the code's own."""
        stages = [
            stage if each is None else replace(stage, parity_flops=each)
            for stage, each in zip(self.stages, flops, strict=True)
        ]
        return replace(self, stages=tuple(stages))

    def covers(self, block: int) -> bool:
        """True if a stage runs the block; the leader runs the others itself."""
        return any(stage.first <= block <= stage.last for stage in self.stages)

    def check(self, cluster: Cluster, sharing: bool) -> None:
        """Raise PlanError if workers are too few, or images cannot be dealt out to the units."""
        workers = len(cluster.workers)
        self._check_homes(cluster)
        for stage in (st for st in self.stages if 0 in st.ranks and workers):
            raise PlanError(
                f"stage {stage.name} has unit {stage.ranks.index(0)} on rank 0, which computes no "
                "units: give it to a worker, or leave the stage's blocks to rank 0"
            )
        units = ((0 if st.ranks else self.units_of(s), st.k) for s, st in enumerate(self.stages))
        n, k = max(units, default=(0, 0))
        if workers and workers < n and not sharing:
            raise PlanError(
                f"k + r = {k} + {n - k} = {n} units need {n} workers, there are {workers}: start "
                f"{n + 1} ranks (mpirun -n {n + 1}), lower k or r, or set sharing = true in "
                "[runtime] so that a worker takes several units"
            )
        for dealt in (stage.dealt for stage in self.stages if self.batch % stage.dealt):
            raise PlanError(
                f"batch = {self.batch} images a query cannot be dealt out to k = {dealt} units: "
                f"set batch in [input] to a multiple of {dealt}"
            )

    def _check_homes(self, cluster: Cluster) -> None:
        for s, stage in enumerate(self.stages):
            units, direct = self.units_of(s), self.inside(s) or self.inside(s + 1)
            if stage.ranks and (len(stage.ranks) < units or direct and self.replicated(s)):
                raise PlanError(
                    f"stage {stage.name} has {units} units and {len(stage.ranks)} home "
                    f"ranks, {', '.join(map(str, stage.ranks))}: give each unit one"
                )
            strays = [rank for rank in stage.ranks if not 0 <= rank < len(cluster.hosts)]
            if strays and cluster.workers:
                raise PlanError(
                    f"stage {stage.name} has a unit on rank {strays[0]}, and the ranks are 0 to "
                    f"{len(cluster.workers)}: start {self.ranks} ranks (mpirun -n {self.ranks}), "
                    "or plan for fewer"
                )

    def coded(self, unit: int, stage: int = 0) -> bool:
        """True if a unit is made by the code: its window and work are those of the largest."""
        return unit >= self.stages[stage].k or not self.systematic

    def home(self, unit: int, cluster: Cluster, stage: int = 0) -> int:
        """Return the rank that computes ``unit`` of a stage as long as nothing goes wrong."""
        if self.stages[stage].ranks:
            return self.stages[stage].ranks[unit]
        workers = cluster.workers
        turn = unit // len(workers)  # with sharing, a copy must not lie where its original does
        return workers[(unit + turn) % len(workers)]

    def replicated(self, stage: int) -> bool:
        """True if a stage has more ranks than units: a unit is at home on each of them."""
        return len(self.stages[stage].ranks) > self.units_of(stage)

    def at_home(self, rank: int, cluster: Cluster) -> list[tuple[int, int]]:
        """Return every (stage, unit) that is a rank's own."""
        return [
            (s, i)
            for s, i in self.units()
            if rank in (self.stages[s].ranks if self.replicated(s) else (self.home(i, cluster, s),))
        ]

    def placed(self, cluster: Cluster) -> Plan:
        """Return the plan with every unit's home rank; PlanError if a stage's own are wrong."""
        self._check_homes(cluster)
        stages = [
            replace(st, ranks=tuple(self.home(i, cluster, s) for i in range(self.units_of(s))))
            if not self.replicated(s)
            else st
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
        if not self.stages:
            lines = [f"no stage: rank 0 runs the model unsplit, images a query: {self.batch}"]
        for s, stage in enumerate(self.stages):
            maps = [" x ".join(map(str, x)) for x in (stage.input_shape, stage.output_shape)]
            differs = (stage.split, stage.k) != (self.split, self.k)
            own = f", split = {stage.split}, k = {stage.k}" * differs
            title = f"{stage.name}, {' -> '.join(maps)}{own}"
            lines += ["", f"stage {s + 1} of {len(self.stages)}: {title}"]
            rows = [self._row(s, i, cluster) for i in range(self.units_of(s))]
            lines += aligned([HEADINGS, *rows])
        return "\n".join([*lines, "", *self._totals(cluster)])

    def _row(self, stage: int, unit: int, cluster: Cluster) -> tuple[str, ...]:
        rank = str(self.home(unit, cluster, stage) if cluster.workers else 0)
        if self.replicated(stage) and cluster.workers:
            rank = f"any of {len(self.stages[stage].ranks)}"
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
        sent = sum(self.bytes_in(s, i) for s, i in self.fed) / 1e3
        back = sum(self.bytes_out(s, i) for s, i in self.gathered) / 1e3
        head = self.head_flops * self.batch / 1e6
        spare = ", ".join(str(p) for p in cluster.workers if not self.at_home(p, cluster))
        word = "parity units" if self.systematic else "coded units "
        lines = [
            f"data units    {data:.3f} MFLOP a query, {100 * self.redundancy:.1f} % redundancy",
            f"{word}  {parity:.3f} MFLOP a query",
            f"head          {head:.3f} MFLOP a query, on rank 0",
            f"messages      {sent:.1f} kB out and {back:.1f} kB back a query, in float32",
            f"spare ranks   {spare}",
        ]
        parities = any(self.parities(s) for s in range(len(self.stages)))
        units = bool(self.stages)
        wanted = (units and self.systematic, parities or not self.systematic, 1, units, spare)
        return [line for line, here in zip(lines, wanted, strict=True) if here]

    def units(self) -> Iterator[tuple[int, int]]:
        """Iterate over all (stage, unit)."""
        return ((s, i) for s in range(len(self.stages)) for i in range(self.units_of(s)))

    @property
    def fed(self) -> list[tuple[int, int]]:
        """Every (stage, unit) whose input comes from the leader."""
        return [(s, i) for s, i in self.units() if self.coded(i, s) or not self.inside(s)]

    @property
    def gathered(self) -> list[tuple[int, int]]:
        """Every (stage, unit) whose output goes to the leader."""
        return [(s, i) for s, i in self.units() if not self.inside(s + 1)]

    def units_of(self, stage: int) -> int:
        """Return how many units a stage has."""
        return self.stages[stage].k + self.parities(stage)

    @cached_property
    def widths(self) -> dict[str, int]:
        """Bytes that a position of each value takes in a query's message, in float32."""
        found: dict[str, int] = {}
        for st in self.stages:
            for part in (p for i in range(st.k) for p in (*st.reads(i), *st.writes(i))):
                width = 4 * part.channels * (self.batch // st.dealt)
                found[part.value] = max(found.get(part.value, 0), width)
        return found

    def bytes_in(self, stage: int, unit: int, itemsize: int = 4) -> int:
        """Bytes of one unit's input for a query."""
        st = self.stages[stage]
        if not self.coded(unit, stage):
            part = st.reads(unit)[0]
            return itemsize * part.channels * part.box.area * (self.batch // st.dealt)
        start = max(segment.start for segment in self.segments if segment.start <= stage)
        channels = self.stages[start].reads(0)[0].channels
        return itemsize * channels * st.windows[0].area * (self.batch // st.dealt)

    def bytes_out(self, stage: int, unit: int, itemsize: int = 4) -> int:
        """Bytes of one unit's output for a query."""
        st = self.stages[stage]
        coded = self.coded(unit, stage)
        own = 0 if coded else st.channels(unit) * st.shards[unit].writes.area
        values = prod(st.unit_shape) if coded else own
        return itemsize * values * (self.batch // st.dealt)

    def flops(self, stage: int, unit: int) -> int:
        """FLOPs of one unit for a query."""
        st = self.stages[stage]
        per_image = st.parity_flops if self.coded(unit, stage) else st.shards[unit].flops
        return per_image * (self.batch // st.dealt)


def _extents(stage: Stage, unit: int) -> tuple[str, ...]:
    """Return the rows and columns written and read, as words."""
    shard = stage.shards[unit] if unit < stage.k else None
    if not stage.spatial:
        return shard.share if shard else "coded", "all", "all", "all"
    if shard:
        return tuple(f"{r.start}:{r.stop}" for r in (*shard.writes, *shard.reads))
    sizes = (*stage.unit_output, *(r.size for r in stage.windows[0]))
    return tuple(f"{n} coded" for n in sizes)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines, every column right-justified."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
