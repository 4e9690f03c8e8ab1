"""The contract of a code (k, r): k data units become n = k + r, any lost ones are filled in.

Units stack on axis 0 and share one shape; for shards that is the coded window (see
:mod:`mpicoded.plan`). A code is systematic: units 0 … k-1 are the data units, and one that arrived
is returned untouched, bit for bit. One that is not (:mod:`mpicoded.codes.interpolation`) says so:
each of its n units is coded, it decodes whatever arrived, and no answer is the base model's own.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.expected_accuracy import AccuracyTable
from mpicoded.network.graph import Chain, Head
from mpicoded.network.program import Program
from mpicoded.plan import Stage

Arrived = npt.NDArray[np.bool_]  # (n,)


@dataclass(frozen=True)
class CodeRequest:
    """Request for a code: k, r, the stage it protects, its options and its trained weights.

    ``weights`` are the tensors of a weights file (None: untrained) and ``metadata`` is the file's;
    ``args`` are the code's own options, as a job's [code] args has them; ``chain`` is the base
    model, for codes that look into the stage; ``seed`` is of an untrained code's first weights.
    """

    k: int
    r: int
    stage: Stage
    weights: Mapping[str, Tensor] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    args: Mapping[str, Any] = field(default_factory=dict)
    chain: Chain | None = None
    seed: int = 0


class Code(ABC):
    """k data and r parity units; subclasses make parity and fill holes.

    Without ``systematic`` there is no data unit among the n: all are made by :meth:`parity`, and
    all data outputs by :meth:`fill`. ``expected`` is the accuracy of its answers, if it was
    measured for this very plan.
    """

    name: str
    systematic: bool = True
    codes_filters: bool = False  # parity of a stage split by channels: :meth:`worker_model` has it
    output_factor: int = 1  # outputs of data units that a coded unit's output may be as large as
    over_segments: bool = False  # coded units run by themselves while data units exchange halos
    needs_float32: bool = False  # coded inputs lose all when they travel in less than float32
    expected: AccuracyTable | None = None

    def __init__(self, k: int, r: int) -> None:
        self.k, self.r, self.n = k, r, k + r

    @classmethod
    def build(cls, request: CodeRequest) -> Self:
        """Return the code for the request's stage."""
        return cls(request.k, request.r)

    def __repr__(self) -> str:
        return f"{self.name} code (k = {self.k}, r = {self.r})"

    def encode(self, x: Tensor) -> Tensor:
        """Data units (k, …) -> all units (n, …)."""
        if not self.systematic:
            return self.parity(x)
        return torch.cat((x, self.parity(x))) if self.r else x

    def decode(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Outputs (n, …), anything where not arrived -> (k, …); ValueError if not fillable."""
        if not self.fillable(arrived):
            raise ValueError(f"{self!r} cannot decode from {int(arrived.sum())} units")
        if self.systematic and arrived[: self.k].all():
            return y[: self.k]
        mask = torch.from_numpy(np.asarray(arrived)).view(-1, *[1] * (y.dim() - 1))
        y = torch.where(mask, y, torch.zeros((), dtype=y.dtype))  # never read what did not come
        filled = self.fill(y, arrived)
        return torch.where(mask[: self.k], y[: self.k], filled) if self.systematic else filled

    def complete(self, arrived: Arrived) -> bool:
        """True if no data output can become any better."""
        return bool(arrived[: self.k].all() if self.systematic else arrived.all())

    def exact(self, arrived: Arrived) -> bool:
        """True if every data output is the base model's own, or as good as that."""
        return self.systematic and self.complete(arrived)

    def decodable(self, arrived: Arrived) -> bool:
        """True if the data outputs can be computed from the units that arrived."""
        return int(arrived.sum()) >= self.k

    def fillable(self, arrived: Arrived) -> bool:
        """True if there is an answer, maybe a worse one; what is decodable is fillable too."""
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

    def copy_of(self, unit: int) -> int | None:
        """Return the data unit that ``unit`` repeats exactly; None for a coded unit."""
        return unit if self.systematic and unit < self.k else None

    def worker_model(self, unit: int, base: Program | Head) -> Program | Head:
        """Return the network of the coded unit ``unit``; the base model's stage."""
        return base

    def unit_flops(self, unit: int) -> int | None:
        """Return the FLOPs of a coded unit for an image; None: those of the base model's stage."""
        return None

    @abstractmethod
    def parity(self, x: Tensor) -> Tensor:
        """Data units (k, …) -> coded units: the parity units (r, …), or all n of them."""

    @abstractmethod
    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, …), zero where not arrived -> data outputs (k, …), for the holes."""
