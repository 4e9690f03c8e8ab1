"""Rows by accumulated finish times, as of DeepSlicing (TPDS 2021) and DistrEdge (IPDPS 2022).

    shares = argmin T(shares),    T: the event model of mpicoded.cost, message by message

Published systems learn the shares, or solve for them; a local search on the event model is the
cheap substitute: rows go from the unit whose answer comes last to others, many at first, then few.

Two kinds of plans: stages that the leader gathers, where early units get more rows as they begin
before late ones; and strips whose units exchange halos or compute them twice, without a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from mpicoded.plan import Plan, Stage
from mpicoded.planners.aofl import fused
from mpicoded.planners.base import Choice, Problem
from mpicoded.planners.choices import CHANNELS, STRIPS, Choices
from mpicoded.planners.edges import Edges, Strips

Price = Callable[[tuple[float, ...]], tuple[float, Sequence[float]]]
GRAIN = 64  # parts of a share
STAGE_TRIES, SEGMENT_TRIES = 200, 96  # prices of a stage; of a segment's strips, which take longer


def deepslicing(problem: Problem) -> Plan:
    """Return the better of both kinds of plans, with rows found by local search."""
    return problem.best([_gathered(problem), *_exchanging(problem)])


def descend(shares: tuple[float, ...], price: Price, tries: int) -> tuple[float, ...]:
    """Move shares while the price falls; ``price`` is that of all, and when each unit is done.

    What moves is of the last unit, and goes to those that are done first before others: an eighth
    of a share at a time to begin with, one in the end.
    """
    least, done = price(shares)
    step = max(1.0, max(shares) // 8)
    while step >= 1 and tries > 0:
        last, moved = max(range(len(done)), key=done.__getitem__), False
        for other in sorted(range(len(done)), key=done.__getitem__):
            if moved or tries <= 0 or other == last or shares[last] <= step:
                break
            tries -= 1
            trial = [*shares]
            trial[last] -= step
            trial[other] += step
            seconds, times = price(tuple(trial))
            if moved := seconds < least * (1 - 1e-9):
                shares, least, done = tuple(trial), seconds, times
        step = step if moved else step // 2
    return shares


def _gathered(problem: Problem) -> Plan:
    """Return AOFL's stages, with shares that suit the order of messages."""
    choices, stages = Choices(problem), list[Stage]()
    for stage in fused(problem):
        if stage.k > 1 and stage.split != CHANNELS:
            stage = _polished(choices, stage)
        stages.append(stage)
    return problem.plan(stages)


def _polished(choices: Choices, stage: Stage) -> Stage:
    problem, tiles = choices.problem, stage.grid
    weights = tuple(float(shard.writes.rows.size) for shard in stage.shards)
    if stage.split != STRIPS:
        areas = [shard.writes.area for shard in stage.shards]
        weights = tuple(float(round(GRAIN * stage.k * area / sum(areas))) for area in areas)
    choice = Choice(stage.split, stage.ranks, weights, tiles if stage.split != STRIPS else None)
    price = choices.pricer(stage.first, stage.last, choice)
    shares = descend(weights, price, STAGE_TRIES)
    return problem.stage(stage.first, stage.last, choice._replace(weights=shares))


def _exchanging(problem: Problem) -> Iterator[Plan]:
    """Yield the best plan of strips that may exchange halos, with the cheapest edges."""
    counts = {max(1, len(problem.order) >> n) for n in range(3)} - {1}
    if not problem.layers or not counts:
        return
    found = list[tuple[float, Strips, Edges]]()
    for ranks in (problem.order[:count] for count in counts):
        strips = Strips(problem, ranks, [problem.speeds[rank] for rank in ranks])
        edges = strips.edges()
        found.append((problem.latency(strips.plan(edges)), strips, edges))
    _, strips, edges = min(found, key=lambda each: each[0])

    def plan(shares: tuple[float, ...]) -> Plan:
        return Strips(problem, strips.ranks, shares).plan(edges)

    def price(shares: tuple[float, ...]) -> tuple[float, Sequence[float]]:
        trial, busy = plan(shares), dict.fromkeys(strips.ranks, 0.0)
        for s, i in trial.units():
            rank = trial.stages[s].ranks[i]
            busy[rank] += problem.model.load(trial, s, i, rank).compute
        return problem.latency(trial), list(busy.values())

    grain = GRAIN / max(strips.shares)
    shares = tuple(max(1.0, round(grain * share)) for share in strips.shares)
    yield plan(descend(shares, price, SEGMENT_TRIES // len(shares)))
