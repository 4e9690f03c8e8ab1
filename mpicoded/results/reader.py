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
from mpicoded.results.checks import Verdict, base_paths, blocks, check_values, row_paths, verify
from mpicoded.results.file import array_of, attributes, dataset, layout_of, open_file, readable
from mpicoded.results.layout import Layout, Variable, variables
from mpicoded.room import lack
from mpicoded.trace import EVENT

Array = npt.NDArray[Any]
MENDS = "which answers them again and leaves damaged events out"
NEEDED = ("job", "seed", "clock", "mpi_library")  # attributes
GROUPS = ("plan", "cluster", "labels", "queries", "predictions")
# Of a file that is being written these are read first, in this order: what they tell is complete.
FIRST = ("status", "trace/events", "queries/mode", "queries/check", "predictions/base_check")


OUTPUTS = ("predictions/output", "predictions/base_output")  # may not fit into memory


@dataclass(frozen=True)
class Loaded:
    """All of a results file as plain arrays: read-only, and the file is closed.

    The mappings are named after the groups and hold (by short name) the variables listed in
    :mod:`mpicoded.results.layout`. ``events`` is (events,) of ``EVENT``. Of the outputs,
    which may not be there, ``predictions`` say by image: `finite` and `base_finite`, whether all
    numbers of it are, and `apart`, the largest difference from the unsplit model's relative to its
    largest number.
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


def load(path: Path, outputs: bool = True) -> Loaded:
    """Read a results file, also one that is being written; its ``outputs`` only if wanted.

    ResultsError if it is missing, damaged or no results file, or does not fit into memory.
    """
    with readable(path), open_file(path, "r") as file:
        layout = layout_of(path, file)
        table = {v.path: v for v in variables(layout)}
        data: dict[str, Any] = {n: dataset(file, v, layout.sizes) for n, v in table.items()}
        kept = () if outputs else OUTPUTS  # as data sets
        _check_room(path, data, kept)
        for name in dict.fromkeys([*(name for name in FIRST if name in table), *table]):
            if name not in kept:
                data[name] = array_of(data[name])
        verdict = verify(data, layout)
        if str(verdict):
            raise ResultsError(
                f"{path}: is damaged ({verdict}); run the job with --resume, {MENDS}"
            )
        data["queries/mode"] = verdict.mode
        data |= _of_outputs(data, verdict)
        data = {name: values for name, values in data.items() if name not in kept}
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


def _check_room(path: Path, data: Mapping[str, Any], kept: Sequence[str]) -> None:
    """Check that these data sets fit into memory, the trace twice; of those ``kept`` no row is."""
    nbytes = sum(each.nbytes for name, each in data.items() if name not in kept)
    rows = sum(data[name].nbytes // max(len(data[name]), 1) for name in kept if name in data)
    if why := lack("numbers", 2 * (nbytes + rows), 512 * path.stat().st_blocks):
        raise ResultsError(f"{path}: {why}; read it on a machine with more")


def _of_outputs(data: Mapping[str, Any], verdict: Verdict) -> dict[str, Array]:
    """Return the report's numbers on outputs, by image; rows that do not count are not finite."""
    held = [data[path] for path in OUTPUTS if path in data]
    counted = [verdict.mode != Mode.PENDING, verdict.base]
    finite = [np.zeros(each.shape[:2], bool) for each in held]
    apart = np.full(held[0].shape[:2], np.nan, "f4")
    wanted = np.any(counted[: len(held)], axis=0)
    for _, block in blocks(held, wanted):
        parts = [each[block].reshape(*apart[block].shape, -1) for each in held]
        for part, found, rows in zip(parts, finite, counted, strict=False):
            found[block] = np.isfinite(part).all(-1) & rows[block, None]
        if len(parts) > 1:
            output, base = parts
            largest = np.maximum(np.abs(base).max(-1), np.finfo("f4").tiny)
            known = counted[0][block] & counted[1][block]
            apart[block][known] = (np.abs(output - base).max(-1) / largest)[known]
    names = ("predictions/finite", "predictions/base_finite")
    return dict(zip(names, finite, strict=False)) | {"predictions/apart": apart}


def _fill(
    data: dict[str, Any], table: Mapping[str, Variable], paths: Sequence[str], pending: Array
) -> None:
    """Rows that do not count yet are as if never written."""
    for path in paths:
        if path in data:
            data[path][pending] = table[path].fill
