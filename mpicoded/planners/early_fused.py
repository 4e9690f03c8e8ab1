"""EFL: the first layers are one fused block, the best device runs the rest (AOFL, section 4.1).

T = min_m [ t_x(in_0) + sum_{l<m} t_c(l) + t_x(out_m) + sum_{l>=m} t_c(l, whole) ]
"""

from __future__ import annotations

from collections.abc import Iterator

from mpicoded.plan import Plan
from mpicoded.planners.base import Choice, Problem
from mpicoded.planners.choices import STRIPS, Choices


def early_fused(problem: Problem) -> Plan:
    """Return the best plan of one fused block on all workers, then one device."""
    return problem.best(_plans(problem))


def _plans(problem: Problem) -> Iterator[Plan]:
    choices, last = Choices(problem), problem.count - 1
    for _, end in problem.layers:
        fused = choices.stages([(0, end)])
        yield problem.plan(fused)
        if end < last:
            alone = Choice(STRIPS, problem.order[:1])
            yield problem.plan([*fused, problem.stage(end + 1, last, alone)])
