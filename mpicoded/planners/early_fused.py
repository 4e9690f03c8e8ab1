"""EFL: the first layers are one fused block, the best device runs the rest (AOFL, section 4.1).

T = min_m [ t_x(in_0) + sum_{l<m} t_c(l) + t_x(out_m) + sum_{l>=m} t_c(l, whole) ]
"""

from __future__ import annotations

from mpicoded.errors import PlanError
from mpicoded.plan import Plan
from mpicoded.planners.base import Choice, Problem
from mpicoded.planners.choices import STRIPS, Choices


def early_fused(problem: Problem) -> Plan:
    """Return the best plan of one fused block on all workers, then one device."""
    choices, own, last = Choices(problem), 0.0, problem.count - 1
    alone = Choice(STRIPS, problem.order[:1], (problem.rows(last),)) if problem.count else None
    found = list[tuple[float, list[tuple[int, int, Choice]]]]()
    for start, end in reversed(problem.layers):
        rest, then = own, list[tuple[int, int, Choice]]()
        if alone and end < last and (seconds := choices.price(end + 1, last, alone)) < rest:
            rest, then = seconds, [(end + 1, last, alone)]
        fused = choices.strips(0, end, problem.order)
        found.append((choices.price(0, end, fused) + rest, [(0, end, fused), *then]))
        own += sum(map(problem.own, range(start, end + 1)))
    if not found:
        raise PlanError(
            f"no block of this model can be cut: {problem.chain.limit}; one device is left, "
            'planner = "single"'
        )
    stages = min(found, key=lambda each: each[0])[1]
    return problem.plan([problem.stage(*each) for each in stages])
