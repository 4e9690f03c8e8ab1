"""Ranks of a direct segment: who runs each unit of each of its stages.

    homes      1 2 3 4 | 1 2 3 4        rank 2 dead, 5 spare      1 5 3 4 | 1 5 3 4
                                        rank 2 dead, no spare     1 1 3 4 | 1 1 3 4

Units of a direct segment stay where the layout puts them: neighbours send to them there. A layout
has an epoch; every message of a query carries the epoch that it was sent in, and older ones are
dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from mpicoded.cluster import Cluster
from mpicoded.moves import Route, routes
from mpicoded.plan import Plan
from mpicoded.steps import Node

Homes = tuple[tuple[int, ...], ...]  # of each stage, the rank of every unit


class Layout(NamedTuple):
    """``ranks[i][unit]`` runs a unit of the segment's stage i."""

    epoch: int
    ranks: Homes

    @property
    def members(self) -> set[int]:
        """All ranks of the segment."""
        return set(chain(*self.ranks))

    def last(self, rank: int) -> tuple[int, tuple[int, ...]]:
        """Return the last stage (0: the segment's first) that a rank works in, and its units."""
        stage = max(i for i, ranks in enumerate(self.ranks) if rank in ranks)
        return stage, tuple(u for u, p in enumerate(self.ranks[stage]) if p == rank)

    def routes(self, plan: Plan, last: int, start: int = 0) -> dict[int, dict[Node, Route]]:
        """Derive the moves of every rank's units in the segment that ends with stage ``last``.

        In a run of several plans ``start`` is the number of this plan's first stage.
        """
        ranks = max(plan.ranks, 1 + max(self.members))  # a home may have no unit any more
        homes = [st.ranks for st in plan.placed(Cluster.local(ranks)).stages]
        stop = last + 1 - start
        first = stop - len(self.ranks)
        homes[first:stop] = self.ranks
        return {
            rank: {
                node.later(start): route.later(start)
                for node, route in own.items()
                if first <= node.stage < stop
            }
            for rank, own in routes(plan, homes).items()
        }


def lay_out(homes: Homes, able: Sequence[int]) -> Homes:
    """Return the ranks of every stage's units: spares, then neighbours, stand in for the unable.

    Without any able rank the homes stay.
    """
    named = list(dict.fromkeys(chain(*homes)))
    if not able or set(named) <= set(able):
        return homes
    spare = [rank for rank in able if rank not in named]
    there = [rank for rank in named if rank in able]
    stand_ins = {}
    for i, rank in enumerate(named):
        if rank in able:
            stand_ins[rank] = rank
        elif spare:
            stand_ins[rank] = spare.pop(0)
        else:  # shares of one map lie side by side: the halo between them stays on one rank
            near = min(there or stand_ins, key=lambda p: abs(named.index(p) - i))  # noqa: B023
            stand_ins[rank] = stand_ins.get(near, near)
    return tuple(tuple(stand_ins[rank] for rank in ranks) for ranks in homes)
