"""The axis of a distribution: plain shares, or for a long tail the nines, equally far apart.

share      0        0.9       0.99      0.999
place      0         1          2         3        = -log10(1 - share)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axis import Axis, XAxis

Array = npt.NDArray[Any]
ENOUGH = 100  # answers for a tail to mean anything
LONG = 2.5  # p99 / p50 from which on the tail is looked at


def has_long_tail(latency: Array) -> bool:
    """Whether the distribution of ``latency`` (answers,) is worth the axis of nines."""
    if latency.size < ENOUGH:
        return False
    p50, p99 = np.percentile(latency, (50, 99))
    return bool(p99 > LONG * p50)


def share_at(share: Array, tail: bool) -> Array:
    """Return the places on the axis of shares in [0, 1)."""
    return -np.log10(1 - share) if tail else share


def set_share_axis(axis: Axis, tail: bool, answers: int) -> None:
    """Give an axis its limits and ticks; with ``tail`` up to the nines that ``answers`` allow."""
    set_limits = axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim
    if not tail:
        set_limits(0, 1)
        axis.set_ticks([0, 0.5, 1], ["0%", "50%", "100%"])
        return
    most = float(np.log10(max(answers, 2)))
    set_limits(0, most * 1.02)
    shares = np.array([0.5, *(1 - 0.1**n for n in range(1, int(most) + 1))])
    axis.set_ticks(share_at(shares, tail).tolist(), [_percent(float(s)) for s in shares])


def _percent(share: float) -> str:
    return f"{100 * share:.10g}%"
