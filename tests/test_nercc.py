"""Nested regression: the spline by another way, its limits, and the code that is made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mpicoded.codes import CODES, CodeRequest
from mpicoded.codes.erasures import erasures
from mpicoded.codes.interpolation import NODES
from mpicoded.codes.nercc import SMOOTH, Nercc
from mpicoded.codes.spline import Floats, smoother
from mpicoded.errors import PlanError
from test_berrut import accuracy, digits_plan
from test_codes import check_code

AT = np.linspace(-1.2, 1.2, 41)
SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 2), (5, 3), (8, 1)]


def knots(m: int) -> Floats:
    """Some places on [-1, 1]."""
    apart = np.random.default_rng(m).uniform(0.5, 1.5, m).cumsum()
    return 2 * (apart - apart[0]) / max(apart[-1] - apart[0], 1.0) - 1


def basis(x: Floats, at: Floats) -> tuple[Floats, Floats]:
    """Natural cubic splines with knots x, and their second derivatives: (at, m) both.

    Hastie, Tibshirani, Friedman, The Elements of Statistical Learning, equations 5.4 and 5.5.
    """
    above = np.maximum(at[:, None] - x, 0.0)  # (at, m)
    span = x[-1] - x[:-1]
    cubes = (above[:, :-1] ** 3 - above[:, -1:] ** 3) / span
    bends = 6 * (above[:, :-1] - above[:, -1:]) / span
    values = [np.ones((len(at), 1)), at[:, None], cubes[:, :-1] - cubes[:, -1:]]
    return np.hstack(values), np.hstack([np.zeros((len(at), 2)), bends[:, :-1] - bends[:, -1:]])


def reference(x: Floats, y: Floats, at: Floats, smooth: float) -> Floats:
    """Minimise the mean of squares plus ``smooth`` times the integral in that basis, as it is."""
    inner = (x[:-1] + x[1:]) / 2
    ends, middle = basis(x, x)[1], basis(x, inner)[1]
    h = np.diff(x)[:, None, None] / 6  # Simpson's rule is exact for a product of two lines
    outer = ends[:, :, None] * ends[:, None]
    bent = (h * (outer[:-1] + outer[1:] + 4 * middle[:, :, None] * middle[:, None])).sum(0)
    n = basis(x, x)[0]
    return basis(x, at)[0] @ np.linalg.solve(n.T @ n + len(x) * smooth * bent, n.T @ y)


@pytest.mark.parametrize("m", [3, 4, 6, 9])
@pytest.mark.parametrize("smooth", [0.0, 1e-6, 1e-3, 0.1, 10.0])
def test_the_spline_by_another_way(m: int, smooth: float) -> None:
    """Within the knots and, as a straight line, beyond them."""
    x, y = knots(m), np.random.default_rng(0).normal(size=m)
    assert np.allclose(smoother(x, AT, smooth) @ y, reference(x, y, AT, smooth), atol=1e-5)


@pytest.mark.parametrize("m", [3, 4, 9])
def test_without_smoothing_it_interpolates(m: int) -> None:
    assert np.allclose(smoother(knots(m), knots(m), 0.0), np.eye(m), atol=1e-9)


@pytest.mark.parametrize("m", [1, 2, 3, 8])
@pytest.mark.parametrize("smooth", [0.0, 1e-4, 1e6])
def test_lines_cost_nothing(m: int, smooth: float) -> None:
    """A constant, and from two knots on a straight line, bends nowhere."""
    x, found = knots(m), smoother(knots(m), AT, smooth)
    assert np.allclose(found.sum(1), 1)
    assert m == 1 or np.allclose(found @ (3 * x - 1), 3 * AT - 1)


def test_much_smoothing_is_the_line_of_least_squares() -> None:
    x, y = knots(8), np.random.default_rng(0).normal(size=8)
    assert np.allclose(smoother(x, AT, 1e9) @ y, np.polyval(np.polyfit(x, y, 1), AT), atol=1e-5)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize(("k", "r"), SIZES)
def test_equal_images_are_exact(k: int, r: int, nodes: str) -> None:
    code = Nercc(k, r, nodes)
    x = torch.full((k, 2, 3), 1.7)
    assert torch.allclose(code.encode(x), x[:1].expand(code.n, 2, 3), atol=1e-5)
    for arrived in erasures(code.n, code.n - 1):
        assert torch.allclose(code.decode(code.encode(x), arrived), x, atol=1e-4)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize(("k", "r"), SIZES)
def test_images_on_a_line_are_exact(k: int, r: int, nodes: str) -> None:
    """A linear network and inputs that change evenly from node to node: two answers tell all."""
    code = Nercc(k, r, nodes, encoder=1e-3, decoder=1e-2)
    x = torch.from_numpy(code.nodes.cosines(code.nodes.data)).float()[:, None] * 2 + 1
    y = 3 * code.encode(x)
    for arrived in erasures(code.n, code.n - 2):
        assert torch.allclose(code.decode(y, arrived), 3 * x, atol=1e-3)


@pytest.mark.parametrize("args", [{}, {"nodes": "N-1"}, {"nodes": "systematic", "decoder": 0}])
def test_contract_with_options(args: dict[str, Any]) -> None:
    code = CODES["nercc"](CodeRequest(3, 2, digits_plan("batch", 3, 2).stages[0], args=args))
    check_code(code, torch.randn(5, 2, 10))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"smooth": 1e-3}, "no such option"),
        ({"encoder": -1.0}, "args.encoder = -1.0 .* is 0 .* or more; 1e-06 is usual"),
        ({"decoder": float("nan")}, "args.decoder = nan"),
        ({"decoder": "much"}, "give a number"),
        ({"nodes": "n"}, "choose one of"),
    ],
)
def test_bad_options(args: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        CODES["nercc"](CodeRequest(2, 1, digits_plan("batch", 2, 1).stages[0], args=args))


def test_accuracy_on_the_digits() -> None:
    """About as good as Berrut's here; too much smoothing blurs what was put in."""
    lost, berrut = accuracy(Nercc(4, 1), 1), accuracy(CODES["berrut"](request(4, 1)), 1)
    assert lost > berrut - 3
    assert accuracy(Nercc(4, 1, encoder=0.01, decoder=0.01), 1) < lost - 10
    assert accuracy(Nercc(4, 1, "systematic"), 1) > 80
    assert SMOOTH == 1e-6


def request(k: int, r: int) -> CodeRequest:
    """For images."""
    return CodeRequest(k, r, digits_plan("batch", k, r).stages[0])
