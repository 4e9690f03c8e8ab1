"""The picture of an evaluation: every pattern's drop, and the overall accuracy by what is late.

    drop [points]                          A_o
    |      :     ::  |   :    ::           | ==.__         solid: f of the answers
    |  --  -- --     |  -- --              |     `--.__    dashed: each unit with chance f
    +----------------+----------           +-------------
      1 data missing   2 data                share f late

A dot is a pattern, a bar the mean of a way; ways have one colour in both halves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from mpicoded.errors import ResultsError
from mpicoded.study.report.evaluation_table import in_order, missing_text
from mpicoded.study.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PALE,
    PURPLE,
    RED,
    SHADE,
    SHADE_INK,
    SKY,
    WIDTH,
    save,
    styled,
)  # fmt: skip
from mpicoded.study.training.evaluation import Evaluation, Outcome

CODES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"), ("black", "v"), (SHADE_INK, "P"))
BASELINES = ((GREY, "o"), (ORANGE, "s"), (SKY, "^"), (INK, "D"), (PALE, "v"), (SHADE, "P"))
LINEAR = 5.0  # points up to which drops stand on a linear axis, if they go far beyond it


def draw_evaluation(found: Evaluation, path: Path) -> None:
    """Draw an evaluation into ``path``.

    Raises
    ------
    ResultsError
        If nothing could be filled in, there are too many codes, or it cannot be written.
    """
    if not found.outcomes:
        raise ResultsError(f"{path}: there is no pattern to draw: no unit was missing")
    if len(found.candidates) > len(CODES):
        raise ResultsError(
            f"{len(found.candidates)} codes are too many for one picture: at most {len(CODES)}"
        )
    with styled():
        save(_figure(found), path)


def _figure(found: Evaluation) -> Figure:
    looks = _looks(found)
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    _drops(left, found, looks)
    _overall(right, found, looks)
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=2, label=way)
        for way, (colour, marker) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    images = f"A_a = {100 * found.available:.2f} % of {found.images:,} test images"
    figure.suptitle(images, x=0.01, ha="left", fontsize=9.5, color=INK)
    return figure


def _looks(found: Evaluation) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every way, codes first."""
    codes = [each.way for each in found.candidates]
    others = [w for w in dict.fromkeys(o.way for o in found.outcomes) if w not in codes]
    baselines = {way: BASELINES[i % len(BASELINES)] for i, way in enumerate(others)}
    return dict(zip(codes, CODES, strict=False)) | baselines


def _drops(axes: Axes, found: Evaluation, looks: dict[str, tuple[str, str]]) -> None:
    keys = list(dict.fromkeys((row.data, row.parity) for row in in_order(found)))
    places: list[float] = []
    for place, key in enumerate(keys):
        own = [o for o in found.outcomes if (o.data, o.parity) == key]
        present = [way for way in looks if any(o.way == way for o in own)]
        room = 0.86 / max(3, len(present))
        for number, way in enumerate(present):
            x = place + room * (number - (len(present) - 1) / 2)
            _column(axes, x, 0.85 * room, [o for o in own if o.way == way], looks[way])
        places.append(place)
    axes.set_xticks(places, [missing_text(*key).replace(" + ", "\n+ ") for key in keys])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("units missing")
    most = max(o.drop for o in found.outcomes)
    if most > 3 * LINEAR:
        axes.set_yscale("symlog", linthresh=LINEAR)
        ticks = [0, 1, 2, 3, 4, 5, 10, 20, 50]
        axes.set_yticks([t for t in ticks if t <= 1.2 * most], minor=False)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    least = min(o.drop for o in found.outcomes)
    axes.set_ylim(bottom=min(1.1 * least, -0.03 * min(most, 3 * LINEAR)))
    axes.set_title("drop of the missing outputs [points]", pad=20)
    axes.text(0, 1.02, "a dot: one pattern; a bar: mean over all patterns",
              transform=axes.transAxes, fontsize=8, color=INK)  # fmt: skip


def _column(
    axes: Axes, x: float, width: float, outcomes: Sequence[Outcome], look: tuple[str, str]
) -> None:
    """Draw the patterns of one way: dots beside one another, and their mean."""
    colour, marker = look
    drops = np.array([o.drop for o in outcomes])
    spread = np.linspace(-width / 3, width / 3, len(drops)) if len(drops) > 1 else np.zeros(1)
    axes.scatter(x + spread, drops, s=14, color=colour, marker=marker, alpha=0.55, linewidths=0)
    axes.plot([x - width / 2, x + width / 2], [drops.mean()] * 2, color=colour, linewidth=2.4)


def _overall(axes: Axes, found: Evaluation, looks: dict[str, tuple[str, str]]) -> None:
    for way, (colour, marker) in looks.items():
        own = [each for each in found.overall if each.way == way]
        shares = [each.f for each in own]
        axes.plot(shares, [e.answers for e in own], color=colour, marker=marker, markersize=4,
                  linewidth=1.7)  # fmt: skip
        axes.plot(shares, [e.units for e in own], color=colour, linewidth=1.2,
                  linestyle=(0, (4, 2)))  # fmt: skip
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share f that is late")
    axes.set_title("overall accuracy A_o", pad=20)
    axes.text(0, 1.02, "solid: of the answers; dashed: of the units", transform=axes.transAxes,
              fontsize=8, color=INK)  # fmt: skip
