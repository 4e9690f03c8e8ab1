"""Break the latency of queries down into phases (:mod:`.phases`), from the trace alone."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded
from mpicoded.study.report.phases import ORDER, PHASES, CriticalPath
from mpicoded.study.report.spans import Array, Floats, Ints, spans
from mpicoded.study.report.table import byte_text, milliseconds, new_table, number, percent
from mpicoded.trace import Action

BITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1, "bit/s"))


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

    queries: Ints
    latency: Floats
    seconds: Floats
    rank: Ints
    unit: Ints
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
    """Break the answered queries of a run down; ResultsError if there is none, or no trace."""
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


def render_breakdown(found: Breakdown) -> Group:
    """Return the tables; with up to three stages they fit into 80 columns."""
    parts = [_phases(found), _predictions(found), _traffic(found), _speeds(found)]
    shown = [line for part in parts if part is not None for line in (part, Text())]
    about = f"critical path of {len(found.queries):,} answered queries: median, share of all time"
    return Group(Text(about, style="dim"), Text(), *shown[:-1])


def _phases(found: Breakdown) -> Table:
    """Return one line a phase; their medians need not sum up to the median of the latency."""
    stages = found.seconds.shape[1]
    several = [f"stage {s}" for s in range(stages)] if stages > 1 else []
    table = new_table("phase", *several, "all" if several else "median", "share")
    for phase, words in PHASES.items():
        medians, share = found.median(phase), found.share(phase)
        if share:
            cells = [milliseconds(s) if s else "-" for s in (medians if several else medians[-1:])]
            style = "bold" if share >= 0.2 else ""
            table.add_row(words, *cells, percent(share), style=style)
    table.add_section()
    sums = [*_medians(found.stages)] if several else []
    total = float(np.median(found.latency))
    table.add_row("from encode to decoded" if several else "latency", *map(milliseconds, sums),
                  *([""] if several else [milliseconds(total), percent(1.0)]))  # fmt: skip
    if several:
        table.add_row("latency", *[""] * stages, milliseconds(total), percent(1.0))
    return table


def _medians(values: Floats) -> list[float]:
    return [float(m) for m in np.median(values, axis=0)]


def _predictions(found: Breakdown) -> Table | None:
    """Return predicted and measured seconds, where the file has predictions."""
    table = new_table("stage", "predicted", "measured", "measured / predicted")
    if found.predicted is not None:
        for stage, pair in enumerate(zip(found.predicted, _medians(found.stages), strict=True)):
            table.add_row(str(stage), *_pair(*pair))
    for words, seconds in found.bounds.items():
        table.add_row(words, *_pair(seconds, float(np.median(found.latency))))
    return table if table.row_count else None


def _pair(predicted: float, measured: float) -> tuple[str, str, str]:
    return milliseconds(predicted), milliseconds(measured), f"{measured / predicted:.2f}"


def _traffic(found: Breakdown) -> Table | None:
    names = ("out", "one message", "all of them", "back", "one message", "all of them")
    table = new_table("stage", *names)
    for stage, flow in enumerate(found.flows):
        out = (byte_text(flow.bytes_out), _bits(flow.rate_out), _bits(flow.all_rate_out))
        back = (byte_text(flow.bytes_back), _bits(flow.rate_back), _bits(flow.all_rate_back))
        table.add_row(str(stage), *out, *back)
    return table if found.paces else None


def _bits(rate: float) -> str:
    """Return bytes a second as links are sold: 42.6 Mbit/s."""
    if np.isnan(rate):
        return "-"
    scale, unit = next((s, u) for s, u in BITS if 8 * rate >= s or s == 1)
    return f"{number(8 * rate / scale)} {unit}"


def _speeds(found: Breakdown) -> Table | None:
    if not found.paces:
        return None
    share = {p.rank: float((found.rank == p.rank).sum()) for p in found.paces}
    total = sum(share.values()) or 1.0
    table = new_table("rank", "units", "compute", "GFLOP/s", "ended a stage")
    for pace in found.paces:
        rate = "-" if np.isnan(pace.flops) else number(1e-9 * pace.flops)
        ended = percent(share[pace.rank] / total)
        table.add_row(str(pace.rank), f"{pace.units:,}", milliseconds(pace.seconds), rate, ended)
    return table
