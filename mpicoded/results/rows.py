"""From an answer, a plan or labels to the arrays that stand in a results file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mpicoded.answer import Answer, Mode
from mpicoded.classes import NONE
from mpicoded.classes import classes as classes_of
from mpicoded.results.layout import EDGES, QUERIES, Layout

Array = npt.NDArray[Any]
Row = dict[str, Any]  # what one query writes, by variable


def row_of(layout: Layout, answer: Answer, offset: float, exit_taken: int) -> Row:
    """Return the row of an answer, by variable; `queries/mode` among it."""
    names = {v.path: v.path.removeprefix("queries/") for v in QUERIES}
    row = {path: getattr(answer, name) for path, name in names.items() if name != "exit"}
    for path in ("queries/arrived", "queries/seconds"):  # of another plan they may be fewer
        given, none = row[path], np.nan if path.endswith("seconds") else 0
        row[path] = np.full((layout.stages, layout.units), none, given.dtype)
        row[path][tuple(map(slice, given.shape))] = given
    row["queries/exit"] = exit_taken
    row["queries/submitted"] += offset
    row["queries/answered"] += offset
    room, images = layout.batch, layout.batch
    output = np.full((room, *layout.outputs), np.nan, "f4")
    classes = np.full(room, NONE, "i4")
    if answer.output is not None:
        given = numpy_of(answer.output)
        images = len(given)  # the last query may have fewer
        output[:images] = given
        classes[:images] = classes_of(given, layout.above) if layout.scores else NONE
    row["predictions/output"] = output
    row["predictions/mode"] = padded(_image_modes(layout, answer)[:images], room, Mode.PENDING)
    if layout.scores:
        row["predictions/class"] = classes
    return row


def _image_modes(layout: Layout, answer: Answer) -> npt.NDArray[np.uint8]:
    """Return the mode of each image: its own unit's where units are images, else the query's."""
    modes = np.full(layout.batch, answer.mode, "u1")
    if layout.owner and answer.mode == Mode.DEGRADED:
        arrived = np.asarray(answer.arrived.all(axis=0))  # (units,)
        modes[arrived[list(layout.owner)]] = Mode.AVAILABLE
    return modes


def blocks_of(rows: Sequence[tuple[int, Row]]) -> Iterator[tuple[int, list[Row]]]:
    """Group rows into runs of consecutive queries: (first query, rows)."""
    ordered = sorted(rows, key=lambda pair: pair[0])
    keyed = itertools.groupby(enumerate(ordered), key=lambda item: item[1][0] - item[0])
    for _, run in keyed:
        pairs = [pair for _, pair in run]
        yield pairs[0][0], [row for _, row in pairs]


def base_rows(layout: Layout, output: torch.Tensor | Array) -> tuple[Array, Array]:
    """Return outputs (queries, batch, ...) and classes (queries, batch) of the unsplit model."""
    given = numpy_of(output)
    queries = -(-len(given) // layout.batch)
    images = queries * layout.batch
    outputs = padded(given, images, np.nan).reshape(queries, layout.batch, *layout.outputs)
    found = classes_of(given, layout.above) if layout.scores else np.full(len(given), NONE)
    return outputs, padded(found, images, NONE).reshape(queries, layout.batch)


def plan_data(layout: Layout, plan: Sequence[Mapping[str, Any]], table: str) -> Row:
    """Return the variables of the group `plan`."""
    shape = (layout.stages, layout.units)
    names = ("rank", "flops", "bytes_in", "bytes_out")
    data: Row = {name: np.zeros(shape, "i8") for name in names}
    data |= {name: np.zeros((*shape, len(EDGES)), "i8") for name in ("input", "output")}
    for entry in plan:
        for name, array in data.items():
            array[entry["stage"], entry["unit"]] = entry[name]
    data |= {"table": np.array(table, object), "edge": np.array(EDGES, object)}
    return {f"plan/{name}": array for name, array in data.items()}


def by_query(layout: Layout, values: npt.ArrayLike, fill: int) -> Array:
    """(images,) -> (queries, batch); the images that the last query lacks get ``fill``."""
    images = np.asarray(values).reshape(-1).astype("i4")
    room = padded(images, layout.queries * layout.batch, fill)
    return room.reshape(layout.queries, layout.batch)


def padded(values: Array, rows: int, fill: float) -> Array:
    """Make ``values`` ``rows`` long on axis 0, with ``fill`` at the end."""
    room = np.full((rows, *values.shape[1:]), fill, values.dtype)
    room[: len(values)] = values
    return room


def numpy_of(output: torch.Tensor | Array) -> Array:
    """Return an output as float32 on the host."""
    if isinstance(output, torch.Tensor):
        output = output.detach().cpu().numpy()
    return output.astype("f4", copy=False)
