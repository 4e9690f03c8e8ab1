"""Waits for halos: when a unit goes on without its neighbours, and computes their parts itself.

    own parts here ----- wait ----- the halo comes: run
                                  \\ it does not: compute it from the segment's input, then run

The wait is learned as a stage's deadline on the leader is; the slowest neighbour is left out, so
that one slow rank does not slow all. It is at least what computing a halo has taken: who waits as
long as the way out costs never takes more than twice the better of the two (ski rental). Ranks
that are dead, or were late and have sent nothing since, are not waited for.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpicoded.moves import Route
from mpicoded.scheduling.deadline import Deadline
from mpicoded.steps import Node

LEAST = 0.02  # s: a scheduler's hiccup is no reason to compute anything


class HaloWaits:
    """Waits of one rank's units, learned apart for each; ranks that are not waited for."""

    def __init__(self) -> None:
        self.gone = set[int]()
        self.late = set[int]()
        self._deadlines: dict[Node, Deadline] = {}
        self._cost = 0.0  # s of the shortest computation of halos; 0: none yet

    def took(self, seconds: float) -> None:
        """Learn what computing halos costs; the first time a program is made, too."""
        self._cost = min(self._cost or seconds, seconds)

    def avoided(self, rank: int) -> bool:
        """True of a rank that is dead or was late, and has sent nothing since."""
        return rank in self.gone or rank in self.late

    def until(self, node: Node, route: Route, came: Mapping[Node, float], now: float) -> float:
        """Return until when a unit, whose own rank's parts are here now, waits for the others.

        ``came`` has the seconds of its parts since the segment's input came.
        """
        deadline = self._deadlines.setdefault(node, Deadline())
        times = {i: came[end.node] for i, end in enumerate(route.pieces) if end.node in came}
        after, k = max(times.values(), default=0.0), max(1, len(route.pieces) - 1)
        seconds, _ = deadline.seconds(after, deadline.pace(times), k, 1)
        return now + max(LEAST, self._cost, seconds - after)

    def observe(self, node: Node, route: Route, came: Mapping[Node, float], waited: bool) -> None:
        """Learn when the parts of a unit came, and whether it paid to have ``waited`` for them."""
        deadline = self._deadlines.setdefault(node, Deadline())
        times = {i: came[end.node] for i, end in enumerate(route.pieces) if end.node in came}
        pace, k = deadline.pace(times), max(1, len(route.pieces) - 1)
        deadline.stages += 1
        for i, seconds in times.items():
            deadline.observe(i, route.pieces[i].rank, seconds, pace, k)
        if waited:
            deadline.waited(paid=len(times) == len(route.pieces))
