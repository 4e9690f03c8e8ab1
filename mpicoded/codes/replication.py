"""Repetition: parity unit j is a copy of data unit j mod k. Exact; k = 1 is plain replication."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mpicoded.codes.code import Arrived, Code
from mpicoded.codes.request import CodeRequest


class Replication(Code):
    """Tolerates any r // k losses, and more when they hit different units."""

    name = "replication"

    def copy_of(self, unit: int) -> int | None:
        """Every unit repeats a data unit."""
        return unit % self.k

    def decodable(self, arrived: Arrived) -> bool:
        """Whether some copy of every data unit is here."""
        return all(arrived[i :: self.k].any() for i in range(self.k))

    def complete(self, arrived: Arrived) -> bool:
        """Whether all is here: a copy is as good as the data unit itself."""
        return self.decodable(arrived)

    def used(self, arrived: Arrived) -> Arrived:
        """Return the first copy of every data unit that is here."""
        used = np.zeros_like(arrived)
        used[[unit for unit in self._first(arrived) if arrived[unit]]] = True
        return used

    def parity(self, x: Tensor) -> Tensor:
        """(k, …) -> (r, …)."""
        return torch.stack([x[j % self.k] for j in range(self.r)]) if self.r else x[:0]

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Take the first copy that is here."""
        return y[self._first(arrived)]

    def _first(self, arrived: Arrived) -> list[int]:
        return [i + self.k * int(np.argmax(arrived[i :: self.k])) for i in range(self.k)]


def build(request: CodeRequest) -> Code:
    """Return the code."""
    return Replication(request.k, request.r)
