"""No redundancy: every data unit is needed."""

from torch import Tensor

from mpicoded.codes.code import Arrived, Code


class Uncoded(Code):
    """k data units and nothing else."""

    name = "uncoded"
    over_segments = True

    def __init__(self, k: int, r: int = 0) -> None:
        super().__init__(k, 0)

    def parity(self, x: Tensor) -> Tensor:
        """(k, …) -> (0, …)."""
        return x[:0]

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Return the outputs as they are: none is ever missing."""
        return y[: self.k]
