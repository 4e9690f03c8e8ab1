"""What a code is built for: k, r, the stage it protects, and its trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from mpicoded.plan import Stage


@dataclass(frozen=True)
class CodeRequest:
    """``weights`` are the tensors of a weights file and ``about`` its metadata; None: untrained."""

    k: int
    r: int
    stage: Stage
    weights: Mapping[str, Tensor] | None = None
    about: Mapping[str, str] = field(default_factory=dict)
