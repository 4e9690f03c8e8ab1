"""Codes that interpolate: units are values of a function through the data, at other places.

Every data unit has a node on [-1, 1], and so has every worker. A function u runs through (or near)
the data inputs at their nodes; a worker is given u at its own. Its output is F(u) there, so that a
second function through the outputs that arrived, taken at the data's nodes, is near F(data).

    nodes = "N"            z_i = cos(i pi / N): q = N, as the released accuracy scripts have it
    nodes = "N-1"          q = N - 1: the Chebyshev points of the second kind, both ends included
    nodes = "systematic"   the data's own nodes, and parity units between them

    k = 2, r = 1           data            workers, "N"       "N-1"              "systematic"
    node = cos(angle)      45  135         0  60  120         0  90  180         45  135  90

Angles are kept as whole numbers, so that it is certain which nodes are the same. Nothing is
trained, every worker runs the base model, and any number of answers make some answer for all data.
"""

from abc import abstractmethod
from dataclasses import dataclass
from math import pi
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.codes.code import Arrived, Code, CodeRequest
from mpicoded.codes.options import Value, choice, needs_parity, read
from mpicoded.errors import PlanError

Floats = npt.NDArray[np.float64]
Angles = npt.NDArray[np.int64]
NODES = ("N", "N-1", "systematic")


@dataclass(frozen=True)
class Nodes:
    """Angles of the data (k,) and of the workers (n,); ``half`` is half a turn, pi."""

    data: Angles
    workers: Angles
    half: int

    @classmethod
    def of(cls, k: int, r: int, kind: str) -> Self:
        """Return the nodes of a code; ``kind`` is one of NODES.

        The data's are alpha_j = cos((2j + 1) pi / 2k), the Chebyshev points of the first kind; the
        workers' z_i = cos(i pi / q) (ApproxIFER, arXiv 2109.09868, section 3).
        """
        data = 2 * np.arange(k) + 1
        if kind == "systematic":
            # midway between neighbours of the data's, and at the ends if there are many
            low = 1 if r < k else 0
            between = 2 * np.round(np.linspace(low, k - low, r)).astype(np.int64)
            return cls(data, np.concatenate((data, between)), 2 * k)
        n = k + r
        q = n if kind == "N" else max(1, n - 1)
        return cls(data * q, 2 * k * np.arange(n), 2 * k * q)

    def cosines(self, angles: Angles) -> Floats:
        """Return the places of ``angles`` on [-1, 1], from right to left."""
        return np.asarray(np.cos(angles * (pi / self.half)), np.float64)


class Interpolation(Code):
    """Both ways are linear: weights make values at some nodes of values at others."""

    defaults: ClassVar[dict[str, Value]] = {"nodes": "N"}  # of [code] args

    def __init__(self, k: int, r: int, nodes: str = "N") -> None:
        super().__init__(k, r)
        choice(self.name, "nodes", nodes, NODES)
        if nodes == "systematic" and r > k + 1:
            raise PlanError(
                f"the {self!r} with systematic nodes has k + 1 = {k + 1} places for parity units: "
                f'lower r, or take nodes = "N"'
            )
        self.nodes = Nodes.of(k, r, nodes)
        self.systematic = nodes == "systematic"
        coded = self.nodes.workers[k:] if self.systematic else self.nodes.workers
        self._mixture = torch.from_numpy(self.encoding(coded, self.nodes.data)).float()

    def fillable(self, arrived: Arrived) -> bool:
        """True if one unit arrived: its answer is enough to guess all others."""
        return bool(arrived.any())

    def parity(self, x: Tensor) -> Tensor:
        """Data units (k, …) -> (n, …), or (r, …) if systematic."""
        return _apply(self._mixture, x)

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, …) -> data outputs (k, …)."""
        units = np.flatnonzero(arrived)
        units = units[np.argsort(self.nodes.workers[units], kind="stable")]
        weights = self.decoding(self.nodes.data, self.nodes.workers[units])  # (k, units)
        return _apply(torch.from_numpy(weights).float(), y[torch.from_numpy(units)])

    @abstractmethod
    def encoding(self, at: Angles, nodes: Angles) -> Floats:
        """Return the weights (at, nodes) of inputs ``at`` angles; ``nodes``, the data's, rise."""

    def decoding(self, at: Angles, nodes: Angles) -> Floats:
        """Return the weights of outputs, by the same formula unless a code has another."""
        return self.encoding(at, nodes)

    @classmethod
    def build(cls, request: CodeRequest) -> Self:
        """Return the code as ``request.args`` want it; PlanError if they are of no use."""
        args = read(cls.name, request, cls.defaults)
        needs_parity(cls.name, request)
        return cls(request.k, request.r, **args)


def _apply(weights: Tensor, x: Tensor) -> Tensor:
    """Weights (m, n), units (n, …) -> (m, …)."""
    return (weights @ x.flatten(1)).reshape(-1, *x.shape[1:])
