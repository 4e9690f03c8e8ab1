"""Check the rows of a file: their checksums, and limits of their numbers.

An answer is written as its row, then the checksum of the row, then its mode; what a killed writer
did not come to is seen by that: a mode with another checksum is damage, a checksum without its mode
is an answer. The events of a trace count as far as their checksums go. Checksums do not keep out
numbers that were made to mislead: no number that counts lies outside its limits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.answer import Mode
from mpicoded.results.layout import QUERIES, Layout, Status
from mpicoded.trace import EVENT, Action

Array = npt.NDArray[Any]
ROWS = 4096  # that are read at once, if they are not long
BLOCK = 4 << 20  # bytes of them
NAMED = 5  # rows that an error names
EVER = 1e9  # seconds, 30 years
MANY = 1e18  # FLOPs and bytes


def row_paths(layout: Layout) -> list[str]:
    """Return the variables of an answer's row; `mode` is the last."""
    scores = ["predictions/class"] * layout.scores
    return ["predictions/mode", "predictions/output", *scores, *(v.path for v in QUERIES)]


def base_paths(layout: Layout) -> list[str]:
    """Return the variables of a row of the unsplit model's outputs."""
    return ["predictions/base_output", *["predictions/base_class"] * layout.scores]


def checksums(columns: Sequence[Array], first: int = 0) -> Array:
    """Return the checksum of each row of these columns, none of them 0; ``first`` is its number."""
    rows = len(columns[0])
    if not rows:
        return np.zeros(0, "u4")
    parts = [np.ascontiguousarray(c).reshape(rows, c[0].size).view("u1") for c in columns]
    size = sum(part.shape[1] for part in parts)
    raw = memoryview(np.concatenate(parts, axis=1).tobytes())
    sums = [zlib.crc32(raw[i * size : (i + 1) * size], first + i) or 1 for i in range(rows)]
    return np.array(sums, "u4")


@dataclass(frozen=True)
class Verdict:
    """The rows of a file that count, and those that are damaged.

    ``mode`` and ``base`` say of every query whose answer it has and whether its base row is there;
    ``events`` of them count. ``lost`` and ``base_lost`` are queries, ``events_lost`` events.
    """

    mode: Array
    base: Array
    events: int
    lost: Array
    base_lost: Array
    events_lost: Array
    unfinished: bool  # it says that the run came to its end, and something is pending

    def rows(self, path: str) -> Any:
        """Return the index of those rows of a variable that count, as far as it has such."""
        group, _, name = path.partition("/")
        if group == "trace":
            return np.setdiff1d(np.arange(self.events), self.events_lost)
        if name.startswith("base_"):
            return np.flatnonzero(self.base)
        return np.flatnonzero(self.mode) if group in ("queries", "predictions") else ...

    def __str__(self) -> str:
        """Name the damaged rows, "" if none is."""
        kinds = {"answers of queries": self.lost, "unsplit outputs of queries": self.base_lost}
        kinds |= {"events": self.events_lost}
        found = [f"{name} {_numbers(rows)}" for name, rows in kinds.items() if len(rows)]
        if self.unfinished and not found:
            found = [f"its run is finished and {(self.mode == 0).sum()} queries have no answer"]
        return ", ".join(found)


def verify(data: Mapping[str, Any], layout: Layout) -> Verdict:
    """Check the rows of a file; ``data`` are its variables, as arrays or data sets.

    Of a file that is being written the status, count, modes and checksums are to be read first.
    """
    finished = int(data["status"][()])
    stated = int(data["trace/events"][()])
    mode, lost = _answers(data, layout)
    base, base_lost = _base(data, layout)
    events, events_lost = _events(data, stated)
    pending = (mode == Mode.PENDING).any() or not base.all()
    return Verdict(
        mode, base, events, lost, base_lost, events_lost, finished != Status.RUNNING and pending
    )


def _answers(data: Mapping[str, Any], layout: Layout) -> tuple[Array, Array]:
    """Return the modes that count, and the queries whose rows are damaged."""
    modes, stated = data["queries/mode"][:], data["queries/check"][:]
    *paths, _ = row_paths(layout)
    held = [data[path] for path in paths]
    good = (modes == Mode.PENDING) & (stated == 0)
    for first, block in blocks(held, ~good):
        columns = [each[block] for each in held]
        for mode in (None, *filter(None, Mode)):
            found = modes[block] if mode is None else np.full(len(modes[block]), mode, "u1")
            fits = (checksums([*columns, found], first) == stated[block]) & ~good[block]
            # the checksum gives a mode that is not there yet
            fits &= (modes[block] == Mode.PENDING) if mode else (found != Mode.PENDING)
            modes[block] = np.where(fits, found, modes[block])
            good[block] |= fits
            if good[block].all():
                break
    lost = np.flatnonzero(~good | (modes > max(Mode)))
    modes[lost] = Mode.PENDING
    return modes, lost


def _base(data: Mapping[str, Any], layout: Layout) -> tuple[Array, Array]:
    """Return which rows of base outputs are there, and which of them are damaged."""
    if not layout.base:
        return np.ones(layout.queries, bool), np.zeros(0, int)
    stated = data["predictions/base_check"][:]
    held = [data[path] for path in base_paths(layout)]
    good = stated == 0
    for first, block in blocks(held, ~good):
        columns = [each[block] for each in held]
        good[block] |= checksums(columns, first) == stated[block]
    return (stated != 0) & good, np.flatnonzero(~good)


def _events(data: Mapping[str, Any], stated: int) -> tuple[int, Array]:
    """Return how many events count, and which of those are damaged.

    They are those that the file says, and those behind that were whole before it could say so.
    """
    sums = data["trace/check"]
    room = len(sums)
    bad: list[Array] = []
    count = 0
    while count < room:
        block = slice(count, count + ROWS)
        columns = [data[f"trace/{name}"][block] for name in EVENT.names or ()]
        wrong = count + np.flatnonzero(checksums(columns, count) != sums[block])
        bad.append(wrong[wrong < stated])
        behind = wrong[wrong >= stated]
        if len(behind):
            return int(behind[0]), np.concatenate(bad)
        count = min(count + ROWS, room)
    return count, np.concatenate([*bad, np.arange(room, min(stated, room + 1))])


def blocks(columns: Sequence[Any], wanted: Array, most: int = ROWS) -> Iterator[tuple[int, slice]]:
    """Iterate over the blocks of rows in which some are wanted: the first row, and all."""
    row = sum(column.dtype.itemsize * prod(column.shape[1:]) for column in columns)
    step = max(1, min(most, BLOCK // max(row, 1)))
    for first in range(0, len(wanted), step):
        if wanted[first : first + step].any():
            yield first, slice(first, first + step)


def _numbers(rows: Array) -> str:
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    return ", ".join(str(row) for row in rows[:NAMED]) + more


def limits(layout: Layout) -> dict[str, tuple[float, float]]:
    """Return the least and the largest value of a variable; NaN may stand beside them."""
    scores = layout.outputs[0] if layout.outputs else 1
    classes = (-1, max(scores - 1, 1))  # of one score alone: 0 or 1
    times = ("submitted", "answered", "latency", "encode", "gather", "decode", "head", "own")
    found: dict[str, tuple[float, float]] = {f"queries/{name}": (-EVER, EVER) for name in times}
    found |= {f"plan/{name}": (0, MANY) for name in ("flops", "bytes_in", "bytes_out")}
    return found | {
        "queries/seconds": (-EVER, EVER),
        "queries/arrived": (0, 1),
        "queries/attempts": (0, inf),
        "predictions/mode": (0, max(Mode)),
        "predictions/class": classes,
        "predictions/base_class": classes,
        "plan/rank": (-1, layout.ranks - 1),
        "cluster/began": (0, EVER),
        "trace/rank": (0, layout.ranks - 1),
        "trace/query": (-1, layout.queries - 1),
        "trace/stage": (-1, max(layout.stages - 1, 0)),
        "trace/unit": (-1, max(layout.units - 1, 0)),
        "trace/action": (1, max(Action)),
        "trace/start": (-EVER, EVER),
        "trace/stop": (-EVER, EVER),
        "trace/bytes": (0, MANY),
    }


def check_values(data: Mapping[str, Any], layout: Layout, found: Verdict) -> None:
    """Raise ValueError if a number that counts cannot be; ``data`` are arrays or data sets."""
    for path, (low, high) in limits(layout).items():
        if path not in data:
            continue
        values = data[path][: found.events] if path.startswith("trace/") else data[path][()]
        values = values[found.rows(path)]
        wrong = (values < low) | (values > high)
        if path in ("trace/start", "trace/stop"):
            wrong |= np.isnan(values)
        if wrong.any():
            raise ValueError(f"{path} {values[wrong][0]} is not in {low:g} to {high:g}")
    if not layout.starts:
        raise ValueError("no start of the run is in it")
