"""Layout of a results file: which variables it has, on which dimensions, with which units.

Plain numbers only; :mod:`mpicoded.results.file` makes the file from this table. The number of
queries is known before the run, so every variable has its full size from the start.

Fill values: NaN for a number that is not known, -1 for a class, label or query that there is none
of, 0 otherwise (mode 0 is pending, action 0 an unused row of the trace).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from math import nan
from typing import Any, NamedTuple

from mpicoded.answer import Mode
from mpicoded.trace import EVENT, Action

TEXT = "text"
EDGES = ("h0", "h1", "w0", "w1")  # of a box: rows h0 to h1 - 1, columns w0 to w1 - 1
EVENTS_AT_FIRST = 4_000_000  # rows of a trace that is made; it grows when they are used up
NO_OUTPUT = (0,)  # shape of the answers of a simulated run, which has no tensors


class Status(IntEnum):
    """State of a run."""

    RUNNING = 0
    FINISHED = 1


class Variable(NamedTuple):
    """One variable of the file; ``path`` is group/name, ``flags`` the meaning of its numbers."""

    path: str
    dims: tuple[str, ...]
    dtype: str
    fill: float
    units: str
    long_name: str
    flags: type[IntEnum] | None = None


@dataclass(frozen=True)
class Layout:
    """Sizes of a run. Rows are per query; a query has ``batch`` images, the last may have fewer.

    ``outputs`` is the shape of one image's answer (``NO_OUTPUT``: there are no tensors); one axis
    means class scores, a single score only with what it must be ``above`` for class 1. ``owner``
    names the unit of each of the ``batch`` images where units are images, and is empty where every
    unit has a part of every image. ``base``: the unsplit model's outputs are kept too. ``events``
    is the capacity of the trace, 0 = chosen from the rest; ``starts`` counts starts and resumes.
    """

    queries: int
    stages: int
    units: int
    outputs: tuple[int, ...]
    ranks: int
    batch: int = 1
    has_labels: bool = False
    owner: tuple[int, ...] = ()
    base: bool = True
    events: int = 0
    starts: int = 1
    above: float | None = None

    @property
    def scores(self) -> bool:
        """True if an output is class scores, so that there are classes and accuracies."""
        return len(self.outputs) == 1 and (self.outputs[0] > 1 or self.above is not None)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of one image's output."""
        return ("score",) if self.scores else tuple(f"axis_{i}" for i in range(len(self.outputs)))

    @property
    def sizes(self) -> dict[str, int]:
        """Size of every dimension."""
        wanted = 8 * self.queries * max(self.stages * self.units, 1) + 1024
        return {
            "query": self.queries,
            "stage": self.stages,
            "unit": self.units,
            "image": self.batch,
            "rank": self.ranks,
            "event": self.events or min(wanted, EVENTS_AT_FIRST),
            "start": self.starts,
            "edge": len(EDGES),
            **dict(zip(self.axes, self.outputs, strict=True)),
        }

    def text(self) -> str:
        """Return the layout as JSON, as it stands in the file."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """Return the layout that ``text()`` wrote; ValueError, KeyError or TypeError if none."""
        fields: dict[str, Any] = json.loads(text)
        fields["outputs"], fields["owner"] = tuple(fields["outputs"]), tuple(fields["owner"])
        layout = cls(**fields)
        if any(type(n) is not int or n < 0 for n in layout.sizes.values()):
            raise ValueError("a size of its layout is no whole number")
        if layout.owner and not set(layout.owner) <= set(range(layout.units)):
            raise ValueError("an owner in its layout is no unit")
        return layout


QUERY = ("query",)
UNIT = ("query", "stage", "unit")
IMAGE = ("query", "image")
PLACE = ("stage", "unit")

# In the order in which a row is written: `mode` comes last, since it says that the row is complete.
QUERIES = (
    Variable(
        "queries/submitted",
        QUERY,
        "f8",
        nan,
        "s",
        "submission or its schedule, since the run began",
    ),
    Variable("queries/answered", QUERY, "f8", nan, "s", "answer, since the run began"),
    Variable("queries/latency", QUERY, "f8", nan, "s", "from submission to answer"),
    Variable("queries/encode", QUERY, "f8", nan, "s", "leader: cut the input and encode"),
    Variable("queries/gather", QUERY, "f8", nan, "s", "leader: wait for units"),
    Variable("queries/decode", QUERY, "f8", nan, "s", "leader: decode and stitch"),
    Variable("queries/head", QUERY, "f8", nan, "s", "leader: run the rest of the network"),
    Variable("queries/own", QUERY, "f8", nan, "s", "leader: all it did for the query but waiting"),
    Variable("queries/attempts", QUERY, "i2", 0, "1", "times that the query was sent"),
    Variable("queries/exit", QUERY, "i2", -1, "1", "early exit that was taken, -1: the end"),
    Variable("queries/expected", QUERY, "f4", nan, "1", "accuracy that is expected of the units"),
    Variable("queries/agreement", QUERY, "f4", nan, "1", "share as unsplit that is expected"),
    Variable("queries/arrived", UNIT, "u1", 0, "1", "unit was here when its stage was decoded"),
    Variable("queries/seconds", UNIT, "f4", nan, "s", "from posting a unit to its arrival"),
    Variable("queries/mode", QUERY, "u1", 0, "1", "whose answer it is", Mode),
)

COLUMNS = {
    "rank": ("1", "rank that the event is about"),
    "query": ("1", "query, -1: not about one"),
    "stage": ("1", "stage, -1: not about one"),
    "unit": ("1", "unit, -1: not about one"),
    "action": ("1", "what happened; 0: unused row"),
    "start": ("s", "begin, since the run began"),
    "stop": ("s", "end, since the run began"),
    "bytes": ("byte", "size of the message"),
}

PLAN = (
    Variable("plan/table", (), TEXT, 0, "1", "the plan as it is printed"),
    Variable("plan/edge", ("edge",), TEXT, 0, "1", "edge of a box, the last row and column not in"),
    Variable("plan/rank", PLACE, "i4", -1, "1", "home: rank that computes the unit"),
    Variable("plan/output", (*PLACE, "edge"), "i4", 0, "1", "box that the unit writes"),
    Variable(
        "plan/input", (*PLACE, "edge"), "i4", 0, "1", "box that the unit reads, with its halo"
    ),
    Variable("plan/flops", PLACE, "i8", 0, "1", "floating-point operations of a query"),
    Variable("plan/bytes_in", PLACE, "i8", 0, "byte", "input of the unit for a query"),
    Variable("plan/bytes_out", PLACE, "i8", 0, "byte", "output of the unit for a query"),
    Variable("plan/predicted", ("stage",), "f8", nan, "s", "stage of a query, predicted"),
    Variable("plan/predicted_latency", (), "f8", nan, "s", "query, predicted (NaN: no cluster)"),
    Variable("plan/predicted_alone", (), "f8", nan, "s", "query on one device, predicted"),
    Variable("plan/bound", (), "f8", nan, "s", "bytes / rate or FLOPs / rate, the larger, a query"),
)

CLUSTER = (
    Variable("cluster/host", ("start", "rank"), TEXT, 0, "1", "host of the rank, at each start"),
    Variable("cluster/began", ("start",), "f8", 0, "s", "when the run was started and resumed"),
)


CHECK = Variable("queries/check", QUERY, "u4", 0, "1", "CRC-32 of the answer's row, 0: none")
BASE_CHECK = Variable("predictions/base_check", QUERY, "u4", 0, "1", "CRC-32 of base row, 0: none")
FINAL = ("plan", "cluster", "labels")  # groups that are not written after the file was made


def overwritten(layout: Layout) -> list[Variable]:
    """Return the variables that a run writes as it goes."""
    return [v for v in variables(layout) if v.path.partition("/")[0] not in FINAL]


def variables(layout: Layout) -> Iterator[Variable]:
    """Iterate over the variables of a file, those of `queries` in the order of writing.

    Checksums lie far from what they are of, so that one bad block spoils one of the two.
    """
    yield Variable("status", (), "u1", 0, "1", "how far the run is", Status)
    yield CHECK
    if layout.base:
        yield BASE_CHECK
    yield from PLAN
    yield from CLUSTER
    yield from _predictions(layout)
    yield from QUERIES
    yield Variable("trace/events", (), "i8", 0, "1", "rows of the trace that are in use")
    for name, (units, long_name) in COLUMNS.items():
        flags = Action if name == "action" else None
        dtype = EVENT[name].str.lstrip("<|")
        yield Variable(f"trace/{name}", ("event",), dtype, 0, units, long_name, flags)
    yield Variable("trace/check", ("event",), "u4", 0, "1", "CRC-32 of the event, 0: unused row")


def _predictions(layout: Layout) -> Iterator[Variable]:
    shape = (*IMAGE, *layout.axes)
    yield Variable("predictions/mode", IMAGE, "u1", 0, "1", "whose answer an image has", Mode)
    yield Variable("predictions/output", shape, "f4", nan, "1", "output of the run")
    if layout.scores:
        yield Variable("predictions/class", IMAGE, "i4", -1, "1", "class of the run, -1: none")
    if layout.base:
        yield Variable("predictions/base_output", shape, "f4", nan, "1", "output, model unsplit")
    if layout.base and layout.scores:
        yield Variable("predictions/base_class", IMAGE, "i4", -1, "1", "class, model unsplit")
    if layout.has_labels:
        yield Variable("labels/label", IMAGE, "i4", -1, "1", "true class, -1: none")
        yield Variable("labels/held_out", IMAGE, "u1", 0, "1", "1: not used in training")
