"""AOFL: blocks that are fused, and the devices of each (Zhou et al., SEC 2019, section 4.2).

    T(0) = 0,   T(j) = min( T(j-1) + t_own(j),  min_{i<=j, D, cut} T(i-1) + t(i, j, D, cut) )

over all stages of blocks i to j, over the sets D of the |D| fastest devices, sized anew for every
(i, j) so that they take equal time, and over cuts in strips, tiles or channels. t_own is rank 0's,
for a block that it runs alone. Times add up, as rank 0 gathers every stage: n states.
"""

from __future__ import annotations

from functools import lru_cache

from mpicoded.plan import Plan
from mpicoded.planners.base import Problem
from mpicoded.planners.choices import KINDS, Choices, Stretch, cheapest


@lru_cache(maxsize=1)  # others begin with it
def aofl(problem: Problem, kinds: tuple[str, ...] = KINDS) -> Plan:
    """Return the fastest plan of gathered stages, each cut in one of ``kinds``."""
    choices, best, cuts = Choices(problem, kinds), [0.0], list[Stretch | None]()
    for last in range(problem.count):
        own = best[last] + problem.own(last)
        offers = ((best[priced.first], priced) for priced in choices.ending(last))
        cuts.append(cut := cheapest(offers, own))
        best.append(cut.seconds if cut else own)
    stages, last = [], problem.count - 1
    while last >= 0:
        if (cut := cuts[last]) is not None:
            stages.append(problem.stage(*cut[1:]))
        last = cut.first - 1 if cut else last - 1
    return problem.plan(stages[::-1])
