"""The contract of a code (k, r): k data units become n = k + r, any lost ones are filled in.

Units stack on axis 0 and share one shape; for shards that is the coded window (see
:mod:`mpicoded.plan`). A code is systematic: units 0 … k-1 are the data units, and one that arrived
is returned untouched, bit for bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.network.program import Program

Arrived = npt.NDArray[np.bool_]  # (n,)


class Code(ABC):
    """k data and r parity units; subclasses say how parity is made and holes are filled."""

    name: str

    def __init__(self, k: int, r: int) -> None:
        self.k = k
        self.r = r

    @property
    def n(self) -> int:
        """Units in all."""
        return self.k + self.r

    def __repr__(self) -> str:
        return f"{self.name} code (k = {self.k}, r = {self.r})"

    def encode(self, x: Tensor) -> Tensor:
        """Data units (k, …) -> all units (n, …)."""
        return torch.cat((x, self.parity(x))) if self.r else x

    def decode(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, …), anything where not arrived -> data outputs (k, …).

        Raises
        ------
        ValueError
            If the pattern is not decodable.
        """
        if not self.decodable(arrived):
            raise ValueError(f"{self!r} cannot decode from {int(arrived.sum())} units")
        if arrived[: self.k].all():
            return y[: self.k]
        here = torch.from_numpy(np.asarray(arrived)).view(-1, *[1] * (y.dim() - 1))
        y = torch.where(here, y, torch.zeros((), dtype=y.dtype))  # never read what did not come
        return torch.where(here[: self.k], y[: self.k], self.fill(y, arrived))

    def complete(self, arrived: Arrived) -> bool:
        """Whether nothing is left to gain: every data output can be had exactly."""
        return bool(arrived[: self.k].all())

    def decodable(self, arrived: Arrived) -> bool:
        """Whether the data outputs can be had from what arrived."""
        return int(arrived.sum()) >= self.k

    def used(self, arrived: Arrived) -> Arrived:
        """Return the units that decoding needs: parity only where data is missing."""
        used = arrived.copy()
        if arrived[: self.k].all():
            used[self.k :] = False
        return used

    def source(self, unit: int) -> int | None:
        """Return the data unit that ``unit`` repeats exactly; None for a coded parity unit."""
        return unit if unit < self.k else None

    def worker_model(self, unit: int, base: Program) -> Program:
        """Return what a worker runs on the coded parity unit ``unit``; the base model's stage."""
        return base

    @abstractmethod
    def parity(self, x: Tensor) -> Tensor:
        """Data units (k, …) -> parity units (r, …)."""

    @abstractmethod
    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, …), zero where not arrived -> data outputs (k, …) to fill holes with."""
