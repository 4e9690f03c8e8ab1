"""The tables of an evaluation: accuracy by what is missing, A_o, and what codes cost."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mpicoded.study.report.table import new_table, percent
from mpicoded.study.training.evaluation import Cost, Evaluation, Row


def render_evaluation(found: Evaluation, patterns: bool = False) -> Group:
    """Return all tables; with ``patterns`` also every pattern of the codes."""
    tables = [_accuracy(found), _overall(found), _costs(found)]
    tables += [_patterns(found)] if patterns else []
    shown = [line for table in tables for line in (table, Text())]
    return Group(_headline(found), Text(), *shown, *map(Text, _notes(found)))


def _headline(found: Evaluation) -> Text:
    size = found.images // found.queries
    images = f" of {size} images" if size > 1 else ""
    return Text(
        f"A_a = {percent(found.available)} of {found.images:,} test images, {found.queries:,} "
        f"queries{images}"
    )


def _accuracy(found: Evaluation) -> Table:
    columns = ["filled by", "patterns", "A_d", "drop", "± 95 %", "worst", "recovery"]
    table = new_table("missing", *columns, *(["all outputs"] if found.by_images else []))
    table.columns[1].justify = "left"
    before: tuple[int, int] | None = None
    for row in in_order(found):
        key = (row.data, row.parity)
        if before not in (None, key):
            table.add_section()
        cells = [row.way, _count(row), percent(row.accuracy), points(row.drop)]
        cells += [points(row.interval), points(row.worst), percent(row.recovery)]
        cells += [percent(row.group)] if found.by_images else []
        table.add_row("" if key == before else missing_text(*key), *cells)
        before = key
    return table


def in_order(found: Evaluation) -> list[Row]:
    """Return the rows by what is missing, losses of parity units apart, behind the others."""
    ways = list(dict.fromkeys(row.way for row in found.rows))
    return sorted(found.rows, key=lambda r: (r.parity > 0, r.data, r.parity, ways.index(r.way)))


def missing_text(data: int, parity: int) -> str:
    """Return what is missing in words."""
    if not data + parity:
        return "nothing"
    return f"{data} data + {parity} parity" if parity else f"{data} data"


def _count(row: Row) -> str:
    return (
        f"{row.patterns}" if row.patterns == row.possible else f"{row.patterns} of {row.possible}"
    )


def points(value: float) -> str:
    """Return a drop in points, - for NaN."""
    return "-" if math.isnan(value) else f"{value:.2f}"


def _overall(found: Evaluation) -> Table:
    shares = [f for f in dict.fromkeys(each.f for each in found.overall) if f]  # 0 is A_a
    names = [f"{what} {100 * f:g} %" for what in ("answers", "units") for f in shares]
    table = new_table("A_o, late:", *names)
    for way in dict.fromkeys(each.way for each in found.overall):
        own = [each for each in found.overall if each.way == way and each.f]
        values = [each.answers for each in own] + [each.units for each in own]
        table.add_row(way, *map(percent, values))
    return table


def _costs(found: Evaluation) -> Table:
    names = ("", "parameters", "kFLOP", "of a data unit", "ms (quartiles)")
    table = new_table("one query", *names)
    table.columns[1].justify = "left"
    for each in found.candidates:
        for part, cost in (("encoder", each.encoder), ("decoder", each.decoder)):
            table.add_row(each.way, part, *_cost(cost, each.unit_flops))
        if each.coded_flops:
            cost = Cost(each.coded_parameters, each.coded_flops, (np.nan,) * 3)
            table.add_row(each.way, "coded unit", *_cost(cost, each.unit_flops))
    return table


def _cost(cost: Cost, unit: int) -> tuple[str, str, str, str]:
    low, median, high = (1e3 * s for s in cost.seconds)
    times = "-" if math.isnan(median) else f"{median:.3f} ({low:.3f} … {high:.3f})"
    ratio = f"{cost.flops / unit:.2f}" if unit else "-"
    return f"{cost.parameters:,}", f"{cost.flops / 1e3:,.1f}", ratio, times


def _patterns(found: Evaluation) -> Table:
    table = new_table("pattern missing", "filled by", "A_d", "drop", "recovery")
    table.columns[1].justify = "left"
    codes = {each.way for each in found.candidates}
    for each in found.outcomes:
        if each.way in codes:
            units = " ".join(str(unit) for unit in np.flatnonzero(~each.arrived)) or "-"
            cells = (percent(each.accuracy), points(each.drop), percent(each.recovery))
            table.add_row(units, each.way, *cells)
    return table


def _notes(found: Evaluation) -> Iterator[str]:
    """Say what the numbers are, and what else was seen."""
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
            said = {True: "the same", False: "NOT the same"}
            yield (
                f"{each.way}, no data unit missing: bits {said[each.same_bits]} as uncoded, "
                f"predictions {said[each.same_predictions]} as unsplit"
            )
        else:
            yield (
                f"{each.way} is not systematic: all its outputs are filled in, also with nothing "
                f"missing, and what is missing are any of its {each.k + each.r} units"
            )
