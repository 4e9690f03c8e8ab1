"""Render a breakdown: the tables of phases, traffic, and the speed of ranks."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mpicoded.study.report.breakdown import Breakdown, Floats
from mpicoded.study.report.phases import PHASES
from mpicoded.study.report.table import byte_text, milliseconds, new_table, number, percent

BITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"), (1, "bit/s"))


def render_breakdown(found: Breakdown) -> Group:
    """Return the tables; with up to three stages they fit into 80 columns."""
    parts = [_phases(found), _predictions(found), _flows(found), _paces(found)]
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


def _flows(found: Breakdown) -> Table | None:
    names = ("out", "one message", "all of them", "back", "one message", "all of them")
    table = new_table("stage", *names)
    for stage, flow in enumerate(found.flows):
        out = (byte_text(flow.bytes_out), _bits(flow.rate_out), _bits(flow.all_rate_out))
        back = (byte_text(flow.bytes_back), _bits(flow.rate_back), _bits(flow.all_rate_back))
        table.add_row(str(stage), *out, *back)
    return table if found.paces else None


def _bits(rate: float) -> str:
    """Return bytes a second as links are sold: 42.6 Mbit/s."""
    if math.isnan(rate):
        return "-"
    scale, unit = next((s, u) for s, u in BITS if 8 * rate >= s or s == 1)
    return f"{number(8 * rate / scale)} {unit}"


def _paces(found: Breakdown) -> Table | None:
    if not found.paces:
        return None
    share = {p.rank: float((found.rank == p.rank).sum()) for p in found.paces}
    total = sum(share.values()) or 1.0
    table = new_table("rank", "units", "compute", "GFLOP/s", "ended a stage")
    for pace in found.paces:
        rate = "-" if math.isnan(pace.flops) else number(1e-9 * pace.flops)
        ended = percent(share[pace.rank] / total)
        table.add_row(str(pace.rank), f"{pace.units:,}", milliseconds(pace.seconds), rate, ended)
    return table
