"""ADCNN: an early fused block in small tiles, dealt out by speed (Zhang et al., ICPP 2020, sec. 5).

    each tile goes to the device k with the least  max_k x_k / s_k        s_k = tiles a second

Here tiles keep their halos, so that answers are exact and nothing is retrained; rank 0 runs what
follows. With code "zerofill", tiles that come late are zeros, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from mpicoded.errors import PlanError
from mpicoded.plan import Plan
from mpicoded.planners.base import Choice, Problem
from mpicoded.planners.choices import TILES, Choices, Priced, cheapest

GRIDS = ((4, 4), (8, 8))  # the paper has 8 x 8


def deal(tiles: int, speeds: Sequence[float], room: Sequence[float] = ()) -> list[int]:
    """Return the device of every tile; device k has room for ``room[k]`` of them (all: for any).

    Raises
    ------
    ValueError
        If nobody has room, or is alive (s_k > 0).
    """
    counts, dealt = [0] * len(speeds), list[int]()
    for _ in range(tiles):
        able = [k for k, s in enumerate(speeds) if s > 0 and (not room or counts[k] + 1 <= room[k])]
        if not able:
            raise ValueError(f"{len(dealt)} of {tiles} tiles are dealt out, and nobody has room")
        k = min(able, key=lambda k: (counts[k] + 1) / speeds[k])  # ties: the first of them
        counts[k] += 1
        dealt.append(k)
    return dealt


def adcnn(problem: Problem) -> Plan:
    """Return the best plan of one block in tiles, and rank 0 for the rest."""
    workers, grids = problem.order, list[Choice]()
    for grid in GRIDS:
        dealt = deal(prod(grid), [problem.speeds[rank] for rank in workers])
        grids.append(Choice(TILES, tuple(workers[k] for k in dealt), (1.0,) * prod(grid), grid))
    choices, rest = Choices(problem, (TILES,), grids), 0.0
    offers = list[tuple[float, Priced]]()
    for last in range(problem.count - 1, -1, -1):
        offers += [(rest, priced) for priced in choices.ending(last) if priced.first == 0]
        rest += problem.own(last)
    best = cheapest(offers)
    if best is None:
        raise PlanError(
            f"no map of this network can be cut into {GRIDS[0][0]} x {GRIDS[0][1]} tiles: take "
            'another planner, "aofl"'
        )
    return problem.plan([problem.stage(*best[1:])])
