"""Gathering of one stage of one query: who arrived, and the verdict. No MPI, no clock."""

from __future__ import annotations

from enum import Enum
from math import inf
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mpicoded.scheduling.deadline import Deadline

OVERDUE, HICCUP = 1.5, 0.05  # times the usual time until the data is here, and seconds


class Erasures(Protocol):
    """A code as the gathering sees it."""

    @property
    def n(self) -> int:
        """Units in all."""

    @property
    def k(self) -> int:
        """Data units, the first of them."""

    def complete(self, arrived: npt.NDArray[np.bool_]) -> bool:
        """True if nothing is left to gain: every data output can be had exactly."""

    def decodable(self, arrived: npt.NDArray[np.bool_]) -> bool:
        """True if the data outputs can be had."""

    def used(self, arrived: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return the units that the data outputs are made from."""


class Coded(Erasures, Protocol):
    """A code as the leader sees it."""

    @property
    def systematic(self) -> bool:
        """True if the data units are not coded."""

    def exact(self, arrived: npt.NDArray[np.bool_]) -> bool:
        """Return True if every data output is the base model's own."""

    def copy_of(self, unit: int) -> int | None:
        """Return the data unit that ``unit`` repeats; None for a coded unit."""


class Verdict(Enum):
    """Verdicts on a stage."""

    WAIT = "wait"
    DONE = "done"
    RESEND = "resend"
    LOST = "lost"


class Gather:
    """Arrivals in one stage of one query, and the verdict on them.

    ``posted`` is when its units were sent last, ``sent`` how often each was (the most: ``rounds``).
    For each unit,
    ``expected`` counts the ranks that still owe it, ``tried`` names all that were asked for it and
    ``seconds`` says when it came. ``pace`` is how much slower than usual the stage goes. Until
    ``due`` only an event can change the verdict, not time; from ``overdue`` on it is worth asking
    for :meth:`overdue_units`.
    """

    def __init__(self, code: Erasures, posted: float, give_up: float, deadline: Deadline) -> None:
        self.code = code
        self.posted = posted
        self.give_up = give_up
        self.deadline = deadline
        self.sent = np.ones(code.n, dtype=np.int64)
        self.rounds = 1
        self.arrived = np.zeros(code.n, dtype=np.bool_)
        self.expected = np.zeros(code.n, dtype=np.int64)
        self.tried: list[set[int]] = [set() for _ in range(code.n)]
        self.seconds: dict[int, float] = {}
        self.pace = 1.0
        self.decodable_after: float | None = None
        self.patient = 0.0  # seconds after posting that would have been waited in full confidence
        self.complete = False  # when it was over
        self.due = posted + give_up
        usual = deadline.complete(code.k)
        self.overdue = inf if usual is None else posted + OVERDUE * usual + HICCUP

    @property
    def wanting(self) -> bool:
        """True if the stage still needs units."""
        return self.decodable_after is None

    def arrive(self, unit: int, now: float) -> None:
        """Note that a unit arrived."""
        self.arrived[unit] = True
        self.seconds[unit] = now - self.posted
        if self.decodable_after is None and self.code.decodable(self.arrived):
            self.decodable_after = now - self.posted
        elif self.decodable_after is None or len(self.seconds) > self.code.k:
            return
        self._decide(now)  # once; again with each unit up to the k-th if fewer are decodable

    def _decide(self, now: float) -> None:
        """Set the deadline by what came until ``now``."""
        self.pace = self.deadline.pace(self.seconds)
        k, r = self.code.k, self.code.n - self.code.k
        seconds, self.patient = self.deadline.seconds(now - self.posted, self.pace, k, r)
        self.due = self.posted + min(seconds, self.give_up)

    def verdict(self, now: float) -> Verdict:
        """Return the verdict at ``now``: as soon as no more can come, waiting is over."""
        if self.decodable_after is not None:
            if now >= self.due or self.code.complete(self.arrived):
                return Verdict.DONE
            return Verdict.WAIT if self.expected[~self.arrived].any() else Verdict.DONE
        over = now >= self.due or not self.code.decodable(self.arrived | (self.expected > 0))
        return Verdict.RESEND if over else Verdict.WAIT

    def at_last(self, now: float) -> Verdict:
        """Return the verdict at ``now`` when units cannot be sent once more."""
        return Verdict.LOST

    def observe(self) -> None:
        """Tell the deadline when the units came; a later round's time says nothing."""
        if self.rounds > 1:
            return
        self.deadline.stages += 1
        for unit in self.seconds:
            self.observe_one(unit, self.seconds[unit])
        if self._waited():
            self.deadline.waited(self.complete)

    def _waited(self) -> bool:
        """True if more was hoped for when the stage had become decodable."""
        after = self.decodable_after
        return after is not None and (after < max(self.seconds.values()) or not self.complete)

    def observe_late(self, unit: int, now: float, skipped: bool) -> None:
        """Tell the deadline of an answer that came when all was over."""
        seconds = now - self.posted
        self.observe_one(unit, seconds, skipped)
        if unit < self.code.k and not (self.complete or skipped) and seconds <= self.patient:
            self.deadline.waited(paid=True)

    def observe_one(self, unit: int, seconds: float, skipped: bool = False) -> None:
        """Tell the deadline of an answer, unless several ranks were asked for it."""
        if self.rounds == 1 and len(self.tried[unit]) == 1:
            (rank,) = self.tried[unit]
            learn = self.deadline.observe_lateness if skipped else self.deadline.observe
            learn(unit, rank, seconds, self.pace, self.code.k)

    def overdue_units(self, now: float) -> list[int]:
        """Return the data units that are overdue and that only one rank was asked for.

        A stage whose units all come late is only slow: at least half of the data must be here, and
        OVERDUE times what is usual for a stage of its pace have passed.
        """
        k, usual = self.code.k, self.deadline.complete(self.code.k)
        self.overdue = inf
        if not self.wanting or usual is None:
            return []
        missing = [int(u) for u in np.flatnonzero(~self.arrived[:k]) if len(self.tried[u]) == 1]
        if missing:
            self.overdue = now + usual / 8  # look again, when others may be idle
        pace = self.deadline.pace(self.seconds)
        late = 2 * len(self.seconds) >= k and now - self.posted >= OVERDUE * usual * pace + HICCUP
        return missing if late else []

    def unanswered(self) -> set[int]:
        """Return the ranks that were asked for a unit that is still missing."""
        missing = (self.tried[unit] for unit in np.flatnonzero(~self.arrived))
        return set[int]().union(*missing)

    def again(self, now: float) -> list[int]:
        """Begin another round; return the units to send."""
        units = self.unowed(now)
        self.sent[units] += 1
        self.rounds = int(self.sent.max())
        self.posted, self.due = now, now + self.give_up
        return units

    def unowed(self, now: float) -> list[int]:
        """Return the missing units that no rank has, or all of them when it is late."""
        owed = self.expected > 0 if now < self.due else np.zeros_like(self.arrived)
        return [int(unit) for unit in np.flatnonzero(~self.arrived & ~owed)]
