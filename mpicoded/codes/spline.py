"""Natural cubic smoothing splines as matrices: values elsewhere are sums of those at knots.

The spline g minimises (1 / m) sum_s (y_s - g(x_s))^2 + smooth * integral of g''(x)^2. Green and
Silverman, Nonparametric Regression and Generalized Linear Models, 1994, section 2.3: with the
banded Q (m, m-2) and R (m-2, m-2) of the knots' distances, second derivatives c at the inner knots
solve (R + m smooth Q^T Q) c = Q^T y, and g = y - m smooth Q c there.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def smoother(knots: Floats, at: Floats, smooth: float) -> Floats:
    """Return weights (at, m) so that ``weights @ y`` is the spline of y (m,) ``at`` these places.

    ``knots`` (m,) rise. One knot means a constant, two a straight line. Beyond the knots the spline
    goes on as a straight line. ``smooth`` 0 interpolates.
    """
    m = len(knots)
    if m == 1:
        return np.ones((len(at), 1))
    h = np.diff(knots)  # (m - 1,)
    value, curve = _fit(h, m * smooth)  # (m, m) both, rows are knots
    inside = np.clip(at, knots[0], knots[-1])
    i = np.clip(np.searchsorted(knots, inside) - 1, 0, m - 2)
    d, before, after = (v[:, None] for v in (h[i], inside - knots[i], knots[i + 1] - inside))
    weights = (before * value[i + 1] + after * value[i]) / d
    weights -= before * after / 6 * ((1 + before / d) * curve[i + 1] + (1 + after / d) * curve[i])
    rise = np.diff(value, axis=0) / h[:, None]
    first, last = rise[0] - h[0] / 6 * curve[1], rise[-1] + h[-1] / 6 * curve[-2]
    weights += np.outer(np.minimum(at - knots[0], 0), first)
    weights += np.outer(np.maximum(at - knots[-1], 0), last)
    return np.asarray(weights, np.float64)


def _fit(h: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Weights (m, m) of the spline's values and of its second derivatives at the knots."""
    m = len(h) + 1
    q, band = np.zeros((m, m - 2)), np.zeros((m - 2, m - 2))
    j = np.arange(m - 2)
    q[j, j], q[j + 1, j], q[j + 2, j] = 1 / h[:-1], -1 / h[:-1] - 1 / h[1:], 1 / h[1:]
    band[j, j] = (h[:-1] + h[1:]) / 3
    band[j[1:], j[:-1]] = band[j[:-1], j[1:]] = h[1:-1] / 6
    inner = np.linalg.solve(band + penalty * q.T @ q, q.T)  # (m - 2, m)
    return np.eye(m) - penalty * q @ inner, np.pad(inner, ((1, 1), (0, 0)))
