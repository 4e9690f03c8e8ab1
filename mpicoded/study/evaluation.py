"""The file of an evaluation: every pattern of every way, its table, A_o, and what codes cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from mpicoded.results.layout import TEXT, Variable
from mpicoded.results.record import Array, Form, read, write
from mpicoded.study.training.evaluation import Candidate, Cost, Evaluation, Outcome, Overall, Row

CASE, ROW, CODE, SHARE = ("case",), ("row",), ("candidate",), ("share",)
QUARTILES = ("candidate", "quartile")
NO_UNIT = 255  # beyond the units of a way

OUTCOMES = (
    Variable("patterns/way", CASE, TEXT, 0, "1", "code or baseline that fills in"),
    Variable("patterns/arrived", ("case", "unit"), "u1", NO_UNIT, "1", "unit is here; 255: none"),
    Variable("patterns/data", CASE, "i4", 0, "1", "data units missing"),
    Variable("patterns/parity", CASE, "i4", 0, "1", "parity units missing"),
    Variable("patterns/accuracy", CASE, "f8", nan, "1", "degraded accuracy, of missing outputs"),
    Variable("patterns/drop", CASE, "f8", nan, "percent", "accuracy lost, in points"),
    Variable("patterns/recovery", CASE, "f8", nan, "1", "predictions as the unsplit model's"),
    Variable("patterns/group", CASE, "f8", nan, "1", "accuracy of all outputs of the query"),
)
ROWS = (
    Variable("rows/way", ROW, TEXT, 0, "1", "code or baseline that fills in"),
    Variable("rows/data", ROW, "i4", 0, "1", "data units missing"),
    Variable("rows/parity", ROW, "i4", 0, "1", "parity units missing"),
    Variable("rows/patterns", ROW, "i4", 0, "1", "patterns that were filled in"),
    Variable("rows/possible", ROW, "i4", 0, "1", "patterns that there are"),
    Variable("rows/accuracy", ROW, "f8", nan, "1", "degraded accuracy, mean over patterns"),
    Variable("rows/drop", ROW, "f8", nan, "percent", "accuracy lost, in points"),
    Variable("rows/interval", ROW, "f8", nan, "percent", "half of the drop's 95 % interval"),
    Variable("rows/worst", ROW, "f8", nan, "percent", "drop under the worst pattern"),
    Variable("rows/recovery", ROW, "f8", nan, "1", "predictions as the unsplit model's"),
    Variable("rows/group", ROW, "f8", nan, "1", "accuracy of all outputs of the query"),
)
OVERALL = (
    Variable("overall/way", SHARE, TEXT, 0, "1", "code or baseline that fills in"),
    Variable("overall/f", SHARE, "f8", nan, "1", "share that is late"),
    Variable("overall/answers", SHARE, "f8", nan, "1", "A_o if f of the answers are filled in"),
    Variable("overall/units", SHARE, "f8", nan, "1", "A_o if every unit is lost with chance f"),
)
CODES = (
    Variable("codes/way", CODE, TEXT, 0, "1", "name in the table"),
    Variable("codes/code", CODE, TEXT, 0, "1", "the code"),
    Variable("codes/k", CODE, "i4", 0, "1", "data units"),
    Variable("codes/r", CODE, "i4", 0, "1", "parity units"),
    Variable("codes/systematic", CODE, "u1", 1, "1", "data units are among its units"),
    Variable("codes/same_bits", CODE, "u1", 0, "1", "nothing missing: the uncoded split's bits"),
    Variable("codes/same_predictions", CODE, "u1", 0, "1", "and the unsplit model's predictions"),
    Variable("codes/unit_flops", CODE, "i8", 0, "1", "FLOPs of a data unit for a query"),
    Variable("codes/coded_flops", CODE, "i8", 0, "1", "FLOPs of a coded unit for a query"),
    Variable("codes/coded_parameters", CODE, "i8", 0, "1", "numbers of parity models"),
    Variable("codes/encoder_parameters", CODE, "i8", 0, "1", "numbers of the encoder"),
    Variable("codes/encoder_flops", CODE, "i8", 0, "1", "FLOPs of the encoder for a query"),
    Variable("codes/encoder_seconds", QUARTILES, "f8", nan, "s", "encoding a query, quartiles"),
    Variable("codes/decoder_parameters", CODE, "i8", 0, "1", "numbers of the decoder"),
    Variable("codes/decoder_flops", CODE, "i8", 0, "1", "FLOPs of the decoder for a query"),
    Variable("codes/decoder_seconds", QUARTILES, "f8", nan, "s", "decoding a query, quartiles"),
)
EVALUATION = Form("mpicoded evaluation 1", (*ROWS, *OUTCOMES, *OVERALL, *CODES))
PLAIN = ("way", "code", "k", "r", "systematic", "same_bits", "same_predictions", "unit_flops",
         "coded_flops", "coded_parameters")  # fmt: skip


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as its file has it."""

    path: Path
    attrs: dict[str, Any]
    evaluation: Evaluation


def write_evaluation(path: Path, found: Evaluation, attrs: Mapping[str, Any]) -> None:
    """Write an evaluation; ``attrs`` (such as jobs and command) join the root attributes.

    Raises
    ------
    ResultsError
        If the file cannot be written.
    """
    units = max(len(o.arrived) for o in found.outcomes) if found.outcomes else 0
    arrived = np.full((len(found.outcomes), units), NO_UNIT, "u1")
    for row, outcome in zip(arrived, found.outcomes, strict=True):
        row[: len(outcome.arrived)] = outcome.arrived
    data: dict[str, Sequence[Any] | Array] = {"patterns/arrived": arrived}
    data |= _columns("patterns", OUTCOMES, found.outcomes, skip="arrived")
    data |= _columns("rows", ROWS, found.rows) | _columns("overall", OVERALL, found.overall)
    data |= {f"codes/{name}": [getattr(c, name) for c in found.candidates] for name in PLAIN}
    for part in ("encoder", "decoder"):
        costs: list[Cost] = [getattr(c, part) for c in found.candidates]
        for name in ("parameters", "flops", "seconds"):
            data[f"codes/{part}_{name}"] = np.array([getattr(c, name) for c in costs])
    sizes = {"case": len(found.outcomes), "row": len(found.rows), "share": len(found.overall)}
    sizes |= {"candidate": len(found.candidates), "quartile": 3, "unit": units}
    names = ("queries", "images", "by_images", "available")
    about = {name: getattr(found, name) for name in names}
    write(path, EVALUATION, sizes, about | dict(attrs), data)


def read_evaluation(path: Path) -> Evaluated:
    """Return an evaluation.

    Raises
    ------
    ResultsError
        If it is missing, damaged or no such file.
    """
    attrs, data = read(path, EVALUATION)
    patterns = _records(data, "patterns")
    for each in patterns:
        each["arrived"] = each["arrived"][each["arrived"] != NO_UNIT].astype(bool)
    found = Evaluation(
        queries=int(attrs["queries"]),
        images=int(attrs["images"]),
        by_images=bool(attrs["by_images"]),
        available=float(attrs["available"]),
        candidates=tuple(_candidate(each) for each in _records(data, "codes")),
        rows=tuple(Row(**each) for each in _records(data, "rows")),
        outcomes=tuple(Outcome(**each) for each in patterns),
        overall=tuple(Overall(**each) for each in _records(data, "overall")),
    )
    return Evaluated(path, attrs, found)


def _columns(
    group: str, table: Sequence[Variable], records: Sequence[object], skip: str = ""
) -> dict[str, list[Any]]:
    names = [v.path.removeprefix(f"{group}/") for v in table]
    return {f"{group}/{n}": [getattr(r, n) for r in records] for n in names if n != skip}


def _records(data: Mapping[str, Array], group: str) -> list[dict[str, Any]]:
    """Return the rows of a group; numbers as Python has them."""
    columns = {k.removeprefix(f"{group}/"): v for k, v in data.items() if k.startswith(group)}
    count = len(columns["way"])
    return [
        {name: v[i] if v.ndim > 1 else v[i : i + 1].tolist()[0] for name, v in columns.items()}
        for i in range(count)
    ]


def _candidate(each: dict[str, Any]) -> Candidate:
    costs = {}
    for part in ("encoder", "decoder"):
        parameters, flops = each[f"{part}_parameters"], each[f"{part}_flops"]
        low, median, high = each[f"{part}_seconds"].tolist()
        costs[part] = Cost(parameters, flops, (low, median, high))
    flags = {name: bool(each[name]) for name in ("systematic", "same_bits", "same_predictions")}
    return Candidate(**({name: each[name] for name in PLAIN} | flags | costs))
