"""Generator matrices: what is chosen can be solved for every loss, and what digits that costs."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from mpicoded.codes.generator import (
    BOUND,
    NOISE,
    amplification,
    condition,
    factors,
    parity_matrix,
    vandermonde,
)
from mpicoded.errors import PlanError

SIZES = [(2, 1), (4, 2), (6, 2), (8, 2), (4, 3), (9, 1), (1, 3), (2, 4)]


@pytest.mark.parametrize(
    ("n", "k", "worst"),
    [(3, 2, 2.6), (6, 4, 21), (8, 6, 44), (10, 8, 73), (10, 9, 9.9), (10, 5, 2.3e3)],
)
def test_conditions_of_the_reference(n: int, k: int, worst: float) -> None:
    """Its table of the systematic code, printed with two digits."""
    assert condition(vandermonde(k, n - k)) == pytest.approx(worst, rel=0.03)


@pytest.mark.parametrize(("k", "r"), SIZES)
def test_chosen_matrices(k: int, r: int) -> None:
    """Every square submatrix is regular, and the reference's default is never better."""
    c = parity_matrix(k, r)
    assert c.shape == (r, k)
    for m in range(1, min(k, r) + 1):
        for q in combinations(range(r), m):
            for lost in combinations(range(k), m):
                assert np.linalg.matrix_rank(c[np.ix_(q, lost)]) == m
    assert 1 <= amplification(c) <= amplification(vandermonde(k, r))
    assert NOISE * amplification(c) <= BOUND


def test_choice_repeats() -> None:
    """The search is seeded: a parity filter or window is the same in every run."""
    again = parity_matrix.__wrapped__(4, 2)
    assert np.array_equal(again, parity_matrix(4, 2))


def test_ten_eight() -> None:
    """The row of VGG-16: amplification 60 by the default, 16 by what is chosen."""
    assert amplification(vandermonde(8, 2)) > 60
    assert amplification(parity_matrix(8, 2)) < 17


def test_amplification_is_what_happens() -> None:
    """Outputs with a mean in common and rounding noise: the error of a lost unit, simulated."""
    k, r, noise = 6, 2, 1e-6
    rng = np.random.default_rng(1)
    for c in (vandermonde(k, r), parity_matrix(k, r)):
        y = 0.6**0.5 + 0.4**0.5 * rng.standard_normal((k, 4000))
        full = np.vstack([y, c @ y])
        size = np.sqrt((full**2).mean(1, keepdims=True))
        noisy = full + noise * size * rng.standard_normal(full.shape)
        worst = 0.0
        for m in (1, 2):
            for lost in combinations(range(k), m):
                for q in combinations(range(r), m):
                    found = factors(c, lost, q) @ noisy
                    error = np.sqrt(((found - y[list(lost)]) ** 2).mean(1)).max()
                    worst = max(worst, float(error) / noise)
        assert worst == pytest.approx(amplification(c), rel=0.1)


@pytest.mark.parametrize(("k", "r"), [(16, 4), (10, 5)])
def test_too_many_digits_lost(k: int, r: int) -> None:
    """The message has both numbers and the way out."""
    with pytest.raises(PlanError, match=rf"k = {k} and r = {r}.*relative error of .*, more than 0"):
        parity_matrix(k, r)


def test_too_many_patterns() -> None:
    """Nobody waits for an hour."""
    with pytest.raises(PlanError, match="more than 300000 patterns"):
        parity_matrix(60, 6)


def test_the_best_parity_units_are_taken() -> None:
    """Of three that came for one lost unit, the one that loses least; the others have factor 0."""
    c = parity_matrix(4, 3)
    row = factors(c, (1,), (0, 1, 2))[0]
    assert (row[4:] != 0).sum() == 1 and row[1] == 0
    alone = [np.abs(factors(c, (1,), (q,))).sum() for q in range(3)]
    assert np.abs(row).sum() == pytest.approx(min(alone))
