"""The contract of a code (k, r): k data units become n = k + r, any lost ones are filled in.

Units stack on axis 0 and share one shape; for shards that is the coded window (see
:mod:`mpicoded.plan`). A code is systematic: units 0 … k-1 are the data units, and one that arrived
is returned untouched, bit for bit. One that is not (:mod:`mpicoded.codes.blended`) says so: each of
its n units is coded, it decodes whatever arrived, and no answer is the base model's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import nan

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.expected_accuracy import AccuracyTable
from mpicoded.network.graph import Head
from mpicoded.network.program import Program

Arrived = npt.NDArray[np.bool_]  # (n,)


class Code(ABC):
    """k data and r parity units; subclasses say how parity is made and holes are filled.

    Without ``systematic`` there is no data unit among the n: all are made by :meth:`parity`, and
    all data outputs by :meth:`fill`. ``expected`` is the accuracy of its answers, if it was
    measured for this very plan.
    """

    name: str
    systematic: bool = True
    codes_filters: bool = False  # parity of a stage split by channels: :meth:`worker_model` has it
    spread: int = 1  # outputs of data units that a coded unit's output may be as large as
    unrounded: bool = False  # coded inputs lose all when they travel in less than float32
    expected: AccuracyTable | None = None

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
        if not self.systematic:
            return self.parity(x)
        return torch.cat((x, self.parity(x))) if self.r else x

    def decode(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, …), anything where not arrived -> data outputs (k, …).

        Raises
        ------
        ValueError
            If the pattern is not even fillable.
        """
        if not self.fillable(arrived):
            raise ValueError(f"{self!r} cannot decode from {int(arrived.sum())} units")
        if self.systematic and arrived[: self.k].all():
            return y[: self.k]
        here = torch.from_numpy(np.asarray(arrived)).view(-1, *[1] * (y.dim() - 1))
        y = torch.where(here, y, torch.zeros((), dtype=y.dtype))  # never read what did not come
        filled = self.fill(y, arrived)
        return torch.where(here[: self.k], y[: self.k], filled) if self.systematic else filled

    def complete(self, arrived: Arrived) -> bool:
        """Whether nothing is left to gain: no data output can be had any better."""
        return bool(arrived[: self.k].all() if self.systematic else arrived.all())

    def exact(self, arrived: Arrived) -> bool:
        """Whether every data output is the base model's own, or as good as that."""
        return self.systematic and self.complete(arrived)

    def decodable(self, arrived: Arrived) -> bool:
        """Whether the data outputs can be had from what arrived."""
        return int(arrived.sum()) >= self.k

    def fillable(self, arrived: Arrived) -> bool:
        """Whether there is an answer at all, if a worse one than the code is made for.

        Whatever is decodable is fillable too.
        """
        return self.decodable(arrived)

    def accuracy(self, arrived: Arrived) -> float:
        """Return the expected accuracy of an answer, NaN if there is none or it is not known."""
        if self.expected is None or not self.fillable(arrived):
            return nan
        return self.expected.accuracy(arrived)

    def used(self, arrived: Arrived) -> Arrived:
        """Return the units that decoding needs: parity only where data is missing."""
        used = arrived.copy()
        if self.systematic and arrived[: self.k].all():
            used[self.k :] = False
        return used

    def source(self, unit: int) -> int | None:
        """Return the data unit that ``unit`` repeats exactly; None for a coded unit."""
        return unit if self.systematic and unit < self.k else None

    def worker_model(self, unit: int, base: Program | Head) -> Program | Head:
        """Return what a worker runs on the coded unit ``unit``; the base model's stage."""
        return base

    def unit_flops(self, unit: int) -> int | None:
        """FLOPs of the coded unit ``unit`` for an image; None: those of the base model's stage."""
        return None

    @abstractmethod
    def parity(self, x: Tensor) -> Tensor:
        """Data units (k, …) -> coded units: the parity units (r, …), or all n of them."""

    @abstractmethod
    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, …), zero where not arrived -> data outputs (k, …), for the holes."""
