"""Draw a run: each answer's latency, the computation of every rank, and its answers.

        time -->                    share
    +---------------------------+----------+
    | latency of every query    | its CDF  |   same seconds up
    +---------------------------+----------+
    | rank x time: computation  | answers  |   same ranks up
    +---------------------------+----------+

Injected faults are shaded on the row of their rank. The distribution shows more and more of its
tail where that is long: half, 90 %, 99 %, 99.9 % stand equally far apart.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded
from mpicoded.study.report import style
from mpicoded.study.report.fault_intervals import fault_intervals, last_time, next_end
from mpicoded.study.report.spans import Events, keys
from mpicoded.study.report.style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED
from mpicoded.study.report.summary import Summary, summary
from mpicoded.trace import Action

MODES = {  # colour, marker, size
    Mode.AVAILABLE: (BLUE, "o", 9),
    Mode.DEGRADED: (ORANGE, "^", 16),
    Mode.LOST: ("black", "x", 30),
}
OWN = (Action.ENCODE, Action.DECODE, Action.HEAD)  # what the leader itself computes
MARKS = {  # colour, marker, word
    Action.SUSPECT: (RED, "v", "suspect"),
    Action.RETURN: (GREEN, "^", "back"),
    Action.FAIL: ("black", "X", "failed"),
}
MOST_LABELS = 6  # more marks than these are left without words


def draw(loaded: Loaded, path: Path) -> None:
    """Draw a run into ``path`` (.png, .svg, .pdf); ResultsError if it cannot be drawn."""
    its = summary(loaded)
    if its.available + its.degraded + its.lost == 0:
        raise ResultsError(f"{loaded.path}: there is no answer in it yet, so nothing to draw")
    heights = (2.6, 0.6 + 0.24 * (len(its.ranks) + 1))
    style.save(path, sum(heights) + 1.5, lambda figure: _draw(figure, heights, loaded, its))


def _draw(figure: Figure, heights: tuple[float, float], loaded: Loaded, its: Summary) -> None:
    axes = figure.subplots(2, 2, sharey="row", width_ratios=[3.4, 1], height_ratios=heights)
    (top, cdf), (middle, counts) = axes
    middle.sharex(top)
    _latency(top, loaded)
    _distribution(cdf, loaded, its)
    _work(middle, loaded, its)
    _answers(counts, its)
    _marks(top, middle, loaded)
    total = its.available + its.degraded + its.lost
    shares = f"{its.available:,} available, {its.degraded:,} degraded, {its.lost:,} lost"
    shares += f", {its.refused:,} refused" * bool(its.refused)
    words = f"{total:,} of {its.queries:,} queries answered: {shares}   ({its.about})"
    style.headline(figure, words)


def _latency(axes: Axes, loaded: Loaded) -> None:
    """Draw one point a query, at the time of its submission."""
    queries = loaded.queries
    for mode, (colour, marker, size) in MODES.items():
        chosen = queries["mode"] == mode
        if chosen.any():
            lost = mode == Mode.LOST
            axes.scatter(
                queries["submitted"][chosen], 1e3 * queries["latency"][chosen], s=size, c=colour,
                marker=marker, linewidths=1.2 if lost else 0, alpha=1 if lost else 0.75,
                label=f"{mode.name.lower()} ({chosen.sum():,})", rasterized=True,
            )  # fmt: skip
    latency = 1e3 * queries["latency"][np.isin(queries["mode"], list(MODES))]
    if latency.max() > 8 * np.median(latency) > 0:
        style.set_log_axis(axes.yaxis, style.milliseconds_text)
    else:
        axes.set_ylim(bottom=0)
    axes.set_title("latency of every query", pad=26)
    axes.set_ylabel("latency [ms]")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1.0, 1.08), ncols=3, handletextpad=0.1,
        columnspacing=1.0, borderaxespad=0, markerscale=1.6,
    )  # fmt: skip


def _distribution(axes: Axes, loaded: Loaded, its: Summary) -> None:
    done = np.isin(loaded.queries["mode"], (Mode.AVAILABLE, Mode.DEGRADED))
    latency = np.sort(1e3 * loaded.queries["latency"][done])
    axes.set_title("its distribution", pad=26)
    axes.set_xlabel("share of answers")
    tail = style.has_long_tail(latency)
    style.set_share_axis(axes.xaxis, tail, latency.size)
    axes.tick_params(labelbottom=True)
    if not latency.size:
        return
    places = style.share_at(np.arange(latency.size) / latency.size, tail)
    axes.plot(places, latency, color=BLUE, linewidth=1.8, drawstyle="steps-post")
    axes.set_xlim(left=0)
    words = []
    for share, seconds in zip((50, 95, 99), its.latency, strict=True):
        x, y = float(style.share_at(np.array(share / 100), tail)), 1e3 * seconds
        axes.plot([0, x], [y, y], color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
        axes.plot(x, y, "o", color=BLUE, markersize=4)
        words.append(f"p{share} {style.three_digits(y)}")
    axes.text(0, 1.02, "  ".join(words) + " ms", transform=axes.transAxes, fontsize=8)


def _work(axes: Axes, loaded: Loaded, its: Summary) -> None:
    """Draw the computation of every rank as bars; those whose answer came late stand out."""
    compute = loaded.events[loaded.events["action"] == Action.COMPUTE]
    late = np.isin(keys(compute), keys(loaded.events[loaded.events["action"] == Action.LATE]))
    _bars(axes, loaded.events[np.isin(loaded.events["action"], OWN)], PURPLE, "leader")
    _bars(axes, compute[~late], BLUE, "in time")
    _bars(axes, compute[late], RED, "late")
    last = last_time(loaded)
    _faults(axes, loaded, last)
    _dead(axes, loaded)
    axes.set_xlim(-0.01 * last, 1.01 * last)
    axes.set_ylim(len(its.ranks) + 0.6, -0.6)
    axes.set_yticks(range(len(its.ranks) + 1))
    axes.grid(visible=False, axis="y")
    axes.set_title("computation", pad=8)
    axes.set_ylabel("rank")
    axes.set_xlabel("time since the run began [s]")


def _bars(axes: Axes, events: Events, colour: str, label: str) -> None:
    if not len(events):
        return
    ends = [[(e["start"], e["rank"]), (e["stop"], e["rank"])] for e in events]
    lines = LineCollection(ends, colors=colour, linewidths=8, capstyle="butt", label=label)
    lines.set_rasterized(True)
    lines.set_snap(False)  # many are thinner than a pixel
    axes.add_collection(lines)


def _faults(axes: Axes, loaded: Loaded, last: float) -> None:
    """Shade the row of a rank while an injected fault was in force; name each once a rank."""
    named = set()
    for fault in fault_intervals(loaded):
        if fault.start == fault.stop:
            ends = (fault.rank - 0.48, fault.rank + 0.48)
            axes.plot([fault.start] * 2, ends, color=style.SHADE_INK, linewidth=0.8, zorder=1.5)
        else:
            axes.barh(fault.rank, fault.stop - fault.start, left=fault.start, height=0.96,
                      color=style.SHADE, linewidth=0, zorder=0.8)  # fmt: skip
        if (fault.rank, fault.action) not in named:
            named.add((fault.rank, fault.action))
            late = fault.start > 0.9 * last
            axes.text(fault.start, fault.rank - 0.5, fault.word, fontsize=7, color=style.SHADE_INK,
                      ha="right" if late else "left", va="center", zorder=6,
                      bbox=style.HALO)  # fmt: skip


def _dead(axes: Axes, loaded: Loaded) -> None:
    """Hatch the row of a rank from its death to the end, or to the next start of the job."""
    label = "gone"
    for event in loaded.events[loaded.events["action"] == Action.FAIL]:
        end = next_end(loaded, float(event["stop"]))
        axes.barh(
            event["rank"], end - event["start"], left=event["start"], height=0.62,
            facecolor="#F2F2F2", edgecolor="#B0B0B0", hatch="////", linewidth=0, label=label,
        )  # fmt: skip
        label = "_" + label  # one entry in the legend


def _answers(axes: Axes, its: Summary) -> None:
    """Draw how many answers of a rank came in time, how many late, how many extra."""
    if not its.ranks:  # one device
        axes.set_visible(False)
        return
    ranks = [line.rank for line in its.ranks]
    left = np.zeros(len(ranks))
    for name, colour in (("arrived", BLUE), ("extra", style.PALE), ("late", RED)):
        counts = np.array([getattr(line, name) for line in its.ranks])
        axes.barh(ranks, counts, left=left, height=0.62, color=colour)
        left += counts
    axes.grid(visible=False, axis="y")
    axes.set_title("answers", pad=8)
    axes.set_xlabel("units: in time, extra, late")


def _marks(top: Axes, middle: Axes, loaded: Loaded) -> None:
    """Mark when a rank was suspected, came back or failed; in words while there is room."""
    events = loaded.events[np.isin(loaded.events["action"], list(MARKS))]
    many, labelled = len(events) > MOST_LABELS, set()
    for event in events:
        colour, marker, word = MARKS[Action(event["action"])]
        time, rank = float(event["stop"]), int(event["rank"])
        label = word if many and word not in labelled else None
        labelled.add(word)
        middle.plot(
            time, rank, marker, color=colour, markeredgecolor="white", markersize=8, label=label
        )
        top.axvline(time, color=colour, linewidth=0.9, linestyle=(0, (1, 2)))
        top.plot(
            time, 1.0, marker, transform=top.get_xaxis_transform(), color=colour,
            markeredgecolor="white", markersize=7, clip_on=False, zorder=5,
        )  # fmt: skip
    if not many:
        _words(top, events)
    if middle.get_legend_handles_labels()[1]:  # else there is nothing on it
        middle.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.01), ncols=6, handlelength=1.2,
            columnspacing=1.2, borderaxespad=0,
        )  # fmt: skip


def _words(axes: Axes, events: Events) -> None:
    """Name the rank and its change over its mark, shifted where two are near."""
    left, right = axes.get_xlim()
    free = -np.inf
    for event in np.sort(events, order="stop"):
        colour, _, word = MARKS[Action(event["action"])]
        at = max(float(event["stop"]), free)
        text = f"rank {event['rank']} {word}"
        free = at + (right - left) * 0.0105 * len(text)
        axes.annotate(
            text, (at, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(0, 5),
            textcoords="offset points", fontsize=8, color=colour, ha="left", va="bottom",
            annotation_clip=False,
        )  # fmt: skip
