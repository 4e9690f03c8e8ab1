"""Break the latency of queries down into phases, from the trace alone.

    found = breakdown(load(Path("run.h5")))
    found.median("out")      # s, of each stage and of their sum
    found.share("compute")   # of the latency of all queries

Phases and the critical unit are defined in :mod:`mpicoded.study.report.phases`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded
from mpicoded.study.report.phases import ORDER, CriticalPath
from mpicoded.study.report.spans import spans
from mpicoded.trace import Action

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Flow:
    """The traffic of one stage: bytes a query (medians) and rates in bytes a second.

    A rate is that of one message (median of all) and, with ``all_``, that of all units together,
    from the first byte to the last, on the leader's link.
    """

    bytes_out: float
    bytes_back: float
    rate_out: float
    rate_back: float
    all_rate_out: float
    all_rate_back: float


@dataclass(frozen=True)
class Pace:
    """The speed of a rank: units, the median seconds of one, FLOP/s over all of them."""

    rank: int
    units: int
    seconds: float
    flops: float


@dataclass(frozen=True)
class Breakdown:
    """Phases of all answered queries.

    ``seconds`` is (queries, stages, phases), with the phases in the order of ``PHASES``; a phase
    that a query did not have is 0, and a query's sum is its ``latency`` (queries,). ``rank`` and
    ``unit`` (queries, stages) are the critical ones, -1 where a stage had none. ``predicted``
    (stages,) are the plan's own seconds, None if the file has none; ``bounds`` are its further
    predictions for a query: its latency, that on one device, and the bound, in seconds.
    """

    queries: npt.NDArray[np.int64]
    latency: Floats
    seconds: Floats
    rank: npt.NDArray[np.int64]
    unit: npt.NDArray[np.int64]
    predicted: Floats | None
    bounds: dict[str, float]
    flows: tuple[Flow, ...]
    paces: tuple[Pace, ...]

    def median(self, phase: str) -> Floats:
        """Return the median seconds of a phase, (stages + 1,): of each stage and of their sum."""
        seconds = self.seconds[:, :, ORDER[phase]]
        return np.median(np.c_[seconds, seconds.sum(1)], axis=0)

    def share(self, phase: str) -> float:
        """Return the share (0..1) of a phase in the latency of all queries."""
        total = float(self.latency.sum())
        return float(self.seconds[:, :, ORDER[phase]].sum()) / total if total else 0.0

    @property
    def stages(self) -> Floats:
        """Seconds of every stage, (queries, stages), from encoding to decoded."""
        outside = [ORDER["admit"], ORDER["head"]]
        return np.asarray(np.delete(self.seconds, outside, axis=2).sum(2), np.float64)


def breakdown(loaded: Loaded) -> Breakdown:
    """Break the answered queries of a run down.

    Raises
    ------
    ResultsError
        If no query has been answered, or there is no trace of those that have.
    """
    queries = np.flatnonzero(np.isin(loaded.queries["mode"], (Mode.AVAILABLE, Mode.DEGRADED)))
    if not queries.size:
        raise ResultsError(f"{loaded.path}: no query has an answer, so there is no latency in it")
    if not np.isin(loaded.events["query"], queries).any():
        raise ResultsError(f"{loaded.path}: has no trace, so nothing tells where the time went")
    units = spans(loaded.events)
    path = CriticalPath(loaded, units)
    seconds = path.phases()[queries]
    return Breakdown(
        queries=queries,
        latency=loaded.queries["latency"][queries],
        seconds=seconds,
        rank=path.critical("rank")[queries],
        unit=path.critical("unit")[queries],
        predicted=_predicted(loaded),
        bounds=_bounds(loaded),
        flows=tuple(_flow(units[units["stage"] == s]) for s in range(loaded.layout.stages)),
        paces=tuple(_paces(loaded)),
    )


def _predicted(loaded: Loaded) -> Floats | None:
    seconds = np.asarray(loaded.plan.get("predicted", ()), np.float64)
    there = seconds.shape == (loaded.layout.stages,) and bool((seconds > 0).all())
    return seconds if there else None


def _bounds(loaded: Loaded) -> dict[str, float]:
    names = {
        "predicted_latency": "latency",
        "predicted_alone": "latency on one device",
        "bound": "bound (bytes / rate, FLOPs / rate)",
    }
    known = {words: float(loaded.plan.get(name, np.nan)) for name, words in names.items()}
    return {words: seconds for words, seconds in known.items() if seconds > 0}


def _flow(units: Array) -> Flow:
    """Return the traffic of one stage, from its spans."""
    out = units[~np.isnan(units["came"])]
    back = units[~np.isnan(units["arrived"]) & ~np.isnan(units["stopped"])]
    return Flow(
        bytes_out=_median(_per_query(units, "bytes_out")),
        bytes_back=_median(_per_query(back, "bytes_back")),
        rate_out=_median(_rates(out["bytes_out"], out["came"] - out["sent"])),
        rate_back=_median(_rates(back["bytes_back"], back["arrived"] - back["stopped"])),
        all_rate_out=_median(_together(out, "bytes_out", "posted", "came")),
        all_rate_back=_median(_together(back, "bytes_back", "stopped", "arrived")),
    )


def _per_query(units: Array, name: str) -> Array:
    queries, place = np.unique(units["query"], return_inverse=True)
    return np.bincount(place, units[name], len(queries))


def _together(units: Array, name: str, begin: str, end: str) -> Array:
    """Return bytes a second of every query: all its units, from the first byte to the last."""
    queries, place = np.unique(units["query"], return_inverse=True)
    first, last = np.full(len(queries), np.inf), np.full(len(queries), -np.inf)
    np.minimum.at(first, place, units[begin])
    np.maximum.at(last, place, units[end])
    return _rates(_per_query(units, name), last - first)


def _rates(count: Array, seconds: Array) -> Array:
    there = seconds > 0  # clocks of two hosts may differ by more than a short span takes
    return count[there] / seconds[there]


def _paces(loaded: Loaded) -> Iterator[Pace]:
    events = loaded.events[loaded.events["action"] == Action.COMPUTE]
    flops, took = loaded.plan.get("flops", np.zeros((0, 0))), events["stop"] - events["start"]
    work = flops[events["stage"], events["unit"]] if flops.any() else np.full(len(events), np.nan)
    for rank in np.unique(events["rank"]):
        its = events["rank"] == rank
        seconds = float(took[its].sum())
        rate = float(work[its].sum()) / seconds if seconds else np.nan
        yield Pace(int(rank), int(its.sum()), _median(took[its]), rate)


def _median(values: Array) -> float:
    return float(np.median(values)) if values.size else np.nan
