"""AOFL: blocks that are fused, and the devices of each (Zhou et al., SEC 2019, section 4.2).

    T(0) = 0,   T(j) = min( T(j-1) + t_own(j),  min_{i<=j, D, cut} T(i-1) + t(i, j, D, cut) )

over all stages of blocks i to j, over the sets D of the |D| fastest devices, sized anew for every
(i, j) so that they take equal time, and over cuts in strips, tiles or channels. t_own is rank 0's,
for a block that it runs alone. Times add up, as rank 0 gathers every stage: n states.
"""

from __future__ import annotations

from functools import lru_cache

from mpicoded.plan import Plan, Stage
from mpicoded.planners.base import Problem
from mpicoded.planners.choices import KINDS, Choices, Stretch, cheapest


def aofl(problem: Problem, kinds: tuple[str, ...] = KINDS) -> Plan:
    """Return the fastest plan of gathered stages, each cut in one of ``kinds``."""
    return problem.plan(fused(problem, kinds))


@lru_cache(maxsize=2)  # other planners begin or end with it
def fused(problem: Problem, kinds: tuple[str, ...] = KINDS, start: int = 0) -> tuple[Stage, ...]:
    """Return the fastest stages of the blocks from ``start`` on."""
    choices, best, cuts = Choices(problem, kinds), [0.0] * (start + 1), list[Stretch | None]()
    for last in range(start, problem.count):
        own, ending = best[last] + problem.own(last), choices.ending(last)
        offers = ((best[priced.first], priced) for priced in ending if priced.first >= start)
        cuts.append(cut := cheapest(offers, own))
        best.append(cut.seconds if cut else own)
    stages, last = list[Stage](), problem.count - 1
    while last >= start:
        if (cut := cuts[last - start]) is not None:
            stages.append(problem.stage(*cut[1:]))
        last = cut.first - 1 if cut else last - 1
    return tuple(stages[::-1])
