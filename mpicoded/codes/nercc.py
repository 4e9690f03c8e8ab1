"""Nested regression: NeRCC (arXiv 2402.04377), the successor of Berrut's interpolation.

Two layers of smoothing splines take the place of the two rational functions: the encoder's runs
near the data inputs, the decoder's near the outputs that arrived, each as near as its smoothing
parameter allows. See :mod:`mpicoded.codes.interpolation` for the nodes and
:mod:`mpicoded.codes.spline` for the spline.

The paper picks both parameters for each network. Of 0 and 1e-7 … 1e-2, with k = 8, r = 1 and one
unit lost, 1e-6 for both is within 0.2 points of the best on training images of MNIST (Base-MLP),
Fashion-MNIST (LeNet-5) and CIFAR-10 (VGG-9). From 1e-5 down all are alike; 1e-4 for both costs 6 to
13 points and 1e-2 some 50: with so few workers there is no noise to smooth away, only data. The
figures are those of ``python jobs/measure/berrut.py smoothing``.
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
