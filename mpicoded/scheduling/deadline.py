"""Deadlines: when decoding may start, learned from arrivals. No MPI, no clock.

A number spans the field's policies: infinity waits for every data unit, 0 takes the first decodable
set of the n units (MDS codes; CoCoI), a time between is ParM's time-out (Kosaian et al., SOSP 2019,
section 3). None adapts. Nobody says how many ranks will fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

COLD = 8  # stages before the measured times are believed
MEMORY = 64  # answers after which a rank's lateness is forgotten, more or less
RATE = 0.1  # of the usual times towards the last ones
MARGIN = 0.03
WIDEN = 1.5
MILD = 0.3  # a rank late by less is waited for; one that is later is a straggler
LEAST_CONFIDENCE = 0.05  # the least share of the wait that is kept when waiting never paid


@dataclass
class Peak:
    """The most by which a rank's answers came late, as a share of the usual time; it fades."""

    excess: float
    answers: int = 1
    stage: int = 0  # when it was updated last

    def update(self, excess: float, stage: int) -> None:
        """Learn from another answer; the first ones fade quickly."""
        self.answers += 1
        self.stage = stage
        self.excess = max(excess, self.excess * (1 - 1 / min(self.answers, MEMORY)))


@dataclass
class Deadline:
    """Seconds after posting at which decoding may start; for the stages of one kind.

    ``fixed`` is that number, or None. Then it is the usual time until the data is here, times how
    much slower this stage goes than usual, times how late its answers may well be:

    * ``usual`` is when each unit comes. The k-th of these times is when the data is usually here:
      r stragglers do not move it, nor do answers that are missing in every query.
    * The stage's own pace is the median of its arrivals over their usual times: when everything
      becomes slower, the wait grows with the first such stage.
    * Every rank has a Peak. The wait covers all ranks that are only a little late, and all but
      the r worst: what these owe is what the code is for. Answers that come after the decoding
      raise the lateness too, so a wait that has become too short grows again.
    * ``confidence`` is how often waiting paid: where answers are missing in every query it
      seldom does, and the wait becomes short.

    It is never more than ``patience`` times the usual time, or the time until the stage became
    decodable. ``slack`` seconds are added for the clock and the scheduler.
    """

    fixed: float | None = None
    patience: float = 2.0
    slack: float = 0.002
    cold: float = 0.2  # the least while too little has been measured
    stages: int = 0
    usual: dict[int, float] = field(default_factory=dict)  # unit: seconds after posting
    lateness: dict[int, Peak] = field(default_factory=dict)  # of a rank
    confidence: float = 1.0
    _complete: tuple[tuple[int, int], float | None] = ((-1, -1), None)

    def seconds(self, decodable_after: float, pace: float, k: int, r: int) -> tuple[float, float]:
        """Return the deadline of a stage that became decodable after so many seconds.

        The second number is what it would be in full ``confidence``.
        """
        if self.fixed is not None:
            return self.fixed, self.fixed
        complete = self.complete(k)
        if complete is None:
            cold = max(self.cold, self.patience * decodable_after)
            return cold, cold
        limit = self.patience * max(complete, decodable_after)
        longer = self.stretch(r) - 1
        short, full = (
            max(self.slack, min(complete * pace * (1 + part * longer) + self.slack, limit))
            for part in (self.confidence, 1.0)
        )
        return short, full

    def complete(self, k: int) -> float | None:
        """Return when k units are usually here, None if that is not known yet."""
        if self.stages < COLD or len(self.usual) < k:
            return None
        return sorted(self.usual.values())[k - 1]

    def pace(self, seconds: Mapping[int, float]) -> float:
        """Return how much slower a stage goes than usual, from its units' arrivals; at least 1."""
        ratios = [t / self.usual[unit] for unit, t in seconds.items() if self.usual.get(unit)]
        return max(1.0, median(ratios)) if ratios else 1.0

    def stretch(self, r: int) -> float:
        """Return the factor of the usual time that covers late answers."""
        recent = (p.excess for p in self.lateness.values() if self.stages - p.stage <= MEMORY)
        worst = sorted(recent, reverse=True)
        if not worst:
            return self.patience
        common = worst[min(r, len(worst) - 1)]
        mild = next((excess for excess in worst if excess <= MILD), 0.0)
        return 1 + MARGIN + WIDEN * max(common, mild)

    def waited(self, paid: bool) -> None:
        """Learn whether waiting on for data paid, after a stage had become decodable."""
        self.confidence += (
            0.3 * (1 - self.confidence) if paid else 0.2 * (LEAST_CONFIDENCE - self.confidence)
        )

    def observe(self, unit: int, rank: int, seconds: float, pace: float, k: int) -> None:
        """Learn from one answer, in time or late, of a stage that went ``pace`` times slower."""
        usual = self.usual.setdefault(unit, seconds)
        rate = max(RATE, 1 / (self.stages + 1))
        self.usual[unit] += rate * (min(seconds, 2 * usual) - usual)
        self.observe_lateness(unit, rank, seconds, pace, k)

    def observe_lateness(self, unit: int, rank: int, seconds: float, pace: float, k: int) -> None:
        """Learn that an answer took at least so long."""
        about = self.stages, k  # each answer moves it by little, and a stage may have thousands
        if self._complete[0] != about:
            self._complete = about, self.complete(k)
        if complete := self._complete[1]:
            before = complete if unit < k else max(complete, self.usual.get(unit, 0.0))
            excess = min(seconds / (before * pace), self.patience) - 1
            late = self.lateness.setdefault(rank, Peak(self.patience - 1))
            late.update(max(0.0, excess), self.stages)
