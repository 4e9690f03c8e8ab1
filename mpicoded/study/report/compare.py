"""Compare runs: one line a run, and the distributions of their latencies in one picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Group
from rich.text import Text

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded
from mpicoded.study.report import style
from mpicoded.study.report.labels import labels, names
from mpicoded.study.report.spans import Floats
from mpicoded.study.report.summary import Summary, summary
from mpicoded.study.report.table import milliseconds, new_table, percent

LINES = [
    (colour, dash)
    for dash in ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
    for colour in style.COLOURS
]
LOG = 6.0  # latencies that span more than this factor (p1 to p99) stand on a log axis
NOT_SERVED = ("refused", "pending")
POINTS = ((0.5, "o"), (0.95, "s"), (0.99, "^"))


@dataclass(frozen=True)
class Run:
    """One run of a comparison: its summary, times in seconds, shares 0..1, NaN of nothing.

    ``latency`` (answers,) is sorted. ``accuracy`` is A_o of the held-out images if the file tells
    them apart, else of all; without labels it is NaN and ``agreement`` with the unsplit model is
    what there is. ``ratio`` is that of the median latency to the first run's.
    """

    name: str
    summary: Summary
    latency: Floats
    mean: float
    accuracy: float
    agreement: float
    ratio: float


def compare(runs: Sequence[Loaded], given: Sequence[str] = ()) -> list[Run]:
    """Return one line a run, named as ``given`` or after its scheme; ResultsError."""
    own = [str(labels(loaded)) for loaded in runs]
    stems = [loaded.path.stem for loaded in runs]
    shown = names(given, own, [f"{name} ({stem})" for name, stem in zip(own, stems, strict=True)])
    summaries = [summary(loaded) for loaded in runs]
    first = summaries[0].latency[0]
    return [_run(*each, first) for each in zip(runs, shown, summaries, strict=True)]


def _run(loaded: Loaded, name: str, its: Summary, first: float) -> Run:
    done = np.isin(loaded.queries["mode"], (Mode.AVAILABLE, Mode.DEGRADED))
    latency = np.sort(loaded.queries["latency"][done])
    score = its.held_out or its.all
    return Run(
        name=name,
        summary=its,
        latency=latency,
        mean=float(latency.mean()) if latency.size else np.nan,
        accuracy=score.overall if score else np.nan,
        agreement=score.agreement if score else np.nan,
        ratio=its.latency[0] / first,
    )


def render_comparison(runs: Sequence[Run]) -> Group:
    """Return the table, one line a run, and how many queries of each were not served."""
    quality = "agreement" if all(np.isnan(run.accuracy) for run in runs) else "accuracy"
    times = ("p50", "p95", "p99", "mean", "ratio")
    table = new_table("run", "queries", "degraded", "lost", *times, quality)
    for run in runs:
        its = run.summary
        served = its.queries - its.pending - its.refused
        counts = (f"{n:,}" for n in (served, its.degraded, its.lost))
        seconds = map(milliseconds, (*its.latency, run.mean))
        ratio = "-" if np.isnan(run.ratio) else f"{run.ratio:.3f}"
        share = percent(getattr(run, quality))
        table.add_row(run.name, *counts, *seconds, ratio, share, style="red" if its.lost else "")
    words = [(r.name, word, getattr(r.summary, word)) for r in runs for word in NOT_SERVED]
    notes = [f"{name}: {count:,} queries are {word}" for name, word, count in words if count]
    return Group(table, Text(), Text("ratio: p50 to that of the first run"), *map(Text, notes))


def draw_comparison(runs: Sequence[Run], path: Path) -> None:
    """Draw the latencies of all runs into ``path``; ResultsError if it cannot be drawn."""
    for run in runs:
        if not run.latency.size:
            raise ResultsError(f"{run.summary.file}: there is no answer in it, so nothing to draw")
    if len(runs) > len(LINES):
        raise ResultsError(f"{len(runs)} runs are too many for one picture: at most {len(LINES)}")
    style.save(path, max(4.2, 1.4 + 0.27 * len(runs)), lambda figure: _draw(figure, runs))


def _draw(figure: Figure, runs: Sequence[Run]) -> None:
    axes = figure.subplots()
    tail = any(style.has_long_tail(run.latency) for run in runs)
    style.set_share_axis(axes.yaxis, tail, max(run.latency.size for run in runs))
    for run, (colour, dash) in zip(runs, LINES, strict=False):
        _line(axes, run, _label(run, runs), colour, dash, tail)
    _time_axis(axes, runs)
    _names(axes, runs)
    words = "  ".join(f"{m} p{100 * s:g}" for (s, _), m in zip(POINTS, "●■▲", strict=True))
    style.title(axes, "latency of a query", f"share of answers within it;  {words}")


def _line(axes: Axes, run: Run, label: str, colour: str, dash: object, tail: bool) -> None:
    count = run.latency.size
    places = style.share_at(np.arange(count) / count, tail)
    axes.plot(1e3 * run.latency, places, color=colour, linestyle=dash, linewidth=1.7,
              drawstyle="steps-pre", label=label)  # fmt: skip
    for (share, marker), seconds in zip(POINTS, run.summary.latency, strict=True):
        place = float(style.share_at(np.array(share), tail))
        axes.plot(1e3 * seconds, place, marker, color=colour, markersize=4.5,
                  markeredgecolor="white", markeredgewidth=0.5, zorder=4)  # fmt: skip


def _time_axis(axes: Axes, runs: Sequence[Run]) -> None:
    axes.set_xlabel("latency [ms]")
    low = 1e3 * min(np.percentile(run.latency, 1) for run in runs)
    high = 1e3 * max(run.summary.latency[2] for run in runs)
    if high > LOG * low > 0:
        style.set_log_axis(axes.xaxis, style.milliseconds_text)
    else:
        axes.set_xlim(left=0)


def _names(axes: Axes, runs: Sequence[Run]) -> None:
    """Name the lines beside them, from the fast at the top to the slow."""
    order = sorted(range(len(runs)), key=lambda i: runs[i].summary.latency[1])
    handles, _ = axes.get_legend_handles_labels()
    axes.legend(handles=[handles[i] for i in order], loc="upper left", bbox_to_anchor=(1.0, 1.0),
                fontsize=8, handlelength=1.8)  # fmt: skip


def _label(run: Run, runs: Sequence[Run]) -> str:
    p50 = style.three_digits(1e3 * run.summary.latency[0])
    ratio = "" if run is runs[0] else f", {run.ratio:.2f}x"
    between = "\n" if len(runs) <= 8 else "   "  # two lines where there is room
    return f"{run.name}{between}p50 {p50} ms{ratio}"
