"""Gathers that wait for an accuracy: over as soon as the units that arrived are worth enough.

    min_accuracy = 0.90      arrived   worth
                             1 . . . . .   0.48     wait
                             1 . . 1 . .   0.71     wait; at the deadline: the answer, if a poor one
                             1 . . 1 1 .   0.90     over, though k = 4

No published system has this; the nearest are time-outs (ParM, section 3) and the first decodable
set (CoCoI), which both ask how many units are here and not which.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mpicoded.scheduling.deadline import Deadline
from mpicoded.scheduling.gather import Erasures, Gather, Verdict

Arrived = npt.NDArray[np.bool_]  # (n,)


class ExpectedAccuracy(Protocol):
    """Expected accuracy of a code's answers."""

    def accuracy(self, arrived: Arrived) -> float:
        """Return the expected share of right answers, NaN where there is no answer."""


@dataclass(frozen=True)
class AccuracyTarget:
    """The accuracy that answers shall have."""

    worth: ExpectedAccuracy
    least: float

    def met(self, arrived: Arrived) -> bool:
        """True if an answer from these units is expected to be good enough."""
        return self.worth.accuracy(arrived) >= self.least  # never for NaN

    def possible(self, arrived: Arrived) -> bool:
        """True if these units make an answer at all."""
        return not isnan(self.worth.accuracy(arrived))


class AccuracyGather(Gather):
    """A gather that waits until its target is met; missing units are sent again until then.

    From ``by`` on any answer will do, the best that there is. That is the deadline where the job
    gives it in seconds, counted from the first posting. An adaptive one is known when the stage is
    decodable.
    """

    def __init__(
        self, code: Erasures, posted: float, give_up: float, deadline: Deadline, aim: AccuracyTarget
    ) -> None:
        super().__init__(code, posted, give_up, deadline)
        self.aim = aim
        seconds = inf if deadline.fixed is None else deadline.fixed
        self.by = posted + seconds if seconds <= give_up else inf

    @property
    def wanting(self) -> bool:
        """True until the target is met: decodable is not enough."""
        return not self._met(self.arrived)

    def arrive(self, unit: int, now: float) -> None:
        """Note that a unit arrived."""
        before = self.decodable_after
        super().arrive(unit, now)
        if before is None and self.decodable_after is not None:
            self.by = min(self.by, self.due)
        self._set_due()

    def verdict(self, now: float) -> Verdict:
        """Return the verdict at ``now``; units that no rank has are sent again if needed."""
        if self._met(self.arrived) or (now >= self.by and self.aim.possible(self.arrived)):
            return Verdict.DONE
        over = now >= self.due or not self._met(self.arrived | (self.expected > 0))
        return Verdict.RESEND if over else Verdict.WAIT

    def at_last(self, now: float) -> Verdict:
        """Return the verdict without another round: wait for tasks that are out, then take all."""
        if now < self.due and self.expected[~self.arrived].any():
            return Verdict.WAIT
        return Verdict.DONE if self.aim.possible(self.arrived) else Verdict.LOST

    def again(self, now: float) -> list[int]:
        """Begin another round; ``by`` stays."""
        units = super().again(now)
        self._set_due()
        return units

    def observe(self) -> None:
        """Tell the deadline when the units came, though it may not have been asked."""
        if self.decodable_after is None:
            self.pace = self.deadline.pace(self.seconds)
        super().observe()

    def _waited(self) -> bool:
        """True if the deadline decided how long."""
        return super()._waited() and (self.complete or not self._met(self.arrived))

    def _met(self, arrived: Arrived) -> bool:
        return self.code.complete(arrived) or self.aim.met(arrived)

    def _set_due(self) -> None:
        self.due = self.posted + self.give_up
        if self.aim.possible(self.arrived):
            self.due = min(self.due, self.by)
