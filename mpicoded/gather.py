"""How long to wait for a stage's units. No MPI, no clock: the caller says what time it is.

One number spans the field's policies: a deadline of infinity waits for every data unit, 0 takes
the first decodable set of the n units (MDS codes; CoCoI), a time between is ParM's time-out
(Kosaian et al., SOSP 2019, section 3). Nobody says how many ranks will fail.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from statistics import median
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Erasures(Protocol):
    """What the gathering asks of a code."""

    @property
    def n(self) -> int:
        """Units in all."""

    @property
    def k(self) -> int:
        """Data units, the first of them."""

    def complete(self, arrived: npt.NDArray[np.bool_]) -> bool:
        """Whether nothing is left to gain."""

    def decodable(self, arrived: npt.NDArray[np.bool_]) -> bool:
        """Whether the data outputs can be had."""


class Verdict(Enum):
    """What to do with a stage now."""

    WAIT = "wait"
    DONE = "done"
    RESEND = "resend"


@dataclass
class Deadline:
    """Seconds after posting at which decoding may start.

    ``fixed`` is that number, or None: then it is ``patience`` times the usual time until the code
    was decodable. That time is the k-th arrival of n, so up to r stragglers do not move it.
    """

    fixed: float | None = None
    patience: float = 2.0
    floor: float = 0.002
    cold: float = 0.2  # the floor while too little has been measured
    history: deque[float] = field(default_factory=lambda: deque(maxlen=64))

    def observe(self, seconds: float) -> None:
        """Tell it how long after posting a stage became decodable."""
        self.history.append(seconds)

    def seconds(self, decodable_after: float) -> float:
        """Return the deadline of a stage that became decodable after so many seconds."""
        if self.fixed is not None:
            return self.fixed
        if len(self.history) < 8:
            return max(self.cold, self.patience * decodable_after)
        usual = median(self.history)
        return max(self.floor, self.patience * max(usual, decodable_after))


class Gather:
    """Who arrived in one stage of one query, and whether that will do.

    ``posted`` is when its units were sent last, ``rounds`` how often they were. For each unit,
    ``expected`` counts the ranks that still owe it and ``tried`` names all that were asked for it.
    Until ``due`` only an event can change the verdict, not time.
    """

    def __init__(self, code: Erasures, posted: float, give_up: float, deadline: Deadline) -> None:
        self.code = code
        self.posted = posted
        self.give_up = give_up
        self.deadline = deadline
        self.rounds = 1
        self.arrived = np.zeros(code.n, dtype=np.bool_)
        self.expected = np.zeros(code.n, dtype=np.int64)
        self.tried: list[set[int]] = [set() for _ in range(code.n)]
        self.decodable_after: float | None = None
        self.due = posted + give_up

    def arrive(self, unit: int, now: float) -> None:
        """Unit ``unit`` is here."""
        self.arrived[unit] = True
        if self.decodable_after is None and self.code.decodable(self.arrived):
            self.decodable_after = now - self.posted
            seconds = self.deadline.seconds(self.decodable_after)
            self.due = self.posted + min(seconds, self.give_up)

    def verdict(self, now: float) -> Verdict:
        """Say what to do at time ``now``: as soon as no more can come, waiting is over."""
        if self.code.complete(self.arrived):
            return Verdict.DONE
        may_come = self.arrived | (self.expected > 0)
        if self.decodable_after is not None:
            over = now >= self.due or np.array_equal(may_come, self.arrived)
            return Verdict.DONE if over else Verdict.WAIT
        over = now >= self.due or not self.code.decodable(may_come)
        return Verdict.RESEND if over else Verdict.WAIT

    def used(self) -> npt.NDArray[np.bool_]:
        """Return the units that the answer is made from: parity only where data is missing."""
        used = self.arrived.copy()
        if self.code.complete(used):
            used[self.code.k :] = False
        return used

    def again(self, now: float) -> list[int]:
        """Begin another round; return the units to send: what nobody owes, or all if it is late."""
        late = now >= self.due
        self.rounds += 1
        self.posted, self.due = now, now + self.give_up
        missing = np.flatnonzero(~self.arrived)
        return [int(unit) for unit in missing if late or not self.expected[unit]]
