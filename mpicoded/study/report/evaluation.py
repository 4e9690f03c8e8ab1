"""Render an evaluation: tables of accuracy, A_o and costs, and a picture of drops and A_o."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mpicoded.errors import ResultsError
from mpicoded.study.evaluation import Cost, Evaluation, Outcome, Row
from mpicoded.study.report import style
from mpicoded.study.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY
from mpicoded.study.report.table import new_table, percent

CODES = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"), ("black", "v"),
         (style.SHADE_INK, "P"))  # fmt: skip
BASELINES = ((GREY, "o"), (ORANGE, "s"), (SKY, "^"), (INK, "D"), (style.PALE, "v"),
             (style.SHADE, "P"))  # fmt: skip
LINEAR = 5.0  # points up to which drops stand on a linear axis, if they go far beyond it


def render_evaluation(found: Evaluation) -> Group:
    """Return all tables."""
    tables = (_accuracy(found), _overall(found), _costs(found))
    shown = [line for table in tables for line in (table, Text())]
    size = found.images // found.queries
    images = f" of {size} images" if size > 1 else ""
    images = f"{found.images:,} test images, {found.queries:,} queries{images}"
    headline = Text(f"A_a = {percent(found.available)} of {images}")
    return Group(headline, Text(), *shown, *map(Text, _notes(found)))


def _accuracy(found: Evaluation) -> Table:
    columns = ["filled by", "patterns", "A_d", "drop", "± 95 %", "worst", "recovery"]
    table = new_table("missing", *columns, *(["all outputs"] if found.by_images else []))
    table.columns[1].justify = "left"
    before: tuple[int, int] | None = None
    for row in in_order(found):
        key = (row.data, row.parity)
        if before not in (None, key):
            table.add_section()
        of = "" if row.patterns == row.possible else f" of {row.possible}"
        cells = [row.scheme, f"{row.patterns}{of}", percent(row.accuracy), points(row.drop)]
        cells += [points(row.interval), points(row.worst), percent(row.recovery)]
        cells += [percent(row.group)] if found.by_images else []
        table.add_row("" if key == before else missing_text(*key), *cells)
        before = key
    return table


def in_order(found: Evaluation) -> list[Row]:
    """Return the rows by what is missing, losses of parity units apart, behind the others."""
    names = list(dict.fromkeys(row.scheme for row in found.rows))
    return sorted(found.rows, key=lambda r: (r.parity > 0, r.data, r.parity, names.index(r.scheme)))


def missing_text(data: int, parity: int) -> str:
    """Return what is missing in words."""
    if not data + parity:
        return "nothing"
    return f"{data} data + {parity} parity" if parity else f"{data} data"


def points(value: float) -> str:
    """Return a drop in points, - for NaN."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def _overall(found: Evaluation) -> Table:
    shares = [f for f in dict.fromkeys(each.f for each in found.overall) if f]  # 0 is A_a
    names = [f"{kind} {100 * f:g} %" for kind in ("answers", "units") for f in shares]
    table = new_table("A_o, late:", *names)
    for scheme in dict.fromkeys(each.scheme for each in found.overall):
        own = [each for each in found.overall if each.scheme == scheme and each.f]
        values = [each.answers for each in own] + [each.units for each in own]
        table.add_row(scheme, *map(percent, values))
    return table


def _costs(found: Evaluation) -> Table:
    names = ("", "parameters", "kFLOP", "of a data unit", "ms (quartiles)")
    table = new_table("one query", *names)
    table.columns[1].justify = "left"
    for each in found.candidates:
        for part, cost in (("encoder", each.encoder), ("decoder", each.decoder)):
            table.add_row(each.scheme, part, *_cost(cost, each.unit_flops))
        if each.coded_flops:
            cost = Cost(each.coded_parameters, each.coded_flops, (np.nan,) * 3)
            table.add_row(each.scheme, "coded unit", *_cost(cost, each.unit_flops))
    return table


def _cost(cost: Cost, unit: int) -> tuple[str, str, str, str]:
    low, median, high = (1e3 * s for s in cost.seconds)
    times = "-" if math.isnan(median) else f"{median:.3f} ({low:.3f} … {high:.3f})"
    ratio = f"{cost.flops / unit:.2f}" if unit else "-"
    return f"{cost.parameters:,}", f"{cost.flops / 1e3:,.1f}", ratio, times


def _notes(found: Evaluation) -> Iterator[str]:
    """Yield the meaning of the numbers, and whether codes leave alone the units that arrived."""
    yield (
        "A_d, drop, recovery: of the missing outputs, mean over all patterns; ± is half of the "
        "95 % interval of the drop, paired query by query; worst: the worst pattern's drop"
    )
    yield (
        "A_o: answers: that share is filled in with as many units lost as the code has spare; "
        "units: each is lost with that chance, and more lost than measured (--lost) is wrong"
    )
    for each in found.candidates:
        if each.systematic:
            words = {True: "the same", False: "NOT the same"}
            yield (
                f"{each.scheme}, no data unit missing: bits {words[each.same_bits]} as uncoded, "
                f"predictions {words[each.same_predictions]} as unsplit"
            )
        else:
            yield (
                f"{each.scheme} is not systematic: all its outputs are filled in, also with "
                f"nothing missing, and what is missing are any of its {each.k + each.r} units"
            )


def draw_evaluation(found: Evaluation, path: Path) -> None:
    """Draw an evaluation into ``path``; ResultsError if it cannot be drawn."""
    if not found.outcomes:
        raise ResultsError(f"{path}: there is no pattern to draw: no unit was missing")
    if len(found.candidates) > len(CODES):
        raise ResultsError(
            f"{len(found.candidates)} codes are too many for one picture: at most {len(CODES)}"
        )
    style.save(path, 4.6, lambda figure: _draw(figure, found))


def _draw(figure: Figure, found: Evaluation) -> None:
    looks = _looks(found)
    left, right = figure.subplots(1, 2, width_ratios=[1.7, 1])
    _draw_drops(left, found, looks)
    _draw_overall(right, found, looks)
    handles = [
        Line2D([], [], color=colour, marker=marker, linewidth=2, label=scheme)
        for scheme, (colour, marker) in looks.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    style.headline(figure, f"A_a = {percent(found.available)} of {found.images:,} test images")


def _looks(found: Evaluation) -> dict[str, tuple[str, str]]:
    """Return colour and marker of every scheme, codes first."""
    codes = [each.scheme for each in found.candidates]
    others = [w for w in dict.fromkeys(o.scheme for o in found.outcomes) if w not in codes]
    baselines = {scheme: BASELINES[i % len(BASELINES)] for i, scheme in enumerate(others)}
    return dict(zip(codes, CODES, strict=False)) | baselines


def _draw_drops(axes: Axes, found: Evaluation, looks: dict[str, tuple[str, str]]) -> None:
    keys = list(dict.fromkeys((row.data, row.parity) for row in in_order(found)))
    places: list[float] = []
    for place, key in enumerate(keys):
        own = [o for o in found.outcomes if (o.data, o.parity) == key]
        by_scheme = {scheme: [o for o in own if o.scheme == scheme] for scheme in looks}
        present = [scheme for scheme in looks if by_scheme[scheme]]
        room = 0.86 / max(3, len(present))
        for number, scheme in enumerate(present):
            x = place + room * (number - (len(present) - 1) / 2)
            _draw_column(axes, x, 0.85 * room, by_scheme[scheme], looks[scheme])
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
    explained = "a dot: one pattern; a bar: mean over all patterns"
    style.title(axes, "drop of the missing outputs [points]", explained)


def _draw_column(
    axes: Axes, x: float, width: float, outcomes: Sequence[Outcome], look: tuple[str, str]
) -> None:
    """Draw the patterns of one scheme: dots beside one another, and their mean."""
    colour, marker = look
    drops = np.array([o.drop for o in outcomes])
    spread = np.linspace(-width / 3, width / 3, len(drops)) if len(drops) > 1 else np.zeros(1)
    axes.scatter(x + spread, drops, s=14, color=colour, marker=marker, alpha=0.55, linewidths=0)
    axes.plot([x - width / 2, x + width / 2], [drops.mean()] * 2, color=colour, linewidth=2.4)


def _draw_overall(axes: Axes, found: Evaluation, looks: dict[str, tuple[str, str]]) -> None:
    for scheme, (colour, marker) in looks.items():
        own = [each for each in found.overall if each.scheme == scheme]
        shares = [each.f for each in own]
        axes.plot(shares, [e.answers for e in own], color=colour, marker=marker, markersize=4,
                  linewidth=1.7)  # fmt: skip
        axes.plot(shares, [e.units for e in own], color=colour, linewidth=1.2,
                  linestyle=(0, (4, 2)))  # fmt: skip
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share f that is late")
    explained = "solid: of the answers; dashed: of the units"
    style.title(axes, "overall accuracy A_o", explained)
