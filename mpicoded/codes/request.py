"""What a code is built for: k, r, the stage it protects, its options and its trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mpicoded.network.graph import Chain
from mpicoded.plan import Stage


@dataclass(frozen=True)
class CodeRequest:
    """``weights`` are the tensors of a weights file and ``metadata`` what it says of itself; None: untrained.

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
