"""What an evaluation found, as plain numbers: how good codes are, and what they cost.

Words are those of the reference "Learned and approximate codes", section 2. An *output* is what is
asked for at once: the answer to a query where units are shards, one image's answer in a group of k
where units are images. Shares and accuracies are from 0 to 1, drops in points.

    A_a        available: accuracy of the unsplit model
    A_d        degraded: accuracy of the missing outputs, as they were filled in
    recovery   share of the missing outputs with the prediction of the unsplit model
    group      accuracy of all outputs of the query, missing or not (ApproxIFER's average)

Of a code that is not systematic every output is filled in, with nothing missing too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpicoded.codes import Arrived


@dataclass(frozen=True)
class Outcome:
    """One way to fill holes under one erasure pattern."""

    way: str
    arrived: Arrived  # (n,)
    data: int  # data units missing; of a code that is not systematic, any units
    parity: int  # parity units missing
    accuracy: float  # A_d
    drop: float  # in points, from the unsplit model's accuracy of the same outputs
    recovery: float
    group: float

    @property
    def lost(self) -> int:
        """Units missing."""
        return self.data + self.parity


@dataclass(frozen=True)
class Row:
    """One way under all patterns with so many data and so many parity units missing.

    Means are over the ``patterns`` that it can fill, out of ``possible`` ones. ``interval`` is half
    the width of the 95 % interval of the drop, paired: from the differences query by query.
    """

    way: str
    data: int
    parity: int
    patterns: int
    possible: int
    accuracy: float
    drop: float
    interval: float
    worst: float  # drop under the worst pattern
    recovery: float
    group: float


@dataclass(frozen=True)
class Cost:
    """For one query: numbers trained, FLOPs, seconds (quartiles)."""

    parameters: int
    flops: int
    seconds: tuple[float, float, float]


@dataclass(frozen=True)
class Candidate:
    """A code that was evaluated: what it is, whether it leaves alone what is here, what it costs.

    ``same_bits``: with every data unit here the answers are the uncoded split's, bit for bit.
    ``same_predictions``: and their predictions the unsplit model's. A code that is not systematic
    promises neither.
    """

    way: str
    code: str
    k: int
    r: int
    systematic: bool
    same_bits: bool
    same_predictions: bool
    encoder: Cost
    decoder: Cost
    unit_flops: int  # of the largest data unit
    coded_flops: int  # of the largest coded unit, as a worker runs it; 0 if there is none
    coded_parameters: int  # trained for the workers: parity models

    @property
    def dearness(self) -> float:
        """FLOPs of a coded unit over a data unit's; NaN where nothing can be said."""
        return self.coded_flops / self.unit_flops if self.unit_flops else np.nan


@dataclass(frozen=True)
class Overall:
    """A_o of one way if a share f is late: of the answers, or of the units, independently."""

    way: str
    f: float
    answers: float
    units: float


@dataclass(frozen=True)
class Evaluation:
    """All that was found with the same base model and the same queries."""

    queries: int
    images: int
    by_images: bool  # units of the first code
    available: float
    candidates: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]
    overall: tuple[Overall, ...]

    @property
    def same_bits(self) -> bool:
        """Whether every systematic code leaves alone what is here."""
        return all(c.same_bits for c in self.candidates if c.systematic)

    @property
    def same_predictions(self) -> bool:
        """Whether its predictions then are the unsplit model's."""
        return all(c.same_predictions for c in self.candidates if c.systematic)

    def drops(self, way: str, data: int, parity: int | None = None) -> npt.NDArray[np.float64]:
        """Drop of every pattern with ``data`` data units lost, whatever parity is, (patterns,)."""
        return np.array([o.drop for o in self._of(way, data, parity)])

    def recovery(self, way: str, data: int, parity: int | None = None) -> float:
        """Mean recovery over those patterns."""
        return float(np.mean([o.recovery for o in self._of(way, data, parity)]))

    def _of(self, way: str, data: int, parity: int | None) -> list[Outcome]:
        return [
            o
            for o in self.outcomes
            if (o.way, o.data) == (way, data) and parity in (None, o.parity)
        ]
