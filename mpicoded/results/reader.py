"""A results file as plain arrays, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mpicoded.results.file import layout_of, named, open_file
from mpicoded.results.layout import Layout, Status, variables
from mpicoded.trace import EVENT

Array = npt.NDArray[Any]


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
    with named(path), open_file(path, "r") as file:
        layout = layout_of(path, file)
        groups: dict[str, dict[str, Array]] = {"plan": {}, "cluster": {}, "labels": {}}
        groups |= {"queries": {}, "predictions": {}}
        count = int(file["trace/events"][()])  # before its rows, and mode before a query's:
        for variable in reversed(list(variables(layout))):  # so what counts is complete
            group, _, name = variable.path.rpartition("/")
            if group in groups and variable.path in file:  # an older file may lack some
                groups[group][name] = array_of(file[variable.path])
        events = np.zeros(count, EVENT)
        for name in EVENT.names or ():
            events[name] = file[f"trace/{name}"][:count]
        finished = int(file["status"][()]) == Status.FINISHED
        attrs = dict(file.attrs)
    size = path.stat().st_size
    return Loaded(path, attrs, layout, finished, size, events=events, **groups)


def array_of(dataset: h5py.Dataset) -> Array:
    """Return a data set as a plain array, text as str."""
    if h5py.check_string_dtype(dataset.dtype):
        return np.asarray(dataset.asstr()[()], object)
    return np.asarray(dataset[()])
