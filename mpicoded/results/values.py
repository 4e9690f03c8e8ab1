"""Which numbers can stand in a results file: checksums do not keep out what was made to mislead."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import numpy as np

from mpicoded.answer import Mode
from mpicoded.results.checks import Verdict
from mpicoded.results.layout import Layout
from mpicoded.trace import Action

EVER = 1e9  # seconds, 30 years
MANY = 1e18  # FLOPs and bytes


def limits(layout: Layout) -> dict[str, tuple[float, float]]:
    """Return the least and the largest value of a variable; NaN may stand beside them."""
    scores = layout.outputs[0] if layout.outputs else 1
    classes = (-1, max(scores - 1, 1))  # of one score alone: 0 or 1
    times = ("submitted", "answered", "latency", "encode", "gather", "decode", "head", "own")
    found: dict[str, tuple[float, float]] = {f"queries/{name}": (-EVER, EVER) for name in times}
    found |= {f"plan/{name}": (0, MANY) for name in ("flops", "bytes_in", "bytes_out")}
    return found | {
        "queries/seconds": (-EVER, EVER),
        "queries/arrived": (0, 1),
        "queries/attempts": (0, inf),
        "predictions/mode": (0, max(Mode)),
        "predictions/class": classes,
        "predictions/base_class": classes,
        "plan/rank": (-1, layout.ranks - 1),
        "cluster/began": (0, EVER),
        "trace/rank": (0, layout.ranks - 1),
        "trace/query": (-1, layout.queries - 1),
        "trace/stage": (-1, max(layout.stages - 1, 0)),
        "trace/unit": (-1, max(layout.units - 1, 0)),
        "trace/action": (1, max(Action)),
        "trace/start": (-EVER, EVER),
        "trace/stop": (-EVER, EVER),
        "trace/bytes": (0, MANY),
    }


def check_values(data: Mapping[str, Any], layout: Layout, found: Verdict) -> None:
    """Raise ValueError if a number that counts cannot be; ``data`` are arrays or data sets."""
    for path, (low, high) in limits(layout).items():
        if path not in data:
            continue
        values = data[path][: found.events] if path.startswith("trace/") else data[path][()]
        values = values[found.rows(path)]
        wrong = (values < low) | (values > high)
        if path in ("trace/start", "trace/stop"):
            wrong |= np.isnan(values)
        if wrong.any():
            raise ValueError(f"{path} {values[wrong][0]} is not in {low:g} to {high:g}")
    if not layout.starts:
        raise ValueError("no start of the run is in it")
