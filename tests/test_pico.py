"""PICO: the least period of all pipelines, by full enumeration; ranks that differ; the limit."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from exactness import build_lively, error
from launching import Ended
from mpicoded import models
from mpicoded.answer import Mode
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.cost.model import CostModel, Formats
from mpicoded.cost.usage import Usage
from mpicoded.errors import PlanError
from mpicoded.faults import Fault
from mpicoded.network.graph import trace
from mpicoded.planners import Problem
from mpicoded.planners.pico import Times, pico, priced, shortest_period
from mpicoded.results import load
from mpicoded.runtime.deployment import uncoded
from mpicoded.runtime.replanner import Replanner
from mpicoded.settings import Settings
from mpicoded.simulate import simulate
from mpicoded.trace import Action
from test_planners import FAST, HALVES, PI, on_pis, random_problem, vgg16


def random_times(r: random.Random) -> Times:
    """Any times: some stages cannot be, some take equally long."""
    count, most = r.randint(1, 5), r.randint(1, 5)
    busy, spent = np.full((2, count, count, most + 1), inf)
    for i, j, q in np.ndindex(busy.shape):
        if i <= j and q and r.random() < 0.8:
            busy[i, j, q] = r.choice([r.randint(1, 6), r.uniform(1, 6)])
            spent[i, j, q] = r.choice([busy[i, j, q], r.uniform(1, 6)])
    rest = np.array([[r.uniform(0, 9) for _ in range(count + 1)] for _ in "12"])
    return Times(busy, spent, np.zeros_like(busy), *rest)


def pipelines(times: Times, first: int = 0, ranks: int = -1) -> Iterator[tuple[float, float]]:
    """Period and latency of every pipeline of the blocks from ``first`` on."""
    ranks = times.busy.shape[2] - 1 if ranks < 0 else ranks
    yield times.rest_busy[first], times.rest_spent[first]
    for last in range(first, len(times.busy)):
        for q in range(1, ranks + 1):
            for period, latency in pipelines(times, last + 1, ranks - q):
                yield (
                    max(times.busy[first, last, q], period),
                    times.spent[first, last, q] + latency,
                )


def of(times: Times, found: tuple[tuple[int, int, int, float], ...]) -> tuple[float, float]:
    """Period and latency of the stages that were found, which follow one another."""
    ends = [0, *(part[1] + 1 for part in found)]
    assert [part[0] for part in found] == ends[:-1]
    assert sum(part[2] for part in found) < times.busy.shape[2]
    pairs = [(times.busy[i, j, q], times.spent[i, j, q]) for i, j, q, _ in found]
    pairs.append((times.rest_busy[ends[-1]], times.rest_spent[ends[-1]]))
    return max(p for p, _ in pairs), sum(t for _, t in pairs)


@pytest.mark.parametrize("seed", range(240))
def test_the_least_period_of_all_pipelines(seed: int) -> None:
    """With latency limits that bind, that cannot be met, and none; made-up and real times."""
    r = random.Random(seed)
    times = random_times(r) if seed % 4 else priced(random_problem(seed, most=4, workers=4))
    every = list(pipelines(times))
    least, most = (f(t for _, t in every if t < inf) for f in (min, max))
    for limit in (inf, least, r.uniform(least, most), 0.9 * least):
        within = [each for each in every if each[1] <= limit * (1 + 1e-12)]
        best = min(within) if within else min(every, key=lambda each: each[1])
        period, latency = of(times, shortest_period(times, limit * (1 + 1e-12)))
        assert latency == pytest.approx(best[1]) and period <= best[0] * (1 + 1e-12)


def test_stages_on_ranks_of_their_own() -> None:
    """VGG-16 on eight Pis: direct boundaries, nobody works in two stages, near eight times."""
    problem = replace(on_pis(vgg16()), window=16)
    plan = pico(problem)
    ranks = [rank for stage in plan.stages for rank in stage.ranks]
    assert sorted(ranks) == sorted(set(ranks)) and 0 not in ranks
    assert [stage.direct for stage in plan.stages] == [i > 0 for i in range(len(plan.stages))]
    period, latency = problem.period(plan)
    assert problem.model.single_device() > 6.5 * period
    faster = pico(replace(problem, latency_limit=0.8 * latency))
    assert problem.latency(faster) <= 0.8 * latency and problem.period(faster)[0] >= period
    with pytest.raises(PlanError, match=r"latency_limit = 0\.01 in \[plan\]: raise it"):
        pico(replace(problem, latency_limit=0.01))


@pytest.mark.parametrize("seed", range(30))
def test_a_pipeline_of_unlike_ranks(seed: int) -> None:
    """Never two stages on a rank; a period that the busiest of them explains."""
    problem = random_problem(500 + seed, most=6, workers=6)
    plan = pico(problem)
    ranks = [rank for stage in plan.stages for rank in stage.ranks]
    assert len(ranks) == len(set(ranks)) and {*ranks} <= {*problem.order}
    assert problem.period(plan)[0] <= problem.model.single_device(problem.batch) * (1 + 1e-9)


NETWORKS: dict[str, tuple[dict[str, object], tuple[int, ...]]] = {
    "vgg13": ({"size": 32, "hidden": 16}, (3, 64, 48)),
    "resnet34": ({}, (3, 64, 64)),
    "inception-v3": ({"aux": False}, (3, 107, 107)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_pipelines_are_the_unsplit_model(name: str) -> None:
    """Whole residual and inception blocks in strips, on two to eight unlike workers."""
    args, shape = NETWORKS[name]
    model, x = build_lively(name, args, 3), torch.randn(1, *shape)
    chain = trace(model, shape)
    with torch.inference_mode():
        true = model(x.clone())
    for workers in range(2, 9):
        devices = [replace(PI, flops=1e8 / (1 + i % 3)) for i in range(workers + 1)]
        cluster = Cluster(("",) * len(devices), tuple(devices), (FAST,) * len(devices))
        plan = pico(Problem(CostModel(chain, cluster, HALVES), window=16))
        assert plan.direct or workers == 2
        assert error(uncoded(chain, plan, None), x, true) <= 1e-5


def test_a_pipeline_is_planned_anew_over_the_living() -> None:
    """A rank dies in the middle: its neighbour does both, until a new pipeline takes over."""
    device = Device(flops=1e8, dense=1e9, pack=1e8, unpack=1e8)
    cluster, queries = Cluster.alike(6, device, Link(1e7, 1e7, 1e-4)), 2500
    model = CostModel(trace(models.build("lenet5", {}), (1, 32, 32)), cluster, Formats())
    plan = pico(Problem(model, window=8))
    killed = plan.stages[-1].ranks[0]
    deployment = replace(uncoded(model.chain, plan, None), room=(4, 5))
    again = Replanner(
        1.5,
        lambda now: pico(Problem(now, window=8)),
        model,
        deployment,
        lambda now, each: Usage.of(now, each).period,
    )
    answers, trace_ = simulate(
        deployment, model, Settings(window=8, suspect_after=0.2), queries,
        faults=[Fault("crash", killed, 200, 10**6)], replanner=again,
    )  # fmt: skip
    events = trace_.drain()
    assert {a.mode for a in answers} == {Mode.AVAILABLE} and len(answers) == queries
    (at,) = events["query"][events["action"] == Action.REPLAN].tolist()
    at = max(at, 300)
    ended = sorted(a.answered for a in answers)
    before, after = ended[at - 10] - ended[at - 60], ended[-1] - ended[-51]
    assert after < 0.9 * before
    late = events[(events["query"] > at + 20) & (events["action"] == Action.COMPUTE)]
    assert killed not in late["rank"] and len({*late["rank"].tolist()}) > 1


JOB = """\
[model]
name = "{}"
args = {}
[input]
data = "images.npy"
limit = 12
[plan]
planner = "pico"
cluster = "cluster.toml"
[runtime]
window = 6
[results]
file = "run.h5"
"""
CLUSTER = """\
[[device]]
ranks = {}
flops = 1e7
sends = 1e7
receives = 1e7
"""
REAL: dict[str, tuple[str, tuple[int, ...], int]] = {
    "vgg9": ("{}", (3, 32, 32), 4),
    "resnet20": ("{}", (3, 32, 32), 9),
    "inception-v3": ("{aux = false, classes = 10}", (3, 75, 75), 6),
}


@pytest.mark.parametrize("name", REAL)
def test_queries_overlap_on_real_ranks(
    name: str, tmp_path: Path, mpirun: Callable[..., Ended]
) -> None:
    """All answers are the unsplit model's, and stages compute different queries at a time."""
    args, shape, ranks = REAL[name]
    (tmp_path / "job.toml").write_text(JOB.format(name, args))
    (tmp_path / "cluster.toml").write_text(CLUSTER.format([*range(ranks)]))
    images = np.random.default_rng(0).standard_normal((12, *shape))
    np.save(tmp_path / "images.npy", images.astype("float32"))
    ended = mpirun(ranks, ["-m", "mpicoded", "run", tmp_path / "job.toml"], timeout=120)
    assert ended.status == 0, ended.output
    assert re.search(r"all answers = unsplit .*100\.00 % of 12\b", ended.stdout), ended.output
    events = load(tmp_path / "run.h5").events
    ran = events[events["action"] == Action.COMPUTE]
    assert len({*ran["rank"].tolist()}) == ranks - 1 and ran["stage"].max() >= 1
    assert any(  # a query begins before the one ahead of it is done
        a["stage"] < b["stage"] and a["query"] > b["query"] and a["start"] < b["stop"]
        for a in ran
        for b in ran
    )
