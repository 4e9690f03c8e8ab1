"""Replicas: every worker has the whole network, and a query goes to the first that is free.

    period = 1 / sum_k 1 / T_k        latency = T_k + transfers

No work is done twice and nothing waits for a neighbour; but one query is as slow as one device, and
every device needs the memory for all weights.
"""

from __future__ import annotations

from dataclasses import replace

from mpicoded.plan import Plan
from mpicoded.planners.base import Choice, Problem


def replicas(problem: Problem) -> Plan:
    """Return the plan of one unit that is at home on every worker."""
    if not problem.order:
        return problem.plan(())
    last = max(0, problem.count - 1)
    stage = problem.stage(0, last, Choice("batch", problem.order[:1]))
    return problem.plan([replace(stage, ranks=problem.order)])
