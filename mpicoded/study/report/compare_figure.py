"""The distributions of several runs' latencies in one picture, each with its name beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mpicoded.errors import ResultsError
from mpicoded.study.report.compare import Run
from mpicoded.study.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    milliseconds_text,
    save,
    styled,
    three_digits,
)
from mpicoded.study.report.tail import has_long_tail, set_share_axis, share_at

LINES = [
    (colour, dash)
    for dash in ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
    for colour in (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, "black")
]
LOG = 6.0  # latencies that span more than this factor (p1 to p99) stand on a log axis
POINTS = ((0.5, "o"), (0.95, "s"), (0.99, "^"))


def draw_comparison(runs: Sequence[Run], path: Path) -> None:
    """Draw the latencies of all runs into ``path``.

    Raises
    ------
    ResultsError
        If a run has no answer, there are more runs than lines, or ``path`` cannot be written.
    """
    for run in runs:
        if not run.latency.size:
            raise ResultsError(f"{run.file}: there is no answer in it, so nothing to draw")
    if len(runs) > len(LINES):
        raise ResultsError(f"{len(runs)} runs are too many for one picture: at most {len(LINES)}")
    with styled():
        save(_figure(runs), path)


def _figure(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(WIDTH, max(4.2, 1.4 + 0.27 * len(runs))), layout="constrained")
    axes = figure.subplots()
    tail = any(has_long_tail(run.latency) for run in runs)
    answers = max(run.latency.size for run in runs)
    set_share_axis(axes.yaxis, tail, answers)
    for run, (colour, dash) in zip(runs, LINES, strict=False):
        _line(axes, run, colour, dash, tail)
    _time_axis(axes, runs)
    _names(axes, runs)
    axes.set_title("latency of a query", pad=20)
    words = "  ".join(f"{m} p{100 * s:g}" for (s, _), m in zip(POINTS, "●■▲", strict=True))
    axes.text(0, 1.02, f"share of answers within it;  {words}", transform=axes.transAxes,
              fontsize=8, color=INK)  # fmt: skip
    return figure


def _line(axes: Axes, run: Run, colour: str, dash: object, tail: bool) -> None:
    count = run.latency.size
    places = share_at(np.arange(count) / count, tail)
    axes.plot(1e3 * run.latency, places, color=colour, linestyle=dash, linewidth=1.7,
              drawstyle="steps-pre")  # fmt: skip
    for (share, marker), seconds in zip(POINTS, (run.p50, run.p95, run.p99), strict=True):
        place = float(share_at(np.array(share), tail))
        axes.plot(1e3 * seconds, place, marker, color=colour, markersize=4.5,
                  markeredgecolor="white", markeredgewidth=0.5, zorder=4)  # fmt: skip


def _time_axis(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_xlabel("latency [ms]")
    low = 1e3 * min(np.percentile(run.latency, 1) for run in runs)
    high = 1e3 * max(run.p99 for run in runs)
    if high > LOG * low > 0:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: milliseconds_text(x)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0)


def _names(axes: Axes, runs: Sequence[Run]) -> None:
    """Name the lines in a column beside them, from the fast at the top to the slow."""
    gap = min(0.12, 1.0 / len(runs))
    order = sorted(range(len(runs)), key=lambda i: runs[i].p95)
    for place, number in enumerate(order):
        run, (colour, dash) = runs[number], LINES[number]
        y = 0.96 - gap * place
        axes.plot([1.01, 1.045], [y, y], color=colour, linestyle=dash, linewidth=1.7,
                  transform=axes.transAxes, clip_on=False)  # fmt: skip
        axes.annotate(
            _label(run, runs[0], gap), (1.055, y), xycoords="axes fraction", fontsize=8,
            color=INK, va="center", annotation_clip=False,
        )  # fmt: skip


def _label(run: Run, first: Run, gap: float) -> str:
    """Return name and median; the two stand in two lines where there is room."""
    ratio = "" if run is first else f", {run.ratio:.2f}x"
    between = "\n" if gap > 0.08 else "   "
    return f"{run.name}{between}p50 {three_digits(1e3 * run.p50)} ms{ratio}"
