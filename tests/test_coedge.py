"""CoEdge's linear program against brute force, and edges between stages against enumeration."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise, product, takewhile

import numpy as np
import pytest
import torch

from interpreter import pasted
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.cost.model import CostModel, Formats
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range, around, borders_first
from mpicoded.models import build
from mpicoded.network.graph import trace
from mpicoded.network.in_parts import in_parts
from mpicoded.network.optimize import Optimizer
from mpicoded.network.pieces import shard_program
from mpicoded.planners import Problem
from mpicoded.planners.coedge import Supersteps, Watts, coedge, solve
from mpicoded.planners.edges import Edge, Span, Strips, cheapest_stages
from networks import close, random_network


def case(seed: int) -> tuple[Supersteps, int, random.Random]:
    draw = random.Random(seed)
    layers, devices = draw.randint(1, 4), draw.randint(1, 4)
    row, halo = (
        np.array([[draw.uniform(0.1, 1) for _ in range(devices)] for _ in range(layers)])
        for _ in range(2)
    )
    return Supersteps(row, halo * draw.choice((0.1, 1, 5))), draw.randint(devices, 12), draw


def compositions(height: int, devices: int) -> Iterator[tuple[int, ...]]:
    """Whole rows of every device that add up to the height."""
    if devices == 1:
        yield (height,)
        return
    for own in range(height + 1):
        yield from ((own, *rest) for rest in compositions(height - own, devices - 1))


@pytest.mark.parametrize("seed", range(200))
def test_rows_are_the_best_within_rounding(seed: int) -> None:
    """Rounded, of the devices that are kept; and no single device is faster."""
    steps, height, _ = case(seed)
    rows = solve(steps, height, least=1.0)
    assert sum(rows) == height and min(rows) >= 0
    kept = [own > 0 for own in rows]
    same = (r for r in compositions(height, len(rows)) if [own > 0 for own in r] == kept)
    a_row = float(steps.row.max(1).sum())
    assert steps.latency(rows) <= min(map(steps.latency, same)) + a_row
    alone = (height * np.eye(len(rows))).tolist()
    assert steps.latency(rows) <= min(map(steps.latency, alone)) + a_row


def test_most_rows_are_the_best_of_all_within_rounding() -> None:
    """Devices are left out one by one, and not in all ways: a heuristic, and a good one."""
    good = 0
    for seed in range(200):
        steps, height, _ = case(seed)
        best = min(map(steps.latency, compositions(height, steps.row.shape[1])))
        good += steps.latency(solve(steps, height, least=1.0)) <= best + steps.row.max(1).sum()
    assert good >= 195


@pytest.mark.parametrize("seed", range(50))
def test_least_energy_within_a_limit(seed: int) -> None:
    steps, height, draw = case(seed)
    devices = steps.row.shape[1]
    watts = Watts(*np.array([[draw.uniform(1, 5) for _ in range(devices)] for _ in range(2)]))
    fastest = solve(steps, height, least=1.0)
    limit = 1.2 * steps.latency(fastest) + float(steps.row.max(1).sum())
    rows = solve(steps, height, least=1.0, watts=watts, limit=limit)
    energy = steps.energy(rows, watts)
    assert steps.latency(rows) <= limit + float(steps.row.max(1).sum())
    assert energy <= steps.energy(fastest, watts) + float((watts.compute * steps.row).sum())
    with pytest.raises(PlanError, match=r"latency_limit = 0\.001 s, and .* at the least"):
        solve(steps, height, least=1.0, watts=watts, limit=1e-3)


def ways(layers: int, fused: int) -> Iterator[list[Span]]:
    """All partitions of the first layers, as many as there are."""
    for last in range(layers):
        for cuts in product((False, True), repeat=last):
            ends = [i for i, cut in enumerate(cuts) if cut] + [last]
            spans = list(zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True))
            if all(b - a < fused for a, b in spans):
                yield spans


def least(layers: int, prices: Strips, fused: int) -> float:
    """Enumerate partitions; each edge by itself is the cheapest of its kinds."""
    return min(
        prices.begin(spans[0])
        + sum(prices.step(*pair).seconds for pair in pairwise(spans))
        + prices.end(spans[-1])
        for spans in ways(layers, fused)
    )


class Drawn:
    """Random prices of stages and edges."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def begin(self, span: Span) -> float:
        return random.Random(f"{self.seed} begin {span}").random()

    def end(self, span: Span) -> float:
        return random.Random(f"{self.seed} end {span}").random()

    def step(self, before: Span, span: Span) -> Edge:
        draw = random.Random(f"{self.seed} {before} {span}")
        return Edge(draw.uniform(0, 0.6), draw.random() < 0.5)


def total(prices: Strips, stages: list[tuple[Span, Edge]]) -> float:
    edges = [edge.seconds for _, edge in stages]
    return sum(edges) + prices.end(stages[-1][0])


@pytest.mark.parametrize("seed", range(200))
def test_edges_are_the_best_of_all(seed: int) -> None:
    prices, layers, fused = Drawn(seed), 1 + seed % 7, 1 + seed % 4
    found = cheapest_stages(layers, prices.begin, prices.step, prices.end, fused)
    assert total(prices, found) == pytest.approx(least(layers, prices, fused))


def problem(seed: int) -> Problem:
    chain = trace(*random_network(seed, most=4, sizes=(6, 14)))
    draw = random.Random(seed)
    device = Device(10 ** draw.uniform(5, 7), values=1e6, pack=1e7, unpack=1e7)
    rate = 10 ** draw.uniform(3, 6)
    cluster = Cluster.alike(4, device, Link(rate, rate, draw.uniform(0, 1e-3)))
    return Problem(CostModel(chain, cluster, Formats()))


@pytest.mark.parametrize("seed", range(30))
def test_edges_of_networks_are_the_best_of_all(seed: int) -> None:
    what = problem(seed)
    strips = Strips(what, what.order, (1.0,) * len(what.order))
    if not strips.count:
        return
    found = cheapest_stages(strips.count, strips.begin, strips.step, strips.end, fused=3)
    assert total(strips, found) == pytest.approx(least(strips.count, strips, 3))
    plan = strips.plan(found)
    assert [stage.direct for stage in plan.stages] == [edge.direct for _, edge in found]


def test_energy_needs_watts() -> None:
    what = replace(problem(3), objective="energy")
    with pytest.raises(PlanError, match="needs the power of the ranks"):
        coedge(what)


@pytest.mark.parametrize("seed", range(100))
def test_borders_come_first_and_once(seed: int) -> None:
    draw = random.Random(seed)
    size, axis = draw.randint(1, 9), seed % 2
    whole = Range(5, 5 + size)
    read = [Range(a, draw.randint(a + 1, whole.stop)) for a in draw.choices(range(*whole), k=2)]

    def box(part: Range) -> Box:
        return Box(*((part, Range(2, 7)) if axis == 0 else (Range(2, 7), part)))

    parts = borders_first(box(whole), [box(each) for each in read])
    rows = [list(range(*part[axis])) for part in parts]
    assert sorted(sum(rows, [])) == list(range(*whole))
    wanted = {row for part in read for row in range(*part)}
    assert set(sum(takewhile(wanted.issuperset, rows), [])) == wanted
    for part in read:
        assert any(set(range(*part)) <= set(own) for own in rows)


@pytest.mark.parametrize("seed", range(40))
def test_in_parts_is_the_same(seed: int) -> None:
    """Any blocks, cut anywhere; what lies before the last halo is computed once."""
    model, shape = (
        random_network(seed, most=5) if seed % 4 else (build("resnet18", {}), (3, 64, 64))
    )
    chain, draw = trace(model.eval(), shape), random.Random(seed)
    first = draw.randrange(min(8, len(chain.blocks)))
    last = draw.randrange(first, min(first + 3, len(chain.blocks)))
    rows, cols = chain.shapes[chain.blocks[last].exit][1:]
    cuts = sorted(draw.choices(range(rows + 1), k=4))
    strips = [Range(a, b) for a, b in pairwise(cuts) if a < b] or [Range(0, rows)]
    boxes = [Box(strip, Range(0, cols)) for strip in draw.sample(strips, len(strips))]
    whole = shard_program(chain, first, last, around(boxes))
    parts = in_parts(chain, first, last, boxes)
    shapes = chain.shapes[chain.blocks[first].entry]
    x = torch.randn(2, shapes[0], whole.reads.rows.size, whole.reads.cols.size)
    with torch.inference_mode():
        for each in (parts, parts.each(Optimizer().optimize)):
            assert close(pasted(list(each.run(x, whole.reads))), whole(x), 1e-5)
    alone = sum(shard_program(chain, first, last, box).flops for box in boxes)
    assert whole.flops <= sum(parts.flops) <= max(alone, whole.flops)
