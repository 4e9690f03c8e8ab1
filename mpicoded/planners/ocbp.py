"""EdgeLD's OCBP: the layers between two pools are fused, in strips of equal time (HPCC 2020).

    T_i(w) = a_i Phi(w) + b_i + bytes_i(w) / B_i = alpha_i w + beta_i

The published iteration moves one column at a time, and stops as soon as any strip has one column
left, however far the others are from balance. The plan has the closed form of
:mod:`mpicoded.planners.balance`; a stage returns its map after the pool, not before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mpicoded.plan import Plan
from mpicoded.planners.base import Problem
from mpicoded.planners.choices import Choices


def ocbp(problem: Problem) -> Plan:
    """Return the plan of one stage from pool to pool."""
    # a layer with a pool behind it ends a stage
    ends = [last for first, last in problem.layers if last > first or last == problem.count - 1]
    starts = [0, *(end + 1 for end in ends[:-1])]
    return problem.plan(Choices(problem).stages(zip(starts, ends, strict=False)))


def published(
    speeds: Sequence[float],
    size: int,
    seconds: Callable[[Sequence[int]], Sequence[float]],
    tolerance: float = 0.02,
) -> list[int]:
    """Return the shares that the published iteration ends with, its defect included.

    ``seconds`` predicts the time of every device for the shares of all.
    """
    shares = [round(size * speed / sum(speeds)) for speed in speeds]
    for _ in range(size * len(shares)):  # it may go to and fro for ever
        times = list(seconds(shares))
        slowest, fastest = times.index(max(times)), times.index(min(times))
        if times[slowest] - times[fastest] < tolerance or 1 in shares:
            break
        shares[slowest] -= 1
        shares[fastest] += 1
    return shares
