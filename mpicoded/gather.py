"""How long to wait for a stage's units. No MPI, no clock: the caller says what time it is.

One number spans the field's policies: a deadline of infinity waits for every data unit, 0 takes
the first decodable set of the n units (MDS codes; CoCoI), a time between is ParM's time-out
(Kosaian et al., SOSP 2019, section 3). Nobody says how many ranks will fail.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
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
    cold: float = 0.2  # the floor while nothing has been measured yet
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

    ``posted`` is when its units were sent. ``expected`` counts, for each unit, the ranks that still
    owe it.
    """

    def __init__(self, code: Erasures, posted: float, give_up: float) -> None:
        self.code = code
        self.posted = posted
        self.give_up = give_up
        self.arrived = np.zeros(code.n, dtype=np.bool_)
        self.expected = np.zeros(code.n, dtype=np.int64)
        self.decodable_after: float | None = None

    def arrive(self, unit: int, now: float) -> None:
        """Unit ``unit`` is here."""
        self.arrived[unit] = True
        if self.decodable_after is None and self.code.decodable(self.arrived):
            self.decodable_after = now - self.posted

    def verdict(self, deadline: Callable[[float], float], now: float) -> Verdict:
        """Say what to do at time ``now``; ``deadline`` is :meth:`Deadline.seconds`."""
        if self.code.complete(self.arrived):
            return Verdict.DONE
        hopeless = not (self.expected * ~self.arrived).any()
        if self.decodable_after is not None:
            waited = now - self.posted
            over = waited >= min(deadline(self.decodable_after), self.give_up)
            return Verdict.DONE if over or hopeless else Verdict.WAIT
        return Verdict.RESEND if hopeless or now - self.posted >= self.give_up else Verdict.WAIT
