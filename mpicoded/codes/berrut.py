"""Berrut's rational interpolation: BACC (arXiv 2009.08327) and ApproxIFER (arXiv 2109.09868).

    r(x) = sum_s (-1)^s y_s / (x - x_s)  /  sum_s (-1)^s / (x - x_s)

The denominator has no real zero as long as signs alternate along the line (Berrut, 1988): the sign
of an answer is that of its rank among those that arrived. At a node the value is its own.
"""

from math import pi

import numpy as np

from mpicoded.codes.interpolation import Angles, Floats, Interpolation


class Berrut(Interpolation):
    """k inputs, all k answers approximate; with systematic nodes only those that are missing."""

    name = "berrut"

    def encoding(self, at: Angles, nodes: Angles) -> Floats:
        """Return the weights (at, nodes) of Berrut's interpolant.

        A difference of cosines is a product of sines, which loses no digits where nodes are close:
        cos a - cos b = 2 sin((a + b) / 2) sin((b - a) / 2).
        """
        total, apart = np.add.outer(at, nodes), np.subtract.outer(at, nodes)
        turn = pi / (2 * self.nodes.half)
        distance = -2 * np.sin(total * turn) * np.sin(apart * turn)  # (at, nodes)
        same = apart == 0
        weights = (-1.0) ** np.arange(len(nodes)) / np.where(same, 1.0, distance)
        weights = np.where(same.any(1, keepdims=True), same, weights)
        return np.asarray(weights / weights.sum(1, keepdims=True), np.float64)
