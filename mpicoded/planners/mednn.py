"""MeDNN's greedy 2-D partition: every layer has the grid and devices best for itself (ICCAD 2017).

    min over N x M = |D|:  t(l, D, N x M)        layer by layer

Bands of rows go by the capability of their devices together, columns of a band by that of each.
The paper's abstract alone was at hand: the choice of each layer is this project's reading of it.
"""

from __future__ import annotations

from mpicoded.plan import Plan, Stage
from mpicoded.planners.base import Problem
from mpicoded.planners.choices import STRIPS, TILES, Choices, cheapest


def mednn(problem: Problem) -> Plan:
    """Return the plan of one stage a layer, each in its own best grid."""
    choices, stages = Choices(problem, (STRIPS, TILES)), list[Stage]()
    for first, last in problem.layers:
        best = cheapest((0.0, priced) for priced in choices.ending(last) if priced.first == first)
        assert best is not None, "one device is always a choice"
        stages.append(problem.stage(*best[1:]))
    return problem.plan(stages)
