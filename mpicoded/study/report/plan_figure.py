"""Draw a plan, rank x stage: each unit's part of the map, its halo, its seconds; and all of them.

    stage 1     stage 2          in each cell: the map that the stage reads,
1   [##++..]    [##+.]           ##  what is the unit's own
2   [.+##+.]    [.+##]           ++  its halo
time  |send|compute|receive| …   one line for the plan, one for one device
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mpicoded.geometry import Box
from mpicoded.planners.auto import Candidate
from mpicoded.stage import Stage
from mpicoded.study.report import style

PARTS = (("send", style.BLUE), ("compute", style.GREEN), ("receive", style.ORANGE))
LEADER = style.PURPLE
SIDE = 0.84  # of a cell
OWN, HALO, EXCHANGED, MAP = style.BLUE, style.PALE, style.ORANGE, "#EFEFEF"
KEY = "dark: own part of the map; light: halo from rank 0; orange: halo from other workers"
MOST = 16  # stages with their names, ranks with their seconds


def draw(its: Candidate, path: Path) -> None:
    """Draw one plan into ``path`` (.png, .svg, .pdf); ResultsError if it cannot be written."""
    ranks = _ranks(its)
    heights = (0.5 + 0.5 * min(len(ranks), 24), 1.1)
    style.save(path, sum(heights) + 1.2, lambda figure: _draw(figure, heights, its))


def draw_all(plans: Sequence[Candidate], path: Path) -> None:
    """Draw the plans of several planners side by side, with what they are predicted to take."""
    lines = -(-len(plans) // 3)
    ranks = max(len(_ranks(each)) for each in plans)
    height = 0.75 + 0.2 * min(max(ranks, 4), 32)

    def panels(figure: Figure) -> None:
        grid = figure.subplots(lines, 3, squeeze=False).flat
        for axes, each in zip(grid, plans, strict=False):
            _maps(axes, each, words=False)
            took = f"{1e3 * each.prediction.latency:,.0f} ms, x{each.prediction.speedup:.2f}"
            axes.set_title(f"{each.name}   {took}", pad=4, fontsize=9)
        for axes in list(grid):
            axes.set_visible(False)
        style.headline(figure, f"{_about(plans[0])}. {KEY[0].upper()}{KEY[1:]}")

    style.save(path, lines * height + 0.4, panels)


def _about(its: Candidate) -> str:
    workers = len(its.problem.cluster.workers)
    alone = 1e3 * its.prediction.single_device
    return f"{workers} workers, one device {alone:,.0f} ms"


def _ranks(its: Candidate) -> list[int]:
    return sorted({rank for stage in its.plan.stages for rank in stage.ranks}) or [0]


def _draw(figure: Figure, heights: tuple[float, float], its: Candidate) -> None:
    maps, times = figure.subplots(2, 1, height_ratios=heights)
    _maps(maps, its, words=True)
    _times(times, its)
    took = f"{1e3 * its.prediction.latency:,.0f} ms, {its.prediction.speedup:.2f} times as fast"
    redundancy = f"{100 * its.plan.redundancy:.0f} % redundant work"
    words = f"{its.name}: {took} as one device, {redundancy} ({_about(its)})"
    style.headline(figure, f"{words}\n{KEY}")


def _maps(axes: Axes, its: Candidate, words: bool) -> None:
    """Draw the map of each stage for each rank, a stage a column."""
    plan, ranks = its.plan, _ranks(its)
    rows = {rank: row for row, rank in enumerate(ranks)}
    patches: dict[str, list[Rectangle]] = {MAP: [], HALO: [], EXCHANGED: [], OWN: []}
    for column, stage in enumerate(plan.stages):
        for rank in sorted(set(stage.ranks)):
            patches[MAP].append(_rectangle(column, rows[rank], (0, 1, 0, 1)))
        for unit, rank in enumerate(stage.ranks):
            own, halo = _extent(stage, unit % stage.k)
            patches[EXCHANGED if stage.direct else HALO].append(
                _rectangle(column, rows[rank], halo)
            )
            patches[OWN].append(_rectangle(column, rows[rank], own))
    for colour, those in patches.items():
        edge = "#B8B8B8" if colour == MAP else "white"
        width = 0.6 if colour == MAP else 0.3
        axes.add_collection(
            PatchCollection(those, facecolor=colour, edgecolor=edge, linewidth=width)
        )
    axes.set_xlim(-0.05, max(1, len(plan.stages)) + (0.6 if words else 0.02))
    axes.set_ylim(len(ranks) + 0.02, -0.08)
    named = rows if len(ranks) <= 2 * MOST else {}
    axes.set_yticks([row + SIDE / 2 for row in named.values()], map(str, named), fontsize=7)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    if not plan.stages:
        axes.text(0.5, 0.5, "rank 0 runs\nthe model unsplit", ha="center", va="center", fontsize=8)
    if words:
        axes.set_ylabel("rank")
        _words(axes, its, rows)


def _rectangle(column: int, row: int, extent: tuple[float, float, float, float]) -> Rectangle:
    top, bottom, left, right = (SIDE * each for each in extent)
    return Rectangle((column + left, row + top), right - left, bottom - top)


def _extent(
    stage: Stage, unit: int
) -> tuple[tuple[float, float, float, float], tuple[float, float, float, float]]:
    """Return (top, bottom, left, right) of a unit's own part, and with its halo, as shares.

    A group of channels, or of images, is a part of the width, of a map that it reads whole.
    """
    shard = stage.shards[unit]
    part = shard.channels or shard.images
    if part is not None:
        size = max(p.stop for s in stage.shards if (p := s.channels or s.images))
        return (0, 1, part.start / size, part.stop / size), (0, 1, 0, 1)
    return _shares(shard.writes, stage.output_shape), _shares(shard.reads, stage.input_shape)


def _shares(box: Box, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    (_, height, width), (rows, cols) = shape, box
    return rows.start / height, rows.stop / height, cols.start / width, cols.stop / width


def _words(axes: Axes, its: Candidate, rows: dict[int, int]) -> None:
    """Name the stages, and write what units take, beside their maps."""
    model, plan = its.problem.model, its.plan
    few = len(plan.stages) <= MOST // 2
    for column, stage in enumerate(plan.stages):
        kind = "direct" if stage.direct else "" if stage.split == "tiles" else stage.split
        size = " x ".join(map(str, stage.input_shape[-2:]))
        lines = (stage.name.replace(" … ", "\n… ") if few else f"{column + 1}", size, kind)
        axes.text(column, -0.14, "\n".join(filter(None, lines)), fontsize=6.5, va="bottom")
        if len(rows) > 2 * MOST:
            continue
        seconds, above = dict.fromkeys(stage.ranks, 0.0), dict.fromkeys(stage.ranks, False)
        for unit, rank in enumerate(stage.ranks):
            seconds[rank] += model.load(plan, column, unit % stage.k, rank).compute
            top, bottom = _extent(stage, unit % stage.k)[0][:2]
            above[rank] = top + bottom > 1  # the unit is below the middle: write above it
        for rank, each in seconds.items() if few else ():
            place = rows[rank] + SIDE * (0.16 if above[rank] else 0.84)
            axes.text(column + SIDE / 2, place, f"{1e3 * each:,.0f} ms", ha="center",
                      va="center", fontsize=7, color=style.INK, bbox=style.HALO)  # fmt: skip
    if len(rows) > 2 * MOST:
        return
    for rank, row in rows.items():
        busy = its.usage.compute.get(rank, 0.0)
        axes.text(len(plan.stages) + 0.02, row + SIDE / 2, f"busy {1e3 * busy:,.0f} ms",
                  fontsize=7, va="center", color=style.INK)  # fmt: skip


def _times(axes: Axes, its: Candidate) -> None:
    """Draw a query's seconds part by part, and those of one device."""
    start, prediction, shown = 0.0, its.prediction, set[str]()

    def bar(name: str, seconds: float, colour: str) -> None:
        nonlocal start
        label = "_" * (name in shown) + name
        shown.add(name)
        axes.barh(0, 1e3 * seconds, left=1e3 * start, height=0.7, color=colour, label=label,
                  edgecolor="white", linewidth=0.3)  # fmt: skip
        start += seconds

    for stage in prediction.stages:
        bar("rank 0", stage.encode, LEADER)
        for name, colour in PARTS:
            bar(name, getattr(stage, name), colour)
        bar("rank 0", stage.decode, LEADER)
    bar("rank 0", prediction.rest + prediction.head, LEADER)
    axes.barh(1, 1e3 * prediction.single_device, height=0.7, color=style.GREY)
    axes.set_yticks([0, 1], ["this plan", "one device"])
    axes.set_ylim(1.5, -0.5)
    axes.set_xlabel("predicted time of a query [ms]")
    axes.grid(visible=False, axis="y")
    axes.legend(ncols=5, loc="lower right", bbox_to_anchor=(1.0, 1.0), handlelength=1.0,
                columnspacing=1.0, borderaxespad=0.2)  # fmt: skip
