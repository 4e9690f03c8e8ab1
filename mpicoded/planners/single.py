"""One device: the baseline of every planner, and a candidate of ``auto``.

    T_1 = min_k [ t_x(image -> k) + sum_l t_c(l, k) + t_x(answer -> leader) ]

Transfers are 0 on rank 0, which then runs the network unsplit: a plan without stages. A faster
worker gets the whole network, or all blocks and rank 0 keeps the head.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpicoded.plan import Plan
from mpicoded.planners.base import Choice, Problem


def single(problem: Problem) -> Plan:
    """Return the fastest plan of one device."""
    return problem.best(_plans(problem))


def _plans(problem: Problem) -> Iterator[Plan]:
    yield problem.plan(())
    model, blocks = problem.model, range(problem.count)
    ranked = sorted(problem.order, key=lambda rank: model.blocks(blocks, 1, head=True, rank=rank))
    for rank in dict.fromkeys([*problem.order[:2], *ranked[:2]]):
        for split in ("batch", "height")[: 1 + (problem.count > 0)]:
            stage = problem.stage(0, max(0, problem.count - 1), Choice(split, (rank,)))
            yield problem.plan([stage])
