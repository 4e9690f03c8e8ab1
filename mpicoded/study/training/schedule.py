"""How the learning rate goes over a training, as a share of the full rate.

share
  1   .--.____              cosine: a short rise, then half a cosine down to 0
    /         ---.__        step: a short rise, then 1, 0.1, 0.01
  0 ----------------- step  constant: 1, as the published learned codes and parity models
"""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.05  # share of the steps over which the rate rises to its full height
DROPS, FACTOR = (0.5, 0.75), 0.1  # where a stepped rate falls, and to what share of it

Schedule = Callable[[int, int], float]  # step, steps -> share


def cosine(step: int, steps: int) -> float:
    """Rise, then fall to 0 (Loshchilov and Hutter, arXiv 1608.03983, one period)."""
    return _rise(step, steps) * (1 + math.cos(math.pi * step / steps)) / 2


def stepped(step: int, steps: int) -> float:
    """Rise, then a tenth from half of the way on, and a hundredth from three quarters on."""
    return _rise(step, steps) * FACTOR ** sum(step >= share * steps for share in DROPS)


def constant(step: int, steps: int) -> float:
    """Always all of it."""
    return 1.0


def _rise(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (WARM_UP * steps))


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "step": stepped, "constant": constant}
