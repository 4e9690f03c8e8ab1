"""No redundancy: every data unit is needed."""

from __future__ import annotations

from torch import Tensor

from mpicoded.codes.code import Arrived, Code
from mpicoded.codes.request import CodeRequest


class Uncoded(Code):
    """k data units and nothing else."""

    name = "uncoded"

    def parity(self, x: Tensor) -> Tensor:
        """(k, …) -> (0, …)."""
        return x[:0]

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Nothing is ever missing."""
        return y[: self.k]


def build(request: CodeRequest) -> Code:
    """Return the code; ``r`` is 0 by the job's own check."""
    return Uncoded(request.k, 0)
