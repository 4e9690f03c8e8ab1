"""Planners: exact on real tensors, best by brute force, and the numbers that were published."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise
from math import inf
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from torch import nn

from digits import UNTRAINED
from many_jobs import LiveRanks
from mpicoded import __main__ as program
from mpicoded.cluster import Cluster, Device, Link, Rate
from mpicoded.cost.model import CostModel, Formats
from mpicoded.cost.table import BlockTable, Boxes, Rates, Strips
from mpicoded.cost.usage import Usage
from mpicoded.deploy import network, problem, traced
from mpicoded.deploy import plan as job_plan
from mpicoded.errors import JobError, PlanError
from mpicoded.geometry import Box, Range, split_weighted
from mpicoded.job import Job
from mpicoded.models import build
from mpicoded.network.graph import Chain, trace
from mpicoded.network.pieces import shard_program, whole_flops
from mpicoded.plan import Plan
from mpicoded.planners import BY_NAME, PLANNERS, Problem
from mpicoded.planners.adcnn import deal
from mpicoded.planners.aofl import aofl
from mpicoded.planners.auto import Candidate, auto
from mpicoded.planners.balance import closed_form, fill
from mpicoded.planners.base import Choice
from mpicoded.planners.choices import KINDS, Choices
from mpicoded.planners.ocbp import published
from mpicoded.split import SPLITS
from networks import close, plan_of, random_network

PI = Device(flops=7.8e9, dense=1.55e9, values=1.3e8, pack=2e8, unpack=2e8)
FAST = Link(6.25e6, 6.25e6, 1e-3)
HALVES = Formats.of("float16", None, "float16")


def random_cluster(r: random.Random, workers: int, scale: float = 1e6) -> Cluster:
    """Unlike devices and links, on a switch or one medium; some ranks are far faster."""
    devices, links = list[Device](), list[Link]()
    for _ in range(workers + 1):
        flops = scale * 10 ** r.uniform(-1, 0.7)
        blocks = (
            {"0": Rate(flops * r.uniform(0.5, 2), r.uniform(0, 1e-4))} if r.random() < 0.3 else {}
        )
        devices.append(Device(flops, flops / 4, flops / 9, 10 * scale, 10 * scale, blocks=blocks))
        rate = scale * 10 ** r.uniform(-2, 1)
        links.append(Link(rate, rate * r.uniform(0.5, 2), r.uniform(0, 1e-4)))
    hosts = ("",) * (workers + 1)
    return Cluster(hosts, tuple(devices), tuple(links), r.random() < 0.3, r.randint(1, 3))


def random_problem(seed: int, most: int = 4, workers: int = 3) -> Problem:
    """A small network on a random cluster."""
    r = random.Random(seed)
    chain = trace(*random_network(seed, most=most, sizes=(5, 14)))
    cluster = random_cluster(r, r.randint(1, workers), 10 ** r.uniform(5, 7))
    formats = Formats.of(*r.choice([("float16", None, "float32"), ("float32", None, "float32")]))
    return Problem(CostModel(chain, cluster, formats), r.choice([1, 1, 2]))


@cache
def vgg16() -> Chain:
    return trace(build("vgg16-features", {}), (3, 224, 224))


def on_pis(chain: Chain, workers: int = 8, formats: Formats = HALVES, link: Link = FAST) -> Problem:
    return Problem(CostModel(chain, Cluster.alike(workers + 1, PI, link), formats))


# ---- prices of many boxes at once are those of one


@pytest.mark.parametrize("seed", range(40))
def test_tables_are_the_programs(seed: int) -> None:
    """Boxes of any block, mapped back through any others: what they read, and their seconds."""
    r, problem = random.Random(seed), random_problem(seed, most=6)
    chain, model = problem.chain, problem.model
    tables = [BlockTable.of(chain, block) for block in chain.blocks]
    rates = Rates.of(chain, problem.cluster, tables)
    last = r.randrange(len(chain.blocks))
    first = r.randint(0, last)
    _, height, width = chain.shapes[chain.blocks[last].exit]

    def part(size: int) -> tuple[int, int]:
        start = r.randrange(size)
        return start, r.randint(start + 1, size)

    cut = [(*part(height), *part(width)) for _ in range(5)] + [(*part(height), 0, width)]
    edges = np.array(cut).T
    ranks = [r.randrange(len(problem.cluster.hosts)) for _ in cut]
    kinds = rates.kinds[ranks]
    boxes = Boxes((edges[0], edges[1]), (edges[2], edges[3]), kinds, 1)
    strips = Strips(chain.shapes[chain.blocks[last].exit], rates.seconds.shape[1], 1)
    for i in range(last, first - 1, -1):
        boxes.back(tables[i], rates.seconds[i], rates.fixed[i])
        strips.back(tables[i], rates.seconds[i], rates.fixed[i])
    for u, (top, bottom, left, right) in enumerate(cut):
        box, seconds = Box(Range(top, bottom), Range(left, right)), 0.0
        for i in range(last, first - 1, -1):
            box, work = model.piece(i, box, (False, False))
            seconds += problem.cluster.devices[ranks[u]].seconds(chain.blocks[i].name, work)
        found = (boxes.rows[0][u], boxes.rows[1][u], boxes.cols[0][u], boxes.cols[1][u])
        assert found == (*box.rows, *box.cols)
        assert boxes.seconds[u] == pytest.approx(seconds, rel=1e-9)
    whole = edges[:2, -1:]
    assert strips.seconds(kinds[-1:], *whole)[0] == pytest.approx(boxes.seconds[-1], rel=1e-9)
    assert strips.reads(*whole)[0] * strips.width == boxes.area[-1]


@pytest.mark.parametrize("seed", range(30))
def test_choices_cost_what_their_plans_cost(seed: int) -> None:
    """Price, and bound below it, of every choice of every stage."""
    problem = random_problem(seed)
    found = list(every_choice(problem))
    r = random.Random(seed)
    for first, last, choice, bound, price in r.sample(found, min(12, len(found))):
        plan = problem.plan([problem.stage(first, last, choice)])
        seconds = problem.model.stage(plan, 0).total
        assert price == pytest.approx(seconds, rel=1e-9)
        assert bound <= price * (1 + 1e-9)


def every_choice(
    problem: Problem, kinds: Sequence[str] = KINDS
) -> Iterator[tuple[int, int, Choice, float, float]]:
    """(first, last, choice, bound, price) of all that a stage may be."""
    choices = Choices(problem, kinds)
    for last in range(problem.count):
        for priced in choices.ending(last):
            for g, bound in enumerate(priced.bounds()):
                yield priced.first, last, priced.choices[g], float(bound), priced.price(g)


# ---- brute force


def best_of_all(problem: Problem) -> float:
    """The least latency of all sequences of stages and of rank 0's own blocks, one by one."""
    edges: dict[tuple[int, int], float] = {}
    for first, last, choice, _, _ in every_choice(problem):
        plan = problem.plan([problem.stage(first, last, choice)])
        seconds = problem.model.stage(plan, 0).total
        edges[first, last] = min(edges.get((first, last), inf), seconds)
    for block in range(problem.count):
        edges[block, block] = min(edges.get((block, block), inf), problem.own(block))
    ends, least = range(1, problem.count), inf
    for cuts in (c for size in range(problem.count) for c in combinations(ends, size)):
        bounds = zip((0, *cuts), (*cuts, problem.count), strict=True)
        least = min(least, sum(edges.get((a, b - 1), inf) for a, b in bounds))
    head = problem.model.blocks((), problem.batch, head=True)
    return least + head


@pytest.mark.parametrize("seed", range(200))
def test_aofl_is_the_best_of_all_plans(seed: int) -> None:
    problem = random_problem(1000 + seed)
    assert problem.latency(aofl(problem)) == pytest.approx(best_of_all(problem), rel=1e-9)


def shares_of(size: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to share ``size``, nothing included."""
    if parts == 1:
        yield (size,)
        return
    for first in range(size + 1):
        yield from ((first, *rest) for rest in shares_of(size - first, parts - 1))


@pytest.mark.parametrize("seed", range(200))
def test_equal_times_are_the_least_there_are(seed: int) -> None:
    """OCBP's closed form, rounded: the optimum itself, and the reals are a bound below it."""
    r = random.Random(seed)
    parts, size = r.randint(1, 4), r.randint(1, 14)
    alphas = [10 ** r.uniform(-1, 1) for _ in range(parts)]
    betas = [r.choice([0.0, r.uniform(0, 6)]) for _ in range(parts)]

    def slowest(shares: Sequence[float]) -> float:
        return max(a * w + b for a, b, w in zip(alphas, betas, shares, strict=True) if w)

    found, (real, level) = fill(alphas, betas, size), closed_form(alphas, betas, size)
    assert sum(found) == size and sum(real) == pytest.approx(size)
    best = min(map(slowest, shares_of(size, parts)))
    assert slowest(found) == pytest.approx(best)
    assert level <= best * (1 + 1e-9)
    used = [(a * w + b, w) for a, b, w in zip(alphas, betas, real, strict=True)]
    assert all(t == pytest.approx(level) for t, w in used if w)


# ---- published numbers


def redundancy(chain: Chain, ends: Sequence[str], grid: tuple[int, int]) -> float:
    """Work of convolutions over that of the whole, minus 1."""
    k = grid[0] * grid[1]
    return plan_of(chain, "tiles", k, 0, *ends, tiles=grid).redundancy


def test_redundancy_of_aofl() -> None:
    """Fig. 7: VGG-16 at 256 x 256, two blocks of 7 and 6 convolutions, each in 2 x 4: 90.7 %."""
    chain = trace(build("vgg16-features", {}), (3, 256, 256))
    convs = [block.name for block in chain.blocks if whole_flops(chain, block.ops)]
    pools = [chain.blocks[chain.index(convs[i]) + 1].name for i in (6, 12)]
    assert redundancy(chain, pools, (2, 4)) == pytest.approx(0.907, abs=5e-4)
    assert redundancy(chain, [convs[6], pools[1]], (2, 4)) == pytest.approx(0.907, abs=5e-4)


YOLOV2_16 = "3-32 p 3-64 p 3-128 1-64 3-128 p 3-256 1-128 3-256 p 3-512 1-256 3-512 1-256"


def test_bytes_of_deepthings() -> None:
    """Section V-B: the first 16 layers of YOLOv2 at 608 x 608 in 3 x 3: 13.8 MiB."""
    layers, channels = list[nn.Module](), 3
    for name in YOLOV2_16.split():
        if name == "p":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        kernel, width = map(int, name.split("-"))
        layers.append(nn.Conv2d(channels, width, kernel, padding=kernel // 2, device="meta"))
        channels = width
    with torch.device("meta"):
        chain = trace(nn.Sequential(*layers), (3, 608, 608))
    assert chain.output_shape == (256, 38, 38)
    plan = plan_of(chain, "tiles", 9, tiles=(3, 3))
    moved = sum(plan.bytes_in(0, i) + plan.bytes_out(0, i) for i in range(9)) + 4 * 3 * 608**2
    assert moved / 2**20 == pytest.approx(13.8, abs=0.05)


def test_vgg16_of_the_reference() -> None:
    """Section 2.4: its work, what layers move, and what fused strips compute twice."""
    chain = vgg16()
    assert sum(whole_flops(chain, b.ops) for b in chain.blocks) / 2e9 == pytest.approx(
        15.35, abs=0.01
    )
    convs = [block.name for block in chain.blocks if whole_flops(chain, block.ops)]
    last, end = chain.index(convs[12]), chain.index(convs[9]) + 1  # pool4, behind ten of them
    for k, layers, all_fused, ten_fused, megabytes in (
        (4, 93.6, 1.65, 0.64, 1.7),
        (8, 97.8, 3.64, 1.44, 2.5),
    ):
        assert fused(chain, last, k) == pytest.approx(all_fused, abs=0.006)
        assert fused(chain, end, k) == pytest.approx(ten_fused, abs=0.006)
        assert moved(plan_of(chain, "height", k, 0, chain.blocks[end].name)) == pytest.approx(
            megabytes, abs=0.06
        )
        each = [plan_of(chain, "height", k, 0, name, first=chain.index(name)) for name in convs]
        assert sum(map(moved, each)) == pytest.approx(layers, abs=0.06)


def fused(chain: Chain, last: int, k: int) -> float:
    """Redundancy of all blocks up to ``last`` in k strips, [H i / k, H (i + 1) / k) each."""
    _, height, width = chain.shapes[chain.blocks[last].exit]
    cut = pairwise(height * i // k for i in range(k + 1))
    boxes = [Box(Range(*rows), Range(0, width)) for rows in cut]
    whole = sum(whole_flops(chain, block.ops) for block in chain.blocks[: last + 1])
    return sum(shard_program(chain, 0, last, box).flops for box in boxes) / whole - 1


def moved(plan: Plan) -> float:
    """MB to and from the units of the first stage."""
    return sum(plan.bytes_in(0, i) + plan.bytes_out(0, i) for i in range(plan.k)) / 1e6


A, B, MBIT = 6.24e-11, 1.97e-2, (100, 10, 300, 1000)


def edgeld(
    size: int, channels: tuple[int, int], n: int, mbit: Sequence[int], a: Sequence[float]
) -> tuple[list[float], list[float]]:
    """alpha and beta of the reference, for one 3 x 3 convolution with n halo columns a side."""
    deep, out = channels
    sides = [1 if i in (0, len(mbit) - 1) else 2 for i in range(len(mbit))]
    work, moved = 2 * size * (9 * deep + 1) * out, 32 * size
    alphas = [x * work + moved * (deep + out) / (1e6 * b) for x, b in zip(a, mbit, strict=True)]
    betas = [B + moved * deep * s * n / (1e6 * b) for s, b in zip(sides, mbit, strict=True)]
    return alphas, betas


def test_closed_form_of_the_reference() -> None:
    """Its two vectors: real shares, T*, and the largest remainders."""
    real, level = closed_form(*edgeld(224, (64, 64), 1, MBIT, [A] * 4), 224)
    assert real == pytest.approx([25.16, 1.83, 63.16, 133.85], abs=6e-3)
    assert level == pytest.approx(0.2811, abs=6e-5)
    assert [part.size for part in split_weighted(224, real.tolist())] == [25, 2, 63, 134]
    own = edgeld(56, (256, 256), 1, (100, 100, 1000), [A, A / 2, A])
    real, level = closed_form(*own, 56)
    assert real == pytest.approx([11.53, 13.24, 31.23], abs=6e-3)
    assert level == pytest.approx(0.1776, abs=6e-5)
    assert [part.size for part in split_weighted(56, real.tolist())] == [12, 13, 31]


def test_defect_of_ocbp() -> None:
    """Published: 28/1/28/55 and 0.246 s; closed form without the slow link: 0.133 s."""
    alphas, betas = edgeld(112, (64, 128), 2, MBIT, [A] * 4)

    def seconds(shares: Sequence[int]) -> list[float]:
        return [a * w + b for a, b, w in zip(alphas, betas, shares, strict=True)]

    assert published([1] * 4, 112, seconds) == [28, 1, 28, 55]
    assert max(seconds([28, 1, 28, 55])) == pytest.approx(0.246, abs=5e-4)
    rest = edgeld(112, (64, 128), 2, (100, 300, 1000), [A] * 3)
    real, level = closed_form(*rest, 112)
    assert real == pytest.approx([13.7, 33.0, 65.3], abs=0.05)
    assert level == pytest.approx(0.133, abs=5e-4)


def test_published_iteration_to_the_end() -> None:
    """The vector of the reference: 26/2/63/133, where nothing stops it."""
    alphas, betas = edgeld(224, (64, 64), 1, MBIT, [A] * 4)

    def seconds(shares: Sequence[int]) -> list[float]:
        return [a * w + b for a, b, w in zip(alphas, betas, shares, strict=True)]

    assert published([1] * 4, 224, seconds) == [26, 2, 63, 133]


def test_tiles_are_dealt_by_speed() -> None:
    """ADCNN: 12 tiles to good nodes, 5, 5, 3, 3 to throttled ones; none to the dead or the full."""
    counts = np.bincount(deal(64, [1.0] * 4 + [0.45] * 2 + [0.24] * 2), minlength=8)
    assert counts.tolist() == [12, 12, 12, 12, 5, 5, 3, 3]
    assert 1 not in deal(9, [1.0, 0.0, 1.0])
    assert deal(4, [1.0, 9.0], [4, 2]).count(1) == 2
    with pytest.raises(ValueError, match="4 of 5 tiles are dealt out"):
        deal(5, [1.0, 1.0], [2, 2])


# ---- what planners promise


@pytest.mark.parametrize("seed", range(200))
def test_auto_is_never_worse_than_any(seed: int) -> None:
    """Not than one device, nor than the best single planner."""
    problem = random_problem(3000 + seed, workers=5)
    best = problem.latency(PLANNERS["auto"](problem))
    others = dict(latencies(problem))
    assert best <= min(others.values()) * (1 + 1e-12)
    assert best <= problem.model.single_device(problem.batch) * (1 + 1e-12)
    assert (
        others["aofl"] <= others["early_fused"] * (1 + 1e-12)
        or others["early_fused"] <= others["aofl"]
    )


def latencies(problem: Problem) -> Iterator[tuple[str, float]]:
    for name, planner in BY_NAME.items():
        try:
            yield name, problem.latency(planner(problem))
        except PlanError:
            assert name in ("adcnn", "early_fused")


def run(chain: Chain, plan: Plan, x: torch.Tensor) -> torch.Tensor:
    """Cut, run every unit, stitch; rank 0 runs what no stage covers."""
    done = 0
    for stage in plan.stages:
        before, cutter = chain.between(done, stage.first), SPLITS[stage.split]
        x = x if before is None else before(x)
        units = [
            cutter.program(chain, stage, i)(piece) for i, piece in enumerate(cutter.cut(x, stage))
        ]
        x, done = cutter.stitch(units, stage), stage.last + 1
    head = chain.head_after(done - 1)
    return x if plan.stages and plan.stages[-1].exit == head.exit else head(x)


@pytest.mark.parametrize("name", PLANNERS)
@pytest.mark.parametrize("seed", range(12))
def test_stitched_is_unsplit(name: str, seed: int) -> None:
    model, shape = random_network(seed, most=5)
    chain = trace(model, shape)
    cluster = random_cluster(random.Random(seed), 2 + seed % 7, 10 ** (5 + seed % 3))
    problem = Problem(CostModel(chain, cluster, Formats()))
    try:
        plan = PLANNERS[name](problem)
    except PlanError:
        assert name == "adcnn"
        return
    plan.check(cluster, sharing=False)
    x = torch.randn(1, *shape)
    with torch.inference_mode():
        assert close(run(chain, plan, x), model(x.clone()), 1e-5)


MODELS: dict[str, tuple[str, tuple[int, ...]]] = {
    "lenet5": ("lenet5", (1, 32, 32)),
    "vgg9": ("vgg9", (3, 32, 32)),
    "resnet20": ("resnet20", (3, 32, 32)),
    "resnet18": ("resnet18", (3, 64, 64)),
}


@pytest.mark.parametrize("workers", [2, 5, 8])
@pytest.mark.parametrize("model", MODELS)
def test_every_planner_on_networks_of_the_field(model: str, workers: int) -> None:
    name, shape = MODELS[model]
    net = build(name, {})
    chain, x = trace(net, shape), torch.randn(1, *shape)
    cluster = random_cluster(random.Random(workers), workers, 1e8)
    problem = Problem(CostModel(chain, cluster, Formats()))
    with torch.inference_mode():
        right = net(x.clone())
        for planner in PLANNERS.values():
            assert close(run(chain, planner(problem), x), right, 1e-5)


def test_spatial_early_and_by_channel_late() -> None:
    """Fast links, and maps of few rows at the end: whole maps cost less than uneven strips do."""
    device, link = Device(7.8e9, values=1.3e8), Link(1.25e9, 1.25e9, 1e-5)
    problem = Problem(CostModel(vgg16(), Cluster.alike(9, device, link), HALVES))
    plan = aofl(problem)
    kinds = [stage.split for stage in plan.stages]
    assert kinds[0] in ("height", "tiles") and kinds[-1] == "channels"
    assert kinds == sorted(kinds, key=lambda kind: kind == "channels")
    gathered = aofl(problem, ("height", "tiles"))
    assert problem.latency(plan) < problem.latency(gathered)
    assert plan.stages[-1].redundancy == 0


def test_slow_devices_get_less_or_nothing() -> None:
    """Two fast and six slow ones on a slow link: the slow ones are left out, or have few rows."""
    slow = Device(flops=7.8e8, values=1.3e7, pack=2e8, unpack=2e8)
    devices = (PI, *[slow] * 3, PI, *[slow] * 3, PI)
    for mbit in (3, 1000):
        links = (Link(mbit * 1.25e5, mbit * 1.25e5),) * 9
        model = CostModel(vgg16(), Cluster(("",) * 9, devices, links), HALVES)
        problem = Problem(model)
        assert problem.order[:2] == (4, 8)
        used = {rank for stage in aofl(problem).stages for rank in stage.ranks}
        assert used <= {4, 8} if mbit == 3 else used > {4, 8}
        for stage in BY_NAME["ocbp"](problem).stages:
            rows = dict(zip(stage.ranks, (s.writes.rows.size for s in stage.shards), strict=True))
            assert min(rows[4], rows[8]) > 2 * max(
                [1, *(n for p, n in rows.items() if p not in (4, 8))]
            )


def test_one_device_is_a_plan_without_stages_or_the_fastest_rank() -> None:
    problem = on_pis(vgg16(), link=Link(1e3, 1e3, 1.0))
    assert PLANNERS["auto"](problem).stages == ()
    fast = Device(7.8e11, 1.55e11, 1.3e10, 2e10, 2e10)
    cluster = Cluster(("",) * 3, (PI, PI, fast), (FAST,) * 3)
    plan = BY_NAME["single"](
        Problem(CostModel(trace(build("vgg16", {}), (3, 224, 224)), cluster, HALVES))
    )
    assert [stage.ranks for stage in plan.stages] == [(2,)]
    assert plan.head_flops == 0, "the fast rank runs the head too"


def test_what_does_not_fit_is_not_used() -> None:
    """Workers that cannot hold the weights leave one device; none at all is told with numbers."""
    chain, small = vgg16(), Device(7.8e9, 1.55e9, 1.3e8, 2e8, 2e8, memory=1e6)
    cluster = Cluster(("",) * 4, (PI, *[small] * 3), (Link(),) * 4)
    problem = Problem(CostModel(chain, cluster, HALVES))
    assert PLANNERS["auto"](problem).stages == ()
    with pytest.raises(PlanError, match=r"rank 0 needs .* MB .* has 1.0 MB"):
        PLANNERS["auto"](
            Problem(CostModel(chain, Cluster(("",) * 4, (small,) * 4, (Link(),) * 4), HALVES))
        )


SCORES: dict[str, Callable[[Candidate], float]] = {
    "throughput": lambda c: c.usage.period,
    "memory": lambda c: c.memory,
    "p99": lambda c: 2 * c.prediction.latency,
}


@pytest.mark.parametrize("objective", SCORES)
def test_objectives(objective: str) -> None:
    """The best by each is no worse by it than any other planner's."""
    model, score = on_pis(vgg16(), workers=4).model, SCORES[objective]
    twice = Problem(model, tail=lambda plan: 2 * model.predict(plan).latency)
    problem = replace(twice, objective=objective)
    plans = [Candidate(name, planner(problem), problem) for name, planner in BY_NAME.items()]
    best = Candidate("auto", auto(problem, BY_NAME), problem)
    assert score(best) == min(map(score, plans))


def test_usage_by_hand() -> None:
    """Two strips of one convolution: bytes and seconds of every rank and link."""
    chain = trace(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1)), (1, 8, 8))
    device, link = Device(flops=1e6, pack=1e6, unpack=1e6), Link(1e4, 2e4)
    model = CostModel(chain, Cluster.alike(3, device, link), Formats())
    usage = Usage.of(model, plan_of(chain, "height", 2))
    sent, back = 4 * 40 + 144, 4 * 64 + 144  # rows 0:5 and 3:8 of 8 columns; 2 channels of 4 rows
    assert usage.sent == 2 * (sent + back) and usage.medium == 0
    assert usage.link == pytest.approx({0: 2 * sent / 1e4, 1: back / 1e4, 2: back / 1e4})
    assert usage.compute[1] == pytest.approx((40 + 2 * 9 * 2 * 32 + 64) / 1e6)
    assert usage.compute[0] == pytest.approx((2 * 40 + 2 * 64) / 1e6)
    assert usage.period == 2 * sent / 1e4


# ---- jobs

JOB = f"""\
{UNTRAINED}
[plan]
planner = "aofl"
cluster = "cluster.toml"
"""
REFUSED = {
    "stages": ('plan.stages=["pool1"]', r'stages: is what planner = "aofl" decides'),
    "split": ("plan.split=width", r'split: is what planner = "aofl" decides'),
    "weights": ("plan.weights=[1, 2]", r"weights: is what planner"),
    "k": ("code.k=3", r'planner: = "aofl" decides k, and k = 3 in \[code\]'),
    "objective": ("plan.objective=p99", r'objective: is of planner = "auto"'),
    "name": ("plan.planner=aofll", r"did you mean 'aofl'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_planner_decides_by_itself(case: str, tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB)
    given, why = REFUSED[case]
    with pytest.raises(JobError, match=why):
        Job.read(tmp_path / "job.toml", [given])


def test_a_planner_needs_a_cluster_and_no_parity(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(JOB.replace('cluster = "cluster.toml"\n', ""))
    with pytest.raises(JobError, match=r"cluster: is missing; planner = .aofl. needs"):
        Job.read(tmp_path / "job.toml")
    (tmp_path / "job.toml").write_text(JOB)
    with pytest.raises(JobError, match=r"data units alone, and r = 1"):
        Job.read(tmp_path / "job.toml", ["code.name=replication", "code.r=1"])
    with pytest.raises(JobError, match=r'objective: = "memory" is of a planner'):
        Job.given(objective="memory")


CLUSTER = """\
[[device]]
ranks = [0, 1, 2, 3]
flops = 1e6
values = 1e7
pack = 1e8
unpack = 1e8
sends = 1e6
receives = 1e6
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path / "job.toml"


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        (name, name in ("coedge", "deepslicing"))
        for name in (
            "aofl",
            "coedge",
            "deepslicing",
            "adcnn",
            "replicas",
        )
    ],
)
def test_real_ranks_by_a_planner(name: str, direct: bool, job: Path, ranks: LiveRanks) -> None:
    """Strips of unlike sizes, halos that are exchanged, several tiles a rank: the unsplit model."""
    sets = ("--set", f"plan.planner={name}", "--set", "input.limit=5", "--set", "runtime.window=1")
    ended = ranks.run(4, "run", job, *sets)
    assert ended.status == 0, ended.output
    assert re.search(r"all answers = unsplit .*100\.00 % of 5\b", ended.stdout), ended.output
    read = Job.read(job, [sets[1]])
    chain = traced(read, network(read), (1, 32, 32))
    assert any(stage.direct for stage in job_plan(read, chain).stages) == direct


@pytest.mark.parametrize("objective", ["throughput", "p99", "memory"])
def test_objectives_of_a_job(objective: str, job: Path) -> None:
    """What auto plans for a job; p99 is that of a simulated run."""
    read = Job.read(job, ["plan.planner=auto", f"plan.objective={objective}"])
    chain = traced(read, network(read), (1, 32, 32))
    plan, what = job_plan(read, chain), problem(read, chain)
    scores = [Candidate(name, planner(what), what).score for name, planner in BY_NAME.items()]
    assert Candidate("auto", plan, what).score == min(scores)


def test_compare_and_figures(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*args: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["mpicoded", "plan", str(job), *args])
        assert program._alone() == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    text = say("--compare", "--figure", str(job.parent / "all.png"))
    rows = {line.split()[0].rstrip("*"): line.split() for line in text.splitlines()[2:]}
    assert rows.keys() >= BY_NAME.keys()
    (best,) = (line.split()[1] for line in text.splitlines() if re.match(r" *\w+\* ", line))
    assert float(best) == min(float(rows[name][1]) for name in BY_NAME)
    assert rows["single"][2] == "x1.00" and rows["layerwise"][4:6] == ["0.0", "%"]
    say("--figure", str(job.parent / "plan.svg"))
    drawn = (job.parent / "plan.svg").read_text()
    assert "aofl: " in drawn and "one device" in drawn and "busy" in drawn
    assert (job.parent / "all.png").read_bytes().startswith(b"\x89PNG")
    assert "show one thing each" in say("--compare", "--steps", status=2)
    assert "decides k; leave it out" in say("--choose-k", status=2)


def test_planning_takes_little_time() -> None:
    """Seconds of this process alone: what else the machine does plays no part."""
    start = process_time()
    PLANNERS["auto"](on_pis(vgg16()))
    assert process_time() - start < 3
    chain, start = trace(build("inception-v3", {}), (3, 299, 299)), process_time()
    aofl(on_pis(chain, 64))
    assert process_time() - start < 10
