"""Files that are written whole: the course of a training, an evaluation.

They share the conventions of a run's file (dimension scales, units, long names, versions of
everything in the root attributes), and say in ``format`` what they are.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import torch

from mpicoded.errors import ResultsError
from mpicoded.results.file import (
    array_of,
    attributes,
    dataset,
    make,
    named,
    open_file,
    readable,
)
from mpicoded.results.layout import Variable

Array = npt.NDArray[Any]
OF_A_RUN = ("clock", "mpi_library", "commit")  # attributes that nothing else has


@dataclass(frozen=True)
class Form:
    """One kind of file: its ``format``, and its variables."""

    name: str
    variables: tuple[Variable, ...]


def write(
    path: Path,
    form: Form,
    sizes: Mapping[str, int],
    attrs: Mapping[str, Any],
    data: Mapping[str, Sequence[Any] | Array],
) -> None:
    """Write a whole file in one go; there is the old one or the new one, never a part.

    ResultsError if it cannot be written.
    """
    about = {k: v for k, v in versions().items() if k not in OF_A_RUN} | dict(attrs)
    with named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {key: _array(values) for key, values in data.items()}
        make(path, form.variables, sizes, about | {"format": form.name}, arrays)


def read(path: Path, form: Form) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the attributes and the variables of a file of this form.

    ResultsError if it is missing, damaged or of another form.
    """
    with readable(path), open_file(path, "r") as file:
        attrs = attributes(path, file)
        found = attrs.get("format", "")
        if found != form.name:
            raise ResultsError(f"{path}: has the format {found!r}; expected {form.name!r}")
        data, sizes = {}, dict[str, int]()
        for variable in form.variables:
            values = array_of(dataset(file, variable))
            for dim, size in zip(variable.dims, values.shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise ValueError(f"{variable.path} has {size} of {dim}, not {sizes[dim]}")
            data[variable.path] = values
        return attrs, data


def format_of(path: Path) -> str:
    """Return the ``format`` of an HDF5 file, "" if it has none.

    ResultsError if there is no such file, or it is no HDF5 file.
    """
    with readable(path), open_file(path, "r") as file:
        return str(attributes(path, file).get("format", ""))


def _array(values: Sequence[Any] | Array) -> Array:
    text = len(values) > 0 and isinstance(values[0], str)
    return np.asarray(values, object if text else None)


def versions() -> dict[str, str]:
    """Return the root attributes that the run itself need not know."""
    packages = {f"{name}_version": _version(name) for name in ("mpicoded", "mpi4py")}
    return packages | {
        "Conventions": "CF-1.8",
        "python_version": platform.python_version(),
        "torch_version": str(torch.__version__),
        "numpy_version": np.__version__,
        "h5py_version": h5py.__version__,
        "hdf5_version": h5py.version.hdf5_version,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "clock": "wall",  # or "simulated"
        "mpi_library": "unknown",
        "commit": "unknown",
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
