"""Count over the time of a run: queries in flight, bytes between leader and workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.results import Loaded
from mpicoded.study.report.spans import first_seen

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Event = dict[str, Any]


def counters(loaded: Loaded, units: Array) -> Iterator[Event]:
    """Yield the counter events (ph "C") of the leader's process."""
    begun, answered = first_seen(loaded), loaded.queries["answered"]
    there = ~np.isnan(begun) & ~np.isnan(answered)
    yield from _counter("queries in flight", "queries", begun[there], answered[there], 1)
    for name, begin, end, size in (
        ("bytes to workers", "sent", "came", "bytes_out"),
        ("bytes from workers", "stopped", "arrived", "bytes_back"),
    ):
        whole = units[~np.isnan(units[begin]) & ~np.isnan(units[end])]
        stop = np.maximum(whole[begin], whole[end])
        yield from _counter(name, "bytes", whole[begin], stop, whole[size])


def _counter(
    name: str, unit: str, begin: Floats, end: Floats, amount: Array | int
) -> Iterator[Event]:
    """Yield the sum of the amounts between ``begin`` and ``end`` (events,), at every change."""
    steps = np.broadcast_to(amount, begin.shape)
    times, change = np.r_[begin, end], np.r_[steps, -steps]
    order = np.argsort(times, kind="stable")
    micros = np.round(1e6 * times[order], 3)
    level = np.cumsum(change[order])
    last = np.r_[np.flatnonzero(np.diff(micros)), len(micros) - 1] if len(micros) else []
    for i in last:  # only the last of several changes at one time
        args, ts = {unit: int(level[i])}, float(micros[i])
        yield {"ph": "C", "name": name, "pid": 0, "tid": 0, "ts": ts, "args": args}
