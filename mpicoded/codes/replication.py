"""Repetition: parity unit j is a copy of data unit j mod k. Exact; k = 1 is plain replication."""

import numpy as np
import torch
from torch import Tensor

from mpicoded.codes.code import Arrived, Code


class Replication(Code):
    """Tolerates any r // k losses, and more when they hit different units."""

    name = "replication"

    def copy_of(self, unit: int) -> int | None:
        """Return the data unit that ``unit`` repeats; every unit repeats one."""
        return unit % self.k

    def decodable(self, arrived: Arrived) -> bool:
        """True if some copy of every data unit arrived."""
        there = np.zeros(self.k, np.bool_)
        there[np.flatnonzero(arrived) % self.k] = True
        return bool(there.all())

    def complete(self, arrived: Arrived) -> bool:
        """True if all is decodable: a copy is as good as the data unit itself."""
        return self.decodable(arrived)

    def used(self, arrived: Arrived) -> Arrived:
        """Return the first copy of every data unit that arrived."""
        used = np.zeros_like(arrived)
        used[[unit for unit in self._first(arrived) if arrived[unit]]] = True
        return used

    def parity(self, x: Tensor) -> Tensor:
        """(k, …) -> (r, …)."""
        return x[torch.arange(self.r) % self.k]

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Take the first copy that arrived."""
        return y[self._first(arrived)]

    def _first(self, arrived: Arrived) -> list[int]:
        return [i + self.k * int(np.argmax(arrived[i :: self.k])) for i in range(self.k)]
