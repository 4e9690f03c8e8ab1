"""MoDNN's BODP: every layer is cut along one axis by capability (Mao et al., DATE 2017).

    w_i = H c_i / sum_j c_j

All workers take part, whether that is faster or not; the leader scatters and gathers each layer.
"""

from __future__ import annotations

from mpicoded.plan import Plan
from mpicoded.planners.base import Choice, Problem


def modnn(problem: Problem) -> Plan:
    """Return the plan of one stage a layer, in strips by capability."""
    stages = []
    for first, last in problem.layers:
        ranks = problem.order[: problem.rows(last)]
        weights = tuple(problem.speeds[rank] for rank in ranks)
        stages.append(problem.stage(first, last, Choice("height", ranks, weights)))
    return problem.plan(stages)
