"""Nested regression: NeRCC (arXiv 2402.04377), the successor of Berrut's interpolation.

Smoothing splines (:mod:`mpicoded.codes.spline`) take the place of the two rational functions, each
as near to its values as its smoothing parameter allows. With as few workers as here there is no
noise to smooth away: 1e-6 is best or near it, 1e-4 costs 6 to 13 points (docs/codes.md).
"""

from typing import ClassVar

import numpy as np

from mpicoded.codes.interpolation import Angles, Floats, Interpolation
from mpicoded.codes.spline import smoother
from mpicoded.errors import PlanError

SMOOTH = 1e-6


class Nercc(Interpolation):
    """k inputs, all k answers approximate; with systematic nodes only those that are missing."""

    name = "nercc"
    defaults: ClassVar = {"nodes": "N", "encoder": SMOOTH, "decoder": SMOOTH}

    def __init__(
        self, k: int, r: int, nodes: str = "N", encoder: float = SMOOTH, decoder: float = SMOOTH
    ) -> None:
        self.smooth = encoder, decoder
        for name, smooth in zip(("encoder", "decoder"), self.smooth, strict=True):
            if not 0 <= smooth < np.inf:
                raise PlanError(
                    f"[code] args.{name} = {smooth} of the code {self.name!r}: a smoothing "
                    f"parameter is 0 (through every value) or more; {SMOOTH:g} is usual"
                )
        super().__init__(k, r, nodes)

    def encoding(self, at: Angles, nodes: Angles) -> Floats:
        """Return the weights (at, nodes) of the inputs."""
        return self._weights(at, nodes, self.smooth[0])

    def decoding(self, at: Angles, nodes: Angles) -> Floats:
        """Return the weights (at, nodes) of the outputs."""
        return self._weights(at, nodes, self.smooth[1])

    def _weights(self, at: Angles, nodes: Angles, smooth: float) -> Floats:
        knots = self.nodes.cosines(nodes[::-1])  # angles rise, cosines fall
        found = smoother(knots, self.nodes.cosines(at), smooth)
        return found[:, ::-1].copy()
