"""``plan --compare``: every planner's plan for the job's network and cluster, predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from mpicoded.deploy import network, problem, traced
from mpicoded.errors import PlanError
from mpicoded.job import Job
from mpicoded.plan import Plan, aligned
from mpicoded.planners import BY_NAME
from mpicoded.planners.auto import Candidate, candidates

HEADINGS = (
    "planner", "latency", "of one", "period", "redundant", "moved", "busy", "memory", "ranks",
    "stages",
)  # fmt: skip
UNITS = ("", "s", "device", "s", "work", "MB", "s a worker", "MB a rank", "", "")


def compare(job: Job, input_shape: tuple[int, ...]) -> tuple[list[Candidate], list[PlanError]]:
    """Return all planners' plans, and why some planners have none; JobError without a cluster."""
    chain = traced(job, network(job).requires_grad_(False), input_shape)
    found = list(candidates(problem(job, chain), BY_NAME))
    return (
        [each for each in found if isinstance(each, Candidate)],
        [each for each in found if isinstance(each, PlanError)],
    )


def table(found: Sequence[Candidate], refused: Sequence[PlanError]) -> str:
    """Return a line a planner; the best by the objective, as ``auto`` takes it, is marked."""
    fitting = [each for each in found if each.fits] or found
    best = min(fitting, key=lambda each: each.score)
    lines = aligned([HEADINGS, UNITS, *(_row(each, best) for each in found)])
    objective = found[0].problem.objective
    note = f"* the best by {objective}: what auto takes. busy, memory: the least and the most of a"
    return "\n".join([*lines, f"{note} worker, then rank 0", *map(str, refused)])


def _row(its: Candidate, best: Candidate) -> tuple[str, ...]:
    cluster, memory, plan, usage = its.problem.cluster, its.problem.memory, its.plan, its.usage
    used = sorted({rank for stage in plan.stages for rank in stage.ranks})
    needs = [memory.of(plan, rank, cluster).total / 1e6 for rank in (*used, 0)]
    return (
        its.name + "*" * (its is best),
        f"{its.prediction.latency:.4f}",
        f"x{its.prediction.speedup:.2f}",
        f"{its.problem.period(plan)[0]:.4f}",
        f"{100 * plan.redundancy:.1f} %",
        f"{usage.sent / 1e6:.2f}",
        _spread([usage.compute.get(rank, 0.0) for rank in (*used, 0)], 3),
        _spread(needs, 1) + "!" * (not its.fits),
        f"{len(used)}",
        shape(plan),
    )


def _spread(values: Sequence[float], digits: int) -> str:
    """Return the least and most of workers, then rank 0's."""
    *workers, leader = (f"{value:.{digits}f}" for value in values)
    ends = dict.fromkeys((min(workers, key=float), max(workers, key=float))) if workers else ()
    return " | ".join(["–".join(ends) or "–", leader])


def shape(plan: Plan) -> str:
    """Return the cuts of a plan's stages in short: "4 x 2, 3 x height 8 direct, channels 4"."""
    words = [" x ".join(map(str, s.grid)) if s.split == "tiles" else f"{s.split} {s.k}"
             + " direct" * s.direct for s in plan.stages]  # fmt: skip
    return ", ".join(_counted(words)) or "rank 0 alone"


def _counted(words: Sequence[str]) -> Iterator[str]:
    for word, same in groupby(words):
        count = len(list(same))
        yield f"{count} x ({word})" if count > 1 else word
