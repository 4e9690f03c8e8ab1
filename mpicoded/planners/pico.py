"""PICO: a pipeline, stages on ranks of their own (Yang et al., ICDCS 2021, section IV).

    period p = max_X T(X)        latency t = sum_X L(X) <= T_lim        X = blocks i to j on q ranks

T(X) is how long X keeps its busiest rank or link, as a worker receives, computes and sends at the
same time; on a shared medium, T = L = compute + bytes / rate. The last stage is rank 0: what no
worker's stage covers, and the head.

1. All ranks become clones of their mean. The least p is found by bisection over the values of T:

       A[j][q] = min over i, r with T(i+1, j, r) <= p of  A[i][q-r] + L(i+1, j, r),    A[0][q] = 0

   and A[n][D] <= T_lim; the published table is keyed by (i, j, q) while its content depends on the
   latency that is left, and misses the optimum.
2. Ranks that differ, the fastest first, go to the stage with the most work for an open place, and
   the rows of each stage are cut anew, in equal time.
3. Beyond the paper: blocks and ranks move away from, and to, the busiest stage while that helps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf, prod
from statistics import fmean
from typing import NamedTuple

import numpy as np

from mpicoded.cluster import Device, Link, Rate
from mpicoded.cost.model import MESSAGE, CostModel
from mpicoded.cost.table import Floats
from mpicoded.errors import PlanError
from mpicoded.plan import Plan
from mpicoded.planners.base import Problem
from mpicoded.planners.choices import STRIPS, Choices, Priced
from mpicoded.stage import Stage

MOST = 1e300  # s: less than for ever
LEAST = 0.05  # of the fastest worker's speed: a slower one would hold a stage up
TRIES = 8  # tighter limits, where the sum of L is less than the predicted latency


Ranks = tuple[int, ...]


class Part(NamedTuple):
    """Blocks ``first`` to ``last`` on ``size`` ranks, and their seconds of work in all."""

    first: int
    last: int
    size: int
    work: float = 0.0


class Times(NamedTuple):
    """T, L and the work of every stage on q ranks, [i, j, q]; T and L of rank 0 from block j on."""

    busy: Floats
    spent: Floats
    work: Floats
    rest_busy: Floats
    rest_spent: Floats


def pico(problem: Problem) -> Plan:
    """Return the pipeline with the least period whose latency is within the problem's limit.

    Raises
    ------
    PlanError
        If no pipeline is so fast.
    """
    limit = budget = problem.latency_limit
    least = LEAST * max((problem.speeds[rank] for rank in problem.order), default=0.0)
    slow = {rank for rank in problem.order if problem.speeds[rank] < least}
    problem = replace(problem, without=problem.without | slow)
    times = priced(_on_clones(problem))
    search = _Search(problem, times.rest_busy)
    for _ in range(TRIES):
        parts = shortest_period(times, budget)
        found = [search.stages(parts, ranks) for ranks in _assigned(problem, parts)]
        found += [
            search.stages(*search.improved(parts, ranks)) for ranks in _assigned(problem, parts)
        ]
        plans = [*map(problem.plan, found), problem.plan(())]
        least = min(map(problem.latency, plans))
        within = [plan for plan in plans if problem.latency(plan) <= limit]
        if within:
            return min(within, key=problem.period)
        budget *= 0.99 * limit / least
    raise PlanError(
        f"the fastest pipeline that was found takes {least:.3g} s a query, and latency_limit = "
        f'{limit:g} in [plan]: raise it, or take another planner, "auto"'
    )


def shortest_period(times: Times, limit: float = inf) -> tuple[Part, ...]:
    """Return the stages with the least period, of these those with the least latency.

    The latency is at most ``limit``, or the least there is.
    """
    values = np.unique([*times.busy[np.isfinite(times.busy)], *times.rest_busy])
    low, high = 0, len(values) - 1
    if _fastest(times, values[high])[0] > limit:
        low = high
    while low < high:
        middle = (low + high) // 2
        if _fastest(times, values[middle])[0] <= min(limit, MOST):
            high = middle
        else:
            low = middle + 1
    return _fastest(times, values[high])[1]


def _fastest(times: Times, period: float) -> tuple[float, tuple[Part, ...]]:
    """Return the least latency of pipelines with such a period, and its stages."""
    count, most = len(times.busy), times.busy.shape[2] - 1
    spent = np.where(times.busy <= period, times.spent, inf)
    best = np.full((count + 1, most + 1), inf)
    best[0] = 0.0
    came = np.zeros((count + 1, most + 1, 2), int)
    for j in range(1, count + 1):
        for i in range(j):
            for r in np.flatnonzero(np.isfinite(spent[i, j - 1])):
                trial = best[i, : most + 1 - r] + spent[i, j - 1, r]
                better = np.flatnonzero(trial < best[j, r:]) + r
                best[j, better], came[j, better] = trial[better - r], (i, r)
    whole = best[:, most] + np.where(times.rest_busy <= period, times.rest_spent, inf)
    j, q, parts = int(np.argmin(whole)), most, list[Part]()
    latency = float(whole[j])
    while j:
        i, r = came[j, q].tolist()
        parts.append(Part(i, j - 1, r, float(times.work[i, j - 1, r])))
        j, q = i, q - r
    return latency, tuple(parts[::-1])


def priced(problem: Problem) -> Times:
    """Return the times of all stages of ranks that are alike."""
    count, most, model = problem.count, len(problem.order), problem.model
    busy, spent, work = np.full((3, count, count, most + 1), inf)
    choices = Choices(problem, (STRIPS,))
    for last in range(count):
        for each in choices.ending(last):
            sizes = range(1, len(each.choices) + 1)
            for table, values in zip((busy, spent, work), _stage(each, model), strict=True):
                table[each.first, last, sizes] = values
    leader, out = model.cluster.links[0], model.formats.answers
    rest_busy, rest_spent = np.zeros((2, count + 1))
    own, head = [problem.own(i) for i in range(count)], model.blocks((), problem.batch, head=True)
    for j in range(count + 1):
        given = prod(problem.chain.shapes[problem.chain.blocks[j - 1].exit]) if j else 0
        compute = sum(own[j:]) + head + problem.batch * given / model.cluster.devices[0].unpack
        link = problem.batch * given * out / leader.receives
        rest_spent[j] = compute + link
        rest_busy[j] = rest_spent[j] if model.cluster.shared else max(compute, link)
    return Times(busy, spent, work, rest_busy, rest_spent)


def _stage(priced: Priced, model: CostModel) -> Iterator[Floats]:
    """Yield T, L and the work of every choice for a stage."""
    links, at, compute = model.cluster.links, priced.starts, priced.compute()
    sends, receives, latency = (
        np.array([getattr(link, key) for link in links])[priced.rank]
        for key in ("sends", "receives", "latency")
    )
    taken = priced.takes * priced.itemsize + MESSAGE
    given = priced.gives * model.formats.maps + MESSAGE
    own, most = np.maximum.reduceat(compute, at), np.maximum.reduceat(taken / receives, at)
    into = most
    if model.cluster.shared or not priced.first:  # one after the other, through one link
        into = np.add.reduceat(taken / np.minimum(receives, links[0].sends), at)
    spent = into + own + np.maximum.reduceat(2 * latency, at)
    out = np.maximum.reduceat(given / sends, at)
    yield spent if model.cluster.shared else np.max([own, into, most, out], axis=0)
    yield spent
    yield np.add.reduceat(compute, at)


def _on_clones(problem: Problem) -> Problem:
    """Return the problem with all workers alike, as their mean."""
    model, own = problem.model, problem.order
    first, *_ = model.cluster.devices
    device = _mean([model.cluster.devices[p] for p in own])
    links = [model.cluster.links[p] for p in own]
    sends, receives, latency = (
        fmean(getattr(each, key) for each in links) for key in ("sends", "receives", "latency")
    )
    link = Link(sends, receives, latency)
    count = len(model.cluster.workers)
    cluster = replace(
        model.cluster,
        devices=(first, *[device] * count),
        links=(model.cluster.links[0], *[link] * count),
    )
    return replace(problem, model=CostModel(model.chain, cluster, model.formats, model.first_k))


def _mean(devices: Sequence[Device]) -> Device:
    names = [name for name in devices[0].blocks if all(name in d.blocks for d in devices)]
    rates = {name: [d.blocks[name] for d in devices] for name in names}
    flops, values, pack, unpack = (
        fmean(getattr(d, key) for d in devices) for key in ("flops", "values", "pack", "unpack")
    )
    return Device(
        flops,
        fmean(d.dense or d.flops for d in devices),
        values,
        pack,
        unpack,
        blocks={
            name: Rate(fmean(r.speed for r in each), fmean(r.fixed for r in each))
            for name, each in rates.items()
        },
    )


def _assigned(problem: Problem, parts: Sequence[Part]) -> Iterator[list[Ranks]]:
    """Yield the ranks of every stage: by its work for an open place, then by that not served yet.

    With the work as it was, a stage that is chosen stays the first until it is full.
    """
    speeds = problem.speeds
    middle = fmean(speeds[rank] for rank in problem.order) if problem.order else 1.0
    for served in (0.0, 1.0):
        work, ranks = [part.work for part in parts], [list[int]() for _ in parts]
        for rank in problem.order:
            places = [part.size - len(own) for part, own in zip(parts, ranks, strict=True)]
            loads = [w / n if n else -1.0 for w, n in zip(work, places, strict=True)]
            if max(loads, default=-1.0) < 0:
                break  # all stages are full
            x = loads.index(max(loads))
            ranks[x].append(rank)
            work[x] = max(0.0, work[x] - served * loads[x] * speeds[rank] / middle)
        yield [tuple(own) for own in ranks]


class _Search:
    """Moves blocks and ranks between the stages of a pipeline while that makes it faster."""

    def __init__(self, problem: Problem, rest: Floats) -> None:
        self.problem, self.choices, self._rest = problem, Choices(problem, (STRIPS,)), rest
        self._busy: dict[tuple[int, int, tuple[int, ...]], float] = {}

    def stages(self, parts: Sequence[Part], ranks: Sequence[Ranks]) -> list[Stage]:
        """Return the stages on these ranks, in strips of equal time."""
        found = list[Stage]()
        for (first, last, *_), own in zip(parts, ranks, strict=True):
            stage = self.problem.stage(first, last, self.choices.strips(first, last, own))
            found.append(replace(stage, direct=first > 0))
        return found

    def improved(
        self, parts: Sequence[Part], ranks: Sequence[Ranks]
    ) -> tuple[Sequence[Part], Sequence[Ranks]]:
        """Change the pipeline step by step, as long as its busiest stage is less busy then."""
        best: tuple[Sequence[Part], Sequence[Ranks]] = (parts, ranks)
        if not parts:
            return best
        times = self._times(parts, ranks)
        while True:
            tries = [(times, best)]
            tries += [(self._times(*each), each) for each in self._neighbours(*best, times)]
            less, found = min(tries, key=lambda each: sorted(each[0], reverse=True))
            if found is best:
                return best
            best, times = found, less

    def _times(self, parts: Sequence[Part], ranks: Sequence[Ranks]) -> list[float]:
        """Return how long the stages keep their busiest rank or link; rank 0's last."""
        for (first, last, *_), own in zip(parts, ranks, strict=True):
            if (first, last, own) not in self._busy:
                strips = self.choices.strips(first, last, own)
                each = self.choices.priced(first, last, strips)
                self._busy[first, last, own] = float(next(_stage(each, self.problem.model))[0])
        busy = [self._busy[p.first, p.last, own] for p, own in zip(parts, ranks, strict=True)]
        return [*busy, float(self._rest[parts[-1].last + 1])]

    def _neighbours(
        self, parts: Sequence[Part], ranks: Sequence[Ranks], times: Sequence[float]
    ) -> Iterator[tuple[Sequence[Part], Sequence[Ranks]]]:
        """Yield pipelines in which the busiest stage has a block less, or other ranks."""
        x = max(range(len(times)), key=times.__getitem__)
        ends = [part.last + 1 for part in parts]
        for edge, step in ((x - 1, 1), (x, -1)):  # a block to the stage before, or to the next
            moved = [end + step * (i == edge) for i, end in enumerate(ends)]
            if 0 <= edge < len(ends) and moved[-1] <= self.problem.count:
                starts = [0, *moved[:-1]]
                if all(map(int.__lt__, starts, moved)):
                    yield [Part(a, b - 1, 0) for a, b in zip(starts, moved, strict=True)], ranks
        if x == len(parts):
            return
        speeds = self.problem.speeds
        for y in (y for y in range(len(parts)) if y != x):
            for rank in {speeds[p]: p for p in ranks[y]}.values():
                if len(ranks[y]) > 1:
                    yield parts, _given(ranks, x, y, rank)
                for own in {speeds[p]: p for p in ranks[x] if speeds[p] < speeds[rank]}.values():
                    yield parts, _given(_given(ranks, x, y, rank), y, x, own)


def _given(ranks: Sequence[Ranks], x: int, y: int, rank: int) -> list[Ranks]:
    """Give stage x a rank of stage y."""
    own = [[*each] for each in ranks]
    own[y].remove(rank)
    own[x].append(rank)
    return [tuple(each) for each in own]
