"""Paces of ranks against those that the plan was made for: when a new one may be worth its while.

Only ratios between ranks count: where all are twice as slow the same plan is best. A rank that died
counts as slower than any.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from mpicoded.scheduling.ranks import Ranks, State

HOLD = 3.0  # s that paces must have drifted
AGAIN = 20.0  # s until the next look; each time twice as long when no better plan was found
DEAD = 1e6  # pace


@dataclass
class Drift:
    """Asks for a plan when a pace has drifted by more than ``bound`` times, for ``HOLD`` s."""

    bound: float
    asked: bool = False
    _since: float | None = None
    _until: float = 0.0
    _wait: float = AGAIN

    def look(self, ranks: Ranks, now: float) -> Mapping[int, float] | None:
        """Return the paces to make a new plan for; None while the present one will do."""
        if self.asked or now < self._until:
            return None
        paces = {
            p: DEAD if rank.state is State.FAILED else rank.pace
            for p, rank in ranks.workers.items()
            if rank.timed is not None or rank.planned is not None
        }
        drift = {p: pace / (ranks.workers[p].planned or 1.0) for p, pace in paces.items()}
        middle = median(drift.values()) if drift else 1.0
        if all(1 / self.bound <= each / middle <= self.bound for each in drift.values()):
            self._since = None
            return None
        self._since = now if self._since is None else self._since
        self.asked = now - self._since >= HOLD
        return paces if self.asked else None

    def answered(self, now: float, taken: bool) -> None:
        """Learn whether a better plan was found and taken."""
        self.asked, self._since, self._until = False, None, now + self._wait
        self._wait = AGAIN if taken else 2 * self._wait
