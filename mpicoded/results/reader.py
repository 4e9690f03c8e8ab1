"""A results file as plain arrays, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results.checks import base_paths, row_paths, verify
from mpicoded.results.file import array_of, attributes, dataset, layout_of, open_file, readable
from mpicoded.results.layout import Layout, Variable, variables
from mpicoded.results.values import check_values
from mpicoded.trace import EVENT

Array = npt.NDArray[Any]
MENDS = "which answers them again and leaves damaged events out"
NEEDED = ("job", "seed", "clock", "mpi_library")  # attributes
GROUPS = ("plan", "cluster", "labels", "queries", "predictions")
# Of a file that is being written these are read first, in this order: what they tell is complete.
FIRST = ("status", "trace/events", "queries/mode", "queries/check", "predictions/base_check")


@dataclass(frozen=True)
class Loaded:
    """All of a results file as plain arrays: read-only, and the file is closed.

    The mappings are named after the groups and hold (by short name) the variables listed in
    :mod:`mpicoded.results.layout`. ``events`` is (events,) of ``EVENT``.
    """

    path: Path
    attrs: dict[str, Any]
    layout: Layout
    finished: bool
    size: int
    plan: dict[str, Array]
    cluster: dict[str, Array]
    queries: dict[str, Array]
    predictions: dict[str, Array]
    labels: dict[str, Array]
    events: npt.NDArray[np.void]


def load(path: Path) -> Loaded:
    """Read a results file, also one that is being written.

    Raises
    ------
    ResultsError
        If it is missing, damaged or no results file.
    """
    with readable(path), open_file(path, "r") as file:
        layout = layout_of(path, file)
        table = {v.path: v for v in variables(layout)}
        data: dict[str, Array] = {}
        for name in dict.fromkeys([*(name for name in FIRST if name in table), *table]):
            data[name] = array_of(dataset(file, table[name], layout.sizes))
        verdict = verify(data, layout)
        if str(verdict):
            raise ResultsError(
                f"{path}: is damaged ({verdict}); run the job with --resume, {MENDS}"
            )
        data["queries/mode"] = verdict.mode
        _fill(data, table, row_paths(layout), verdict.mode == Mode.PENDING)
        if layout.base:
            _fill(data, table, base_paths(layout), ~verdict.base)
        check_values(data, layout, verdict)
        attrs = attributes(path, file)
        if missing := [name for name in NEEDED if name not in attrs]:
            raise KeyError(f"it has no {missing[0]}")
    events = np.zeros(verdict.events, EVENT)
    for name in EVENT.names or ():
        events[name] = data[f"trace/{name}"][: verdict.events]
    finished = bool((verdict.mode != Mode.PENDING).all() and verdict.base.all())
    groups: dict[str, dict[str, Array]] = {name: {} for name in GROUPS}
    for path_, values in data.items():
        group, _, name = path_.partition("/")
        if group in groups and path_ not in FIRST[3:]:
            groups[group][name] = values
    return Loaded(path, attrs, layout, finished, path.stat().st_size, events=events, **groups)


def _fill(
    data: dict[str, Array], table: Mapping[str, Variable], paths: Sequence[str], pending: Array
) -> None:
    """Rows that do not count yet are as if never written."""
    for path in paths:
        data[path][pending] = table[path].fill
