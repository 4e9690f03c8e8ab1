"""APICO: the plan with the least mean latency at the present rate of arrivals. No MPI, no clock.

    rate_t = BETA n / s + (1 - BETA) rate_{t-1}         n arrivals in the last interval of s seconds
             without what the first rate, 0, still weighs: over 1 - (1 - BETA)^t
    Y(p, t) = rate p^2 / (2 (1 - rate p)) + t           rate p < 1, else no mean exists (M/D/1)

for a plan of period p that a query alone takes t seconds. Theorem 2 of the paper (Yang et al.,
ICDCS 2021, section V) has p (2 - rate p) / (2 (1 - rate p)) + t, which counts one service twice: in
a row of deterministic servers all waiting is like that before the slowest alone, whatever their
order, and t has its service already.

Queries end by the plan that they began with, beside the first ones by another: nothing is thrown
away, and nobody waits until the old plan has run dry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

BETA = 0.1
INTERVAL = 4.0  # times the least period
MARGIN = 0.03  # of its latency that another plan must save


class Speed(NamedTuple):
    """Period and latency of a plan, in seconds."""

    period: float
    latency: float

    def mean(self, rate: float) -> float:
        """Return the mean latency at a rate of arrivals."""
        busy = rate * self.period
        waits = busy * self.period / (2 * (1 - busy)) if busy < 1 else inf
        return waits + self.latency


@dataclass
class Switch:
    """Chooses one of several plans; ``now`` is the number of the present one."""

    speeds: Sequence[Speed]
    now: int = 0
    rate: float = 0.0
    _sum: float = 0.0
    _weight: float = 0.0
    _arrived: int = 0
    _since: float | None = None

    def arrived(self, now: float) -> None:
        """Count a query that arrives."""
        seconds = INTERVAL * min(speed.period for speed in self.speeds)
        self._since = now if self._since is None else self._since
        while now - self._since >= seconds:
            self._sum += BETA * (self._arrived / seconds - self._sum)
            self._weight += BETA * (1 - self._weight)
            self.rate = self._sum / self._weight
            self._arrived, self._since = 0, self._since + seconds
        self._arrived += 1

    def choose(self) -> bool:
        """Choose a plan; return True if it is another one."""
        before, means = self.now, [speed.mean(self.rate) for speed in self.speeds]
        best = min(range(len(means)), key=lambda i: (means[i], self.speeds[i].period))
        if means[best] < (1 - MARGIN) * means[before] or means[before] == inf:
            self.now = best
        return self.now != before
