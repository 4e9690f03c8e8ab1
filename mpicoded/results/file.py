"""The HDF5 side of a results file: make it whole, open it, lock it, name its errors."""

from __future__ import annotations

import errno
import fcntl
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpicoded.errors import ResultsError
from mpicoded.results.layout import TEXT, Layout, Variable, variables

FORMAT = "mpicoded results 1"
# An old superblock on purpose: newer ones say "open for writing", and for ever if the writer dies.
VERSION = ("v108", "v108")
METADATA = 1 << 18  # bytes, more than ever seen
# dimensions that are simply counted
COORDINATES = ("query", "stage", "unit", "image", "rank", "epoch", "candidate", "case", "row")
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable. %10d"  # netCDF-4 says so


def build(path: Path, layout: Layout, attrs: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Make the whole file of a run; ``data`` (arrays or data sets) may be smaller than it."""
    make(path, list(variables(layout)), layout.sizes, {"format": FORMAT, **attrs}, data)


def make(
    path: Path,
    table: Sequence[Variable],
    sizes: Mapping[str, int],
    attrs: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Make a file of these variables beside ``path``, see it onto the disk, then give it its name.

    ``sizes`` are of the dimensions; ``data`` (arrays or data sets by variable) may be smaller.
    """
    part = path.with_name(path.name + ".part")
    try:
        _reserve(part, table, sizes)
        with h5py.File(part, "w", libver=VERSION, locking=False) as file:
            file.attrs.update(attrs)
            for variable in table:
                dataset = _declare(file, variable, sizes)
                if variable.path in data:
                    value = data[variable.path]
                    dataset[tuple(slice(n) for n in value.shape)] = value[...]
            file.flush()
            os.fsync(file.id.get_vfd_handle())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _reserve(part: Path, table: Sequence[Variable], sizes: Mapping[str, int]) -> None:
    """Raise OSError if the disk has no room for the file: HDF5 itself does not survive that."""
    numbers = [v for v in table if v.dtype != TEXT]
    room = [math.prod(sizes[d] for d in v.dims) * np.dtype(v.dtype).itemsize for v in numbers]
    with part.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, sum(room) + METADATA)


def _declare(file: h5py.File, variable: Variable, sizes: Mapping[str, int]) -> h5py.Dataset:
    """Make one variable at full size, its space taken and filled, on its dimension scales."""
    shape = tuple(sizes[d] for d in variable.dims)
    if variable.dtype == TEXT:
        dataset = file.create_dataset(variable.path, shape, h5py.string_dtype())
        dataset[...] = ""
    else:
        dtype = np.dtype(variable.dtype)
        space = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        space.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        space.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
        space.set_fill_value(np.array(variable.fill, dtype))
        dataset = file.create_dataset(variable.path, shape, dtype, dcpl=space)
        if not shape:  # a scalar gets its space only now, whatever alloc_time says
            dataset[()] = variable.fill
    dataset.attrs.update({"units": variable.units, "long_name": variable.long_name})
    if variable.flags:
        dataset.attrs["flag_values"] = np.array(list(variable.flags), variable.dtype)
        dataset.attrs["flag_meanings"] = " ".join(f.name.lower() for f in variable.flags)
    _attach(dataset, variable, sizes)
    return dataset


def _attach(dataset: h5py.Dataset, variable: Variable, sizes: Mapping[str, int]) -> None:
    name = variable.path.rpartition("/")[2]
    if variable.dims == (name,):
        dataset.make_scale(name)
        return
    for axis, dim in enumerate(variable.dims):
        group = dataset.parent
        if dim not in group:
            _scale(group, dim, sizes[dim])
        dataset.dims[axis].attach_scale(group[dim])


def _scale(group: h5py.Group, dim: str, size: int) -> None:
    if dim in COORDINATES:
        scale = group.create_dataset(dim, data=np.arange(size, dtype="i8"))
        scale.attrs.update({"units": "1", "long_name": f"number of the {dim}"})
        scale.make_scale(dim)
    else:
        scale = group.create_dataset(dim, (size,), ">f4")
        scale.make_scale(NO_VARIABLE % size)


def open_file(path: Path, mode: str) -> h5py.File:
    """Open the file without HDF5's own lock, which would keep readers out."""
    if path.is_file() and not path.stat().st_size:  # HDF5 would make a file of it
        raise ResultsError(
            f"{path}: is empty, not an HDF5 file; name another, or run again with --overwrite"
        )
    try:
        return h5py.File(path, mode, locking=False)
    except FileNotFoundError:
        raise ResultsError(f"{path}: there is no such results file") from None
    except OSError as error:
        whys = {"truncated file": f"is cut short, {path.stat().st_size} bytes are left of it"}
        whys["signature not found"] = "is not an HDF5 file"
        why = next((why for text, why in whys.items() if text in str(error)), None)
        if why is None:
            raise
        hint = "name another file, or run again with --overwrite"
        raise ResultsError(f"{path}: {why}; {hint}") from None


def layout_of(path: Path, file: h5py.File) -> Layout:
    """Return the layout of an open file; ResultsError if it is none of ours."""
    found = file.attrs.get("format", "")
    if found == FORMAT:
        return Layout.parse(file.attrs["layout"])
    kind = f"has the format {found!r}" if found else "is HDF5, but no results file of mpicoded"
    raise ResultsError(f"{path}: {kind}; expected {FORMAT!r}")


def open_to_write(path: Path) -> tuple[h5py.File, Layout]:
    """Open a file that is there, alone in writing it."""
    file = open_file(path, "r+")
    try:
        layout = layout_of(path, file)
        lock(path, file.id.get_vfd_handle())
    except BaseException:
        file.close()
        raise
    return file, layout


def lock(path: Path, descriptor: int) -> None:
    """Keep a second writer out while this process has the file; readers do not mind this lock."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a file system without locks
            raise ResultsError(f"{path}: another process is writing it; wait for its end") from None


def check_idle(path: Path) -> None:
    """Raise ResultsError if another process is writing this file; it need not exist."""
    if path.is_file():
        with path.open("r+b") as file:
            lock(path, file.fileno())


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn what the system says into an error that names the file."""
    try:
        yield
    except PermissionError:
        raise ResultsError(f"{path}: no permission; name another file in [results]") from None
    except KeyError as error:
        raise ResultsError(f"{path}: is damaged, or of another version ({error})") from None
    except (OSError, RuntimeError) as error:  # h5py raises either
        number = getattr(error, "errno", None)
        why = os.strerror(number) if number else str(error)
        other = getattr(error, "filename", None)
        why += f" ({other})" if other not in (None, str(path)) else ""
        raise ResultsError(f"{path}: cannot be written or read: {why}") from error
