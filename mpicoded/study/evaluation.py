"""The findings of an evaluation as plain numbers, and the HDF5 file that keeps them.

Words are those of the reference "Learned and approximate codes", section 2; shares and accuracies
are from 0 to 1, drops in points. An *output* is one answer: to a query of shards, to one image of
a group. A_a (available) is the accuracy of the unsplit model, A_d (degraded) of the missing
outputs as filled in, recovery the share of them with the unsplit model's prediction, group the
accuracy of all outputs. Of a code that is not systematic every output is filled in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from mpicoded.codes import Arrived
from mpicoded.results.layout import TEXT, Variable
from mpicoded.results.record import Array, Form, read, write

NO_UNIT = 255  # beyond the units of a scheme


def _share(about: str, unit: str = "1") -> Any:
    return field(metadata={"about": (unit, about), "dtype": "f8", "fill": nan})


def _count(about: str, dtype: str = "i8", fill: int = 0) -> Any:
    return field(metadata={"about": ("1", about), "dtype": dtype, "fill": fill})


def _text(about: str) -> Any:
    return field(metadata={"about": ("1", about), "dtype": TEXT, "fill": 0})


@dataclass(frozen=True)
class Outcome:
    """One scheme under one erasure pattern."""

    scheme: str = _text("code or baseline that fills in")
    arrived: Arrived = _count("unit has arrived; 255: none", "u1", NO_UNIT)  # (n,)
    data: int = _count("data units missing", "i4")  # not systematic: any units
    parity: int = _count("parity units missing", "i4")
    accuracy: float = _share("degraded accuracy, of missing outputs")
    drop: float = _share("accuracy lost, in points", "percent")  # from the unsplit model's
    recovery: float = _share("predictions as the unsplit model's")
    group: float = _share("accuracy of all outputs of the query")

    @property
    def lost(self) -> int:
        """Units missing."""
        return self.data + self.parity


@dataclass(frozen=True)
class Row:
    """One scheme under all patterns with so many units missing; means, and a paired interval."""

    scheme: str = _text("code or baseline that fills in")
    data: int = _count("data units missing", "i4")
    parity: int = _count("parity units missing", "i4")
    patterns: int = _count("patterns that were filled in", "i4")
    possible: int = _count("patterns that there are", "i4")
    accuracy: float = _share("degraded accuracy, mean over patterns")
    drop: float = _share("accuracy lost, in points", "percent")
    interval: float = _share("half of the drop's 95 % interval", "percent")
    worst: float = _share("drop under the worst pattern", "percent")
    recovery: float = _share("predictions as the unsplit model's")
    group: float = _share("accuracy of all outputs of the query")


@dataclass(frozen=True)
class Overall:
    """A_o of one scheme if a share f is late: of the answers, or of the units, independently."""

    scheme: str = _text("code or baseline that fills in")
    f: float = _share("share that is late")
    answers: float = _share("A_o if f of the answers are filled in")
    units: float = _share("A_o if every unit is lost with chance f")


@dataclass(frozen=True)
class Cost:
    """For one query: numbers trained, FLOPs, seconds (quartiles)."""

    parameters: int
    flops: int
    seconds: tuple[float, float, float]


@dataclass(frozen=True)
class Candidate:
    """A code that was evaluated, and its cost; one that is not systematic promises no sameness."""

    encoder: Cost
    decoder: Cost
    scheme: str = _text("name in the table")
    code: str = _text("the code")
    k: int = _count("data units", "i4")
    r: int = _count("parity units", "i4")
    systematic: bool = _count("data units are among its units", "u1", 1)
    same_bits: bool = _count("nothing missing: the uncoded split's bits", "u1")
    same_predictions: bool = _count("and the unsplit model's predictions", "u1")
    unit_flops: int = _count("FLOPs of a data unit for a query")  # the largest
    coded_flops: int = _count("FLOPs of a coded unit for a query")  # the largest; 0: none
    coded_parameters: int = _count("numbers of parity models")


@dataclass(frozen=True)
class Evaluation:
    """All findings with the same base model and the same queries."""

    queries: int
    images: int
    by_images: bool  # units of the first code
    available: float
    candidates: tuple[Candidate, ...]
    rows: tuple[Row, ...]
    outcomes: tuple[Outcome, ...]
    overall: tuple[Overall, ...]


# A group of the file: the class of its rows, their dimension, and where an Evaluation has them.
GROUPS: dict[str, tuple[type, str, str]] = {
    "rows": (Row, "row", "rows"),
    "patterns": (Outcome, "case", "outcomes"),
    "overall": (Overall, "share", "overall"),
    "codes": (Candidate, "candidate", "candidates"),
}
PLAIN = ("queries", "images", "by_images", "available")  # root attributes


def _variables() -> list[Variable]:
    found = []
    for group, (kind, dim, _) in GROUPS.items():
        for name, about in ((f.name, f.metadata) for f in fields(kind) if f.metadata):
            dims = (dim, "unit") if name == "arrived" else (dim,)
            path = f"{group}/{name}"
            found.append(Variable(path, dims, about["dtype"], about["fill"], *about["about"]))
    for part, verb in (("encoder", "encoding"), ("decoder", "decoding")):
        path, code = f"codes/{part}", ("candidate",)
        found += [
            Variable(f"{path}_parameters", code, "i8", 0, "1", f"numbers of the {part}"),
            Variable(f"{path}_flops", code, "i8", 0, "1", f"FLOPs of the {part} for a query"),
            Variable(f"{path}_seconds", (*code, "quartile"), "f8", nan, "s",
                     f"{verb} a query, quartiles"),
        ]  # fmt: skip
    return found


EVALUATION = Form("mpicoded evaluation 2", tuple(_variables()))


@dataclass(frozen=True)
class Evaluated:
    """The file of an evaluation: its path, root attributes and findings."""

    path: Path
    attrs: dict[str, Any]
    evaluation: Evaluation


def write_evaluation(path: Path, found: Evaluation, attrs: Mapping[str, Any]) -> None:
    """Write an evaluation; ``attrs`` join the root attributes; ResultsError."""
    data: dict[str, Sequence[Any] | Array] = {}
    sizes = {"unit": max((len(o.arrived) for o in found.outcomes), default=0), "quartile": 3}
    for group, (kind, dim, name) in GROUPS.items():
        records = getattr(found, name)
        sizes[dim] = len(records)
        for column in (f.name for f in fields(kind) if f.metadata):
            data[f"{group}/{column}"] = [getattr(record, column) for record in records]
    for column in ("parameters", "flops", "seconds"):
        for part in ("encoder", "decoder"):
            costs = [getattr(getattr(c, part), column) for c in found.candidates]
            data[f"codes/{part}_{column}"] = np.array(costs)
    arrived = np.full((len(found.outcomes), sizes["unit"]), NO_UNIT, "u1")
    for row, outcome in zip(arrived, found.outcomes, strict=True):
        row[: len(outcome.arrived)] = outcome.arrived
    data["patterns/arrived"] = arrived
    write(path, EVALUATION, sizes, {n: getattr(found, n) for n in PLAIN} | dict(attrs), data)


def read_evaluation(path: Path) -> Evaluated:
    """Read an evaluation; ResultsError if it is missing, damaged or no such file."""
    attrs, data = read(path, EVALUATION)
    groups = {name: _records(data, group, kind) for group, (kind, _, name) in GROUPS.items()}
    found = Evaluation(
        queries=int(attrs["queries"]),
        images=int(attrs["images"]),
        by_images=bool(attrs["by_images"]),
        available=float(attrs["available"]),
        **groups,
    )
    return Evaluated(path, attrs, found)


def _records(data: Mapping[str, Array], group: str, kind: type) -> tuple[Any, ...]:
    """Return the rows of a group; numbers as Python has them."""
    columns = {k.removeprefix(f"{group}/"): v for k, v in data.items() if k.startswith(f"{group}/")}
    found = []
    for i in range(len(columns["scheme"])):
        each = {k: v[i] if v.ndim > 1 else v[i : i + 1].tolist()[0] for k, v in columns.items()}
        if kind is Outcome:
            each["arrived"] = each["arrived"][each["arrived"] != NO_UNIT].astype(bool)
        if kind is Candidate:
            for name in ("systematic", "same_bits", "same_predictions"):
                each[name] = bool(each[name])
            for part in ("encoder", "decoder"):
                low, median, high = each.pop(f"{part}_seconds").tolist()
                parameters, flops = each.pop(f"{part}_parameters"), each.pop(f"{part}_flops")
                each[part] = Cost(parameters, flops, (low, median, high))
        found.append(kind(**each))
    return tuple(found)
