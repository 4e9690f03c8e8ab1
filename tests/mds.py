"""A code without tensors, for tests of decisions: any k of n units do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Mds:
    """k data and r parity units."""

    k: int
    r: int

    @property
    def n(self) -> int:
        return self.k + self.r

    def complete(self, arrived: npt.NDArray[np.bool_]) -> bool:
        return bool(arrived[: self.k].all())

    def decodable(self, arrived: npt.NDArray[np.bool_]) -> bool:
        return int(arrived.sum()) >= self.k

    def used(self, arrived: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        used = arrived.copy()
        if self.complete(arrived):
            used[self.k :] = False
        return used
