"""LW: every layer is split, sent, computed and gathered by itself (AOFL, SEC 2019, section 4.1).

    T = sum_l [ t_x(in_l) + max_k t_c(l, k) + t_x(out_l) ]

All workers take part, in strips of equal time. A layer is a convolution with the pools behind it.
"""

from __future__ import annotations

from mpicoded.plan import Plan
from mpicoded.planners.base import Problem
from mpicoded.planners.choices import Choices


def layerwise(problem: Problem) -> Plan:
    """Return the plan of one stage a layer."""
    return problem.plan(Choices(problem).stages(problem.layers))
