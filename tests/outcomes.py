"""Numbers of an evaluation that its tests ask for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mpicoded.study.evaluation import Evaluation, Outcome


def intact(found: Evaluation) -> bool:
    """True if every systematic code leaves alone the bits and predictions of what arrived."""
    codes = [c for c in found.candidates if c.systematic]
    return all(c.same_bits and c.same_predictions for c in codes)


def drops(found: Evaluation, scheme: str, data: int) -> npt.NDArray[np.float64]:
    """The drop of every pattern with ``data`` data units lost, whatever parity is, (patterns,)."""
    return np.array([o.drop for o in _of(found, scheme, data)])


def recovery(found: Evaluation, scheme: str, data: int) -> float:
    """The mean recovery over those patterns."""
    return float(np.mean([o.recovery for o in _of(found, scheme, data)]))


def _of(found: Evaluation, scheme: str, data: int) -> list[Outcome]:
    return [o for o in found.outcomes if (o.scheme, o.data) == (scheme, data)]
