"""How a stage has its input, boundary by boundary: gathered, exchanged, or computed twice.

Between two layers in strips, the leader may gather the map (an edge of kind "gathered"), neighbours
may exchange the halo ("direct"), or each unit computes its halo itself: both layers are one stage.
FlexPie (2025) chooses so by a dynamic program; here over stages i to j of layers,

    T(i, j) = min over h, edge of  T(h, i-1) + step((h, i-1), (i, j), edge)

with the time of the slowest unit as a barrier. ``step`` is of the event model of mpicoded.cost: of
an exchange, also whether the stage before computes its borders first, which hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from itertools import accumulate, pairwise
from math import ceil, floor
from typing import NamedTuple

from mpicoded.cost.exchange import Times, exchange
from mpicoded.cost.model import CostModel
from mpicoded.plan import Plan, Stage
from mpicoded.planners.base import Choice, Problem
from mpicoded.planners.choices import STRIPS

Span = tuple[int, int]  # first and last layer of a stage
FUSED = 3  # layers of a stage at most


class Edge(NamedTuple):
    """A way over a boundary, and seconds until the slowest unit behind it is done."""

    seconds: float
    direct: bool = False
    borders_first: bool = False  # of the stage before it
    up: bool = True  # how rows of the stage behind it are rounded


Step = Callable[[Span, Span], Edge]
Edges = list[tuple[Span, Edge]]  # of every stage, how it has its input


def cheapest_stages(
    layers: int,
    begin: Callable[[Span], float],
    step: Step,
    end: Callable[[Span], float],
    fused: int = FUSED,
) -> Edges:
    """Return the stages of the first layers, and each one's edge, that take least in all.

    ``end`` adds the seconds from a last stage to the answer.
    """
    best = dict[Span, tuple[float, Span | None, Edge]]()
    for last in range(layers):
        for first in range(max(0, last - fused + 1), last + 1):
            span, ways = (first, last), list[tuple[float, Span | None, Edge]]()
            if first == 0:
                ways.append((begin(span), None, Edge(begin(span))))
            for before in [each for each in best if each[1] == first - 1]:
                edge = step(before, span)
                ways.append((best[before][0] + edge.seconds, before, edge))
            best[span] = min(ways, key=lambda way: way[0])
    at: Span | None = min(best, key=lambda span: best[span][0] + end(span), default=None)
    stages = Edges()
    while at is not None:
        _, previous, edge = best[at]
        stages.insert(0, (at, edge))
        at = previous
    return stages


def aligned_rows(rows: int, shares: Sequence[float], up: bool) -> list[int]:
    """Cut rows at the same places of every map, as nearly as whole rows allow.

    Rows that are shifted against the map before have to move. Halves are rounded ``up`` or down:
    who had a row more may have one less of the next map.

    >>> aligned_rows(28, [1] * 8, up=True)  # 4, 3, 4, 3, 4, 3, 4, 3
    """
    ends = [rows * end / sum(shares) for end in accumulate(shares)]
    whole = [floor(end + 0.5 + 1e-6) if up else ceil(end - 0.5 - 1e-6) for end in ends]
    return [b - a for a, b in pairwise([0, *whole[:-1], rows])]


def hiding(plan: Plan, model: CostModel) -> Plan:
    """Return the plan with borders first only where that is predicted to be faster."""
    for s, stage in enumerate(plan.stages):
        whole = (*plan.stages[:s], replace(stage, borders_first=False), *plan.stages[s + 1 :])
        trial = replace(plan, stages=whole)
        if stage.borders_first and model.predict(trial).latency <= model.predict(plan).latency:
            plan = trial
    return plan


class Strips:
    """Stages of a problem's layers, in strips on ``ranks`` in this order, by ``shares`` of rows."""

    def __init__(self, problem: Problem, ranks: Sequence[int], shares: Sequence[float]) -> None:
        self.problem, self.model = problem, problem.model
        self.ranks, self.shares = tuple(ranks), tuple(shares)
        self.begin, self._gather = cache(self._begin), cache(self._end)
        self.stage = cache(self._stage)

    @cached_property
    def count(self) -> int:
        """Number of layers that each of two ranks can have a row of."""
        rows = [self.problem.rows(last) for _, last in self.problem.layers]
        return next((i for i, n in enumerate(rows) if n < 2), len(rows))

    def _stage(self, span: Span, up: bool = True) -> Stage:
        """Return layers as a gathered stage; who gets no row of its map is left out."""
        (first, _), (_, last) = (self.problem.layers[i] for i in span)
        sizes = aligned_rows(self.problem.rows(last), self.shares, up)
        own = [(p, float(n)) for p, n in zip(self.ranks, sizes, strict=True) if n]
        return self.problem.stage(first, last, Choice(STRIPS, *map(tuple, zip(*own, strict=True))))

    def plan(self, edges: Edges) -> Plan:
        """Return the plan of stages with these edges."""
        behind = [edge.borders_first for _, edge in edges[1:]]
        return self.problem.plan(
            [
                replace(self.stage(span, edge.up), direct=edge.direct, borders_first=first)
                for (span, edge), first in zip(edges, [*behind, False], strict=False)
            ]
        )

    def edges(self) -> Edges:
        """Return the cheapest stages and edges, and without barriers what is better still."""
        edges = cheapest_stages(self.count, self.begin, self.step, self.end)
        least = self.problem.latency(self.plan(edges))
        for i in range(len(edges)):
            span, edge = edges[i]
            turned = [edge._replace(up=not edge.up)]
            if edge.direct:
                turned.append(edge._replace(borders_first=not edge.borders_first))
            for other in turned:
                trial = [*edges[:i], (span, other), *edges[i + 1 :]]
                if (seconds := self.problem.latency(self.plan(trial))) < least:
                    edges, least = trial, seconds
        return edges

    def _fragment(self, *spans: Span) -> tuple[Plan, list[Stage]]:
        """Return stages that go on from one to the next directly, and beyond the last of them."""
        (_, last), more = spans[-1], list[Span]()
        if last + 1 < self.count:
            more.append((last + 1, last + 1))
        stages = [self.stage(span) for span in (*spans, *more)]
        stages = [replace(stage, direct=i > 0) for i, stage in enumerate(stages)]
        k = max(stage.k for stage in stages)
        return Plan(tuple(stages), k, 0, self.problem.batch, STRIPS, 0, ()), stages

    def _begin(self, span: Span) -> float:
        """Seconds of a stage whose input the leader sends."""
        plan, _ = self._fragment(span)
        return max(each.done for each in self.model.exchange(plan, 0)[1])

    def end(self, span: Span) -> float:
        """Seconds from a stage's outputs to the map at the leader, and of what it runs behind."""
        return self._gather(span) + sum(
            map(self.problem.own, range(self.stage(span).last + 1, self.problem.count))
        )

    def _end(self, span: Span) -> float:
        plan = replace(self._fragment(span)[0], stages=(self.stage(span),))
        loads = self.model.exchange(plan, 0)[0]
        arrived = exchange(loads, self.model.cluster, halos=[0.0] * len(loads))
        values = sum(plan.bytes_out(0, i, 1) for i in range(len(loads)))
        late = max(each.arrived for each in arrived) - max(load.compute for load in loads)
        return late + values / self.model.cluster.devices[0].unpack

    def step(self, before: Span, span: Span) -> Edge:
        """Return the cheapest edge between two stages."""
        gathered = Edge(self._gather(before) + self.begin(span))
        return min(gathered, *self._direct(before, span), key=lambda edge: edge.seconds)

    def _direct(self, before: Span, span: Span) -> Iterator[Edge]:
        """Yield the exchange, after whole stages and with borders first."""
        plan, stages = self._fragment(before, span)
        whole = 0.0
        for first in (False, True):
            own = replace(stages[0], borders_first=first)
            plan = replace(plan, stages=(own, *stages[1:]))
            done = [
                sum(seconds for _, seconds in self.model.parts(own.ranks[i], 0, i, plan))
                for i in range(own.k)
            ]
            whole = whole or max(done)
            times = self.model.exchange(plan, 1, [Times(0.0, each, each) for each in done])[1]
            yield Edge(max(each.done for each in times) - whole, True, first)
