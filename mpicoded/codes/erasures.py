"""The erasure patterns of a code: which of its n units arrived."""

from itertools import combinations

import numpy as np
import numpy.typing as npt


def erasures(n: int, lost: int) -> npt.NDArray[np.bool_]:
    """Return every pattern with at most ``lost`` of ``n`` units lost, (patterns, n), fewest first.

    >>> erasures(3, 1).astype(int).tolist()
    [[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]]
    """
    patterns = [gone for m in range(lost + 1) for gone in combinations(range(n), m)]
    arrived = np.ones((len(patterns), n), bool)
    for row, gone in zip(arrived, patterns, strict=True):
        row[list(gone)] = False
    return arrived
