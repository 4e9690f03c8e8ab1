"""Generator matrices of exact codes: [I; C] with real numbers, chosen so that few digits are lost.

Every square submatrix of C (r, k) must be regular. How well, tells how many digits of float32 are
left: a lost unit is a sum of others with factors, each of which was off by a little. How much
larger the sum's error is, at the worst pattern, is the *amplification*. Maps behind a ReLU have a
mean in common, which positive factors add up k times; with signs that alternate it goes away. At
(n, k) = (10, 8) a Vandermonde matrix on 1 … n has about 1e10, what is chosen here 16.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations, islice
from math import comb

import numpy as np
import numpy.typing as npt

from mpicoded.errors import PlanError

Matrix = npt.NDArray[np.float64]
NOISE = 2e-6  # what a convolution of VGG-16 is off by in float32, relative to its largest number
BOUND = 1e-4  # relative error that an exact code may have
SHARED = 0.6  # of the square of a unit's numbers, common to all units: half-normal ones have 2/pi
MOST = 300_000  # patterns that are looked at; (n, k) = (50, 46) has 230 000 of four lost units
CHUNK = 1 << 14  # patterns at once
EFFORT, STEPS = 400_000, 1200  # patterns and matrices that the search looks at, at the most


@cache
def parity_matrix(k: int, r: int) -> Matrix:
    """Return C (r, k): row j is how parity unit j is made of the data units.

    It is a Vandermonde matrix with signs that alternate, improved number by number from a fixed
    seed. Float64; the same array for everybody, so do not write to it. Raises PlanError if even
    that would be off by more than ``BOUND`` after the worst loss.
    """
    if sum(comb(k, m) * comb(r, m) for m in range(1, min(k, r) + 1)) > MOST:
        raise PlanError(
            f"code mds with k = {k} and r = {r}: more than {MOST} patterns of losses to check "
            "digits for; lower r or k"
        )
    best = _searched(k, r) if min(k, r) > 1 else _alternating(k, r)
    error = NOISE * amplification(best)
    if error > BOUND:
        raise PlanError(
            f"code mds with k = {k} and r = {r}: the worst loss would leave answers with a "
            f"relative error of {error:.2g} in float32, more than {BOUND:.0g}: lower r or k, or "
            'use "replication"'
        )
    return best


def amplification(c: Matrix) -> float:
    """Return how much larger a lost unit's (random) error is than a data unit's, at the worst."""
    squares = SHARED * c.sum(1) ** 2 + (1 - SHARED) * (c**2).sum(1)  # of parity outputs, (r,)
    worst = 1.0
    for q, inverse in _inverses(c):
        data = ((inverse @ c[q][:, None]) ** 2).sum(-1) - 1  # 1: the lost unit itself
        parity = (inverse**2 @ squares[q][:, None, :, None])[..., 0]
        worst = max(worst, float((parity + data).max()))
    return float(np.sqrt(worst))


def condition(c: Matrix) -> float:
    """Return the worst condition number of k received rows of [I; C], over all patterns."""
    r, k = c.shape
    full, worst = np.vstack([np.eye(k), c]), 1.0
    for m in range(1, min(k, r) + 1):
        for lost in combinations(range(k), m):
            arrived = [i for i in range(k) if i not in lost]
            for used in combinations(range(k, k + r), m):
                worst = max(worst, float(np.linalg.cond(full[[*arrived, *used]])))
    return worst


def factors(c: Matrix, lost: tuple[int, ...], parities: tuple[int, ...]) -> Matrix:
    """Return how the lost units are made: (lost, k + r), of data units and ``parities`` that came.

    Of more parity units than are needed, those with the least amplification are taken: from
    C[Q, L] Y_L = Y_Q - C[Q, A] Y_A, Q parities, L lost, A data that arrived.
    """
    r, k = c.shape
    best: Matrix | None = None
    for chosen in combinations(parities, len(lost)):
        rows, result = c[list(chosen)], np.zeros((len(lost), k + r))
        inverse = np.linalg.inv(rows[:, lost])
        result[:, :k] = -inverse @ rows
        result[:, list(lost)] = 0
        result[:, [k + q for q in chosen]] = inverse
        if best is None or np.abs(result).sum(1).max() < np.abs(best).sum(1).max():
            best = result
    assert best is not None, "fewer parity units than lost ones"
    return best


def vandermonde(k: int, r: int) -> Matrix:
    """Return C[j, i] = ((i + 1)/k)^j: positive nodes, so that every square submatrix is regular."""
    nodes = (np.arange(k) + 1) / k
    return np.asarray(nodes ** np.arange(r)[:, None])


def _alternating(k: int, r: int) -> Matrix:
    return vandermonde(k, r) * (-1.0) ** np.arange(k)


def _searched(k: int, r: int) -> Matrix:
    """Change a matrix number by number, as long as that helps; try quite others too."""
    rng = np.random.default_rng(0)
    patterns = sum(comb(k, m) * comb(r, m) for m in range(1, min(k, r) + 1))
    steps = min(STEPS, max(2, EFFORT // patterns))
    best = _alternating(k, r)
    least = amplification(best)
    for step in range(steps):
        tried = best.copy() if step >= steps // 4 else rng.standard_normal((r, k))
        tried[rng.integers(r), rng.integers(k)] += rng.standard_normal() * rng.choice((0.03, 0.3))
        tried /= np.abs(tried).max(1, keepdims=True)
        if (found := amplification(tried)) < least:
            best, least = tried, found
    return best


def _inverses(c: Matrix) -> Iterator[tuple[npt.NDArray[np.int64], Matrix]]:
    """Yield (parity units Q, (sets, m); inverses of C[Q, L], or infinity), in parts."""
    r, k = c.shape
    for m in range(1, min(k, r) + 1):
        q, losses = np.array(list(combinations(range(r), m))), combinations(range(k), m)
        while part := list(islice(losses, CHUNK)):
            square = c[q][:, :, np.array(part)].swapaxes(1, 2)  # (sets, losses, m, m)
            try:
                yield q, np.linalg.inv(square)
            except np.linalg.LinAlgError:
                yield q, np.full(square.shape, np.inf)
