"""Render the table of a run: at its end, and again from the results file alone."""

import math
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mpicoded.study.report.summary import Score, Summary, summary

__all__ = ["Summary", "render", "summary"]
COUNTS, SIZES = ("sent", "arrived", "late", "extra"), ("bytes_to", "bytes_from")


def render(summary: Summary) -> Group:
    """Return the table; it fits into 80 columns and is the same wherever it is printed."""
    tables = (_answers, _accuracy, _notes, _times, _load, _ranks)
    parts = [table(summary) for table in tables]
    shown = [line for part in parts if part is not None for line in (part, Text())]
    return Group(Text(summary.about, style="dim"), Text(), *shown, _end(summary))


def _answers(summary: Summary) -> Table:
    table = new_table("answers", "queries", "share")
    counts = {"available": summary.available, "degraded": summary.degraded, "lost": summary.lost}
    for name, count in counts.items():
        style = "bold red" if name == "lost" and count else ""
        table.add_row(name, f"{count:,}", percent(count / max(summary.queries, 1)), style=style)
    for name, count in (("refused", summary.refused), ("pending", summary.pending)):
        if count:
            share = percent(count / summary.queries)
            table.add_row(name, f"{count:,}", share, style="yellow")
    return table


def _accuracy(summary: Summary) -> Table | None:
    """Return accuracies where there are labels, else the distance from the unsplit model."""
    if summary.all is None:
        return _nearness(summary) if summary.base else None
    columns = {"all images": summary.all}
    if summary.held_out:
        columns = {"held out": summary.held_out, **columns}
    table = new_table("accuracy" if summary.labels else "agreement", *columns)
    for name, cells in _accuracy_rows(summary, list(columns.values())):
        table.add_row(name, *cells)
    return table if table.row_count else None


def _accuracy_rows(summary: Summary, scores: list[Score]) -> Iterator[tuple[str, list[str]]]:
    if summary.labels:
        yield "A_a  available (own answers)", [_of(s.available, s.own) for s in scores]
        yield "A_d  degraded (reconstructed)", [_of(s.degraded, s.rebuilt) for s in scores]
        yield "A_o  overall", [_of(s.overall, s.images) for s in scores]
    if not math.isnan(scores[0].expected):
        yield "A_o  expected of what arrived", [percent(s.expected) for s in scores]
    if summary.labels and summary.base:
        yield "     unsplit model", [_of(s.unsplit, s.images) for s in scores]
    if summary.base:
        yield "recovery: reconstructed = unsplit", [_of(s.recovery, s.rebuilt) for s in scores]
        yield "all answers = unsplit", [_of(s.agreement, s.images) for s in scores]


def _nearness(summary: Summary) -> Table:
    table = new_table("largest difference from the unsplit model", "of its largest output")
    for name, value in zip(("available", "degraded"), summary.difference, strict=True):
        table.add_row(name, "-" if math.isnan(value) else f"{value:.1e}")
    return table


def _notes(summary: Summary) -> Text | None:
    """Say which way queries went, and why images have no class."""
    own, base = summary.not_finite
    notes = [*summary.turns]
    notes += [f"no accuracy: {summary.why_no_classes}"] if summary.why_no_classes else []
    if own or base:
        notes.append(
            f"not finite (NaN or infinite), so of no class and wrong: {own:,} answers of the run, "
            f"{base:,} of the unsplit model"
        )
    return Text("\n".join(notes), style="yellow") if notes else None


def _times(summary: Summary) -> Table:
    table, load = new_table("time", "p50", "p95", "p99"), summary.load
    name = "latency" if load is None else "sojourn, from the schedule on"
    table.add_row(name, *map(milliseconds, summary.latency))
    table.add_row("leader's own time a query", milliseconds(summary.own))
    if load is None:
        table.add_row("queries a second", number(summary.rate))
    return table


def _load(summary: Summary) -> Table | None:
    load = summary.load
    if load is None:
        return None
    table = new_table(escape(f"open loop: {load.schedule}"), "a second")
    table.add_row("offered", number(load.offered))
    table.add_row("goodput: answered", number(load.answered))
    if not math.isnan(load.right):
        table.add_row("         and right", number(load.right))
    table.add_row("leader busy", percent(load.busy[0]))
    return table


def _ranks(summary: Summary) -> Table | None:
    lines = summary.ranks
    if not lines:
        return None
    several = len({line.host for line in lines}) > 1
    busy = summary.load.busy if summary.load else ()
    table = new_table("rank", *COUNTS, "to", "from", "compute", *["busy"] * bool(busy))
    table.add_column("state", overflow="fold")
    for line in lines:
        name = f"{line.rank} {line.host}" if several else str(line.rank)
        counts = (f"{getattr(line, count):,}" for count in COUNTS)
        sizes = (byte_text(line.bytes_to), byte_text(line.bytes_from), milliseconds(line.compute))
        style = "" if line.state.startswith("alive") else "red"
        share = map(percent, busy[line.rank : line.rank + 1])
        table.add_row(name, *counts, *sizes, *share, line.state, style=style)
    sums = {name: sum(getattr(line, name) for line in lines) for name in (*COUNTS, *SIZES)}
    table.add_section()
    cells = (*(f"{sums[name]:,}" for name in COUNTS), *(byte_text(sums[name]) for name in SIZES))
    table.add_row("all", *cells)
    return table


def _end(summary: Summary) -> Text:
    """Name the file, relative to the working directory if it is below."""
    path, folder = Path(summary.file).absolute(), Path.cwd()
    name = path.relative_to(folder) if path.is_relative_to(folder) else path
    state = "" if summary.finished else "; not finished: --resume answers the rest"
    return Text(f"results: {name} ({byte_text(summary.size)}{state})")


def new_table(title: str, *columns: str) -> Table:
    """Return an empty table: the first column names, the others are numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(title, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def percent(share: float) -> str:
    """Return a share (0..1) in percent, - for NaN."""
    return "-" if math.isnan(share) else f"{100 * share:.2f} %"


def _of(share: float, count: int) -> str:
    return f"{percent(share)} of {count:,}"


def milliseconds(seconds: float) -> str:
    """Return seconds in ms with three digits, - for NaN."""
    return "-" if math.isnan(seconds) else f"{number(1e3 * seconds)} ms"


def number(value: float) -> str:
    """Return a number with three digits that count: 0.123, 1.23, 12.3, 123."""
    if math.isnan(value):
        return "-"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value) or 1)))}f}"


def byte_text(count: float) -> str:
    """Return a number of bytes with three digits: 999 B, 1.50 kB, - for NaN."""
    if math.isnan(count):
        return "-"
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{number(count)} {unit}"
        count /= 1000
    return f"{number(count)} GB"
