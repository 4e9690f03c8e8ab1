"""Answers to queries: the output, its mode, who arrived, and the times."""

from dataclasses import dataclass
from enum import IntEnum
from math import nan

import numpy as np
import numpy.typing as npt
import torch


class Mode(IntEnum):
    """Whose answer it is; PENDING only stands in a results file for what was not run yet."""

    PENDING = 0
    AVAILABLE = 1  # every data unit is the base model's own
    DEGRADED = 2  # at least one data unit was reconstructed
    LOST = 3  # there is no answer
    REFUSED = 4  # nobody began with it: too many queries of an open loop waited


@dataclass(frozen=True)
class Answer:
    """The answer to one query.

    ``output`` is (B, ...), None when lost or refused. ``arrived`` is bool (stages, units): the
    units that each stage's answer was made from, parity units only where a data unit was missing.
    ``seconds`` is float32 (stages, units), from posting to arrival, NaN where no answer had come
    when the query ended. All times are in seconds; ``submitted`` (in an open loop: the scheduled
    second) and ``answered`` count from the start of the run and ``latency`` is their difference.
    ``encode``, ``gather``, ``decode`` and ``head`` are summed over the stages, and ``own`` is the
    leader's own share: everything it did for this query except waiting. ``expected`` is the share
    of right answers that a calibration found for such a set of units, and ``agreement`` that of
    answers as the unsplit model's; NaN where nobody measured it.
    """

    query: int
    output: torch.Tensor | None
    mode: Mode
    arrived: npt.NDArray[np.bool_]
    seconds: npt.NDArray[np.float32]
    submitted: float
    answered: float
    encode: float
    gather: float
    decode: float
    head: float
    own: float
    attempts: int
    expected: float = nan
    agreement: float = nan

    @property
    def latency(self) -> float:
        """Seconds from submission to answer."""
        return self.answered - self.submitted
