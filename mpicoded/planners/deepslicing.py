"""Rows by accumulated finish times, as of DeepSlicing (TPDS 2021) and DistrEdge (IPDPS 2022).

    shares = argmin T(shares),    T: the event model of mpicoded.cost, message by message

Published systems learn the shares, or solve for them; a local search on the event model is the
cheap substitute: rows go from the unit whose answer comes last to others, many at first, then few.

Two kinds of plans: stages that the leader gathers, where early units get more rows as they begin
before late ones; and one segment of layers whose units exchange halos, without a barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mpicoded.geometry import split_weighted
from mpicoded.plan import Plan, Stage
from mpicoded.planners.aofl import fused
from mpicoded.planners.base import Choice, Problem
from mpicoded.planners.choices import CHANNELS, STRIPS, Choices

Price = Callable[[tuple[float, ...]], tuple[float, Sequence[float]]]
GRAIN = 64  # parts of a tile's share
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
    """Yield the best segment of layers that exchange halos, then one with AOFL's stages behind."""
    counts = {max(1, len(problem.order) >> n) for n in range(3)} - {1}
    found = [
        (problem.latency(problem.plan(stages[:end])), stages[:end])
        for count in counts
        for stages in [_segment(problem, problem.order[:count])]
        for end in _ends(stages)
    ]
    if not found:
        return
    stages = min(found, key=lambda each: each[0])[1]
    ranks = stages[0].ranks
    shares = tuple(float(shard.writes.rows.size) for shard in stages[0].shards)

    def plan(shares: tuple[float, ...]) -> Plan:
        return problem.plan(_segment(problem, ranks, shares, len(stages)))

    def price(shares: tuple[float, ...]) -> tuple[float, Sequence[float]]:
        trial, model = plan(shares), problem.model
        units = range(len(ranks))
        loads = [[model.load(trial, s, i, ranks[i]) for i in units] for s in range(len(stages))]
        return problem.latency(trial), [sum(each[i].compute for each in loads) for i in units]

    best = plan(descend(shares, price, SEGMENT_TRIES // len(ranks)))
    yield best
    yield problem.plan([*best.stages, *fused(problem, start=stages[-1].last + 1)])


def _segment(
    problem: Problem, ranks: tuple[int, ...], shares: tuple[float, ...] = (), most: int = 10**9
) -> list[Stage]:
    """Return the layers whose maps have a row for every rank, in strips by shares."""
    stages = list[Stage]()
    for first, last in problem.layers[:most]:
        if problem.rows(last) < len(ranks):
            break
        weights = shares or tuple(problem.speeds[rank] for rank in ranks)
        rows = [part.size for part in split_weighted(problem.rows(last), weights)]
        stage = problem.stage(first, last, Choice(STRIPS, ranks, tuple(map(float, rows))))
        stages.append(replace(stage, direct=bool(stages)))
    return stages


def _ends(stages: Sequence[Stage]) -> list[int]:
    """Return where a segment may end: before maps get smaller, and with its last layer."""
    heights = [stage.output_shape[1] for stage in stages]
    return [
        i + 1
        for i, stage in enumerate(stages)
        if i + 1 == len(stages) or stage.input_shape[1] > heights[i] or heights[i + 1] < heights[i]
    ]
