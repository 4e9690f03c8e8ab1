"""Shares that take equal time: T_i(w) = alpha_i w + beta_i, and nothing for w = 0.

    T* = (W + sum beta_i / alpha_i) / sum 1 / alpha_i        w_i = (T* - beta_i) / alpha_i

over those with w_i > 0: water that is filled into vessels of depth beta_i and width 1 / alpha_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heapreplace

import numpy as np

from mpicoded.cost.table import Floats

TINY = 1e-30  # s: what costs nothing


def closed_form(alphas: Sequence[float], betas: Sequence[float], size: int) -> tuple[Floats, float]:
    """Return the shares of ``size`` as real numbers, 0 of those that are left out, and T*."""
    alpha = np.maximum(np.asarray(alphas, float), TINY)
    beta = np.asarray(betas, float)
    order = np.argsort(beta, kind="stable")
    widths = np.cumsum(1 / alpha[order])
    levels = (size + np.cumsum(beta[order] / alpha[order])) / widths
    deeper = np.append(beta[order][1:], np.inf)  # where the next vessel begins to fill
    level = float(levels[np.argmax(levels <= deeper)])
    return np.maximum(0.0, (level - beta) / alpha), level


def fill(alphas: Sequence[float], betas: Sequence[float], size: int) -> list[int]:
    """Return whole shares of ``size`` whose largest time is the least that there is.

    The closed form bounds it from below, so that its shares, rounded down, are right to begin with;
    what is left goes to whoever is done with one more first.
    """
    alphas = np.maximum(np.asarray(alphas, float), TINY).tolist()
    shares = [int(share + 1e-9) for share in closed_form(alphas, betas, size)[0]]
    while sum(shares) > size:  # by rounding of floats
        shares[shares.index(max(shares))] -= 1
    heap = [
        (alpha * (share + 1) + beta, i)
        for i, (alpha, beta, share) in enumerate(zip(alphas, betas, shares, strict=True))
    ]
    heapify(heap)
    for _ in range(size - sum(shares)):
        i = heap[0][1]
        shares[i] += 1
        heapreplace(heap, (alphas[i] * (shares[i] + 1) + betas[i], i))
    return shares
