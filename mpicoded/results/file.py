"""The HDF5 side of a results file: make it whole, open it, lock it, name its errors."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from mpicoded import seal
from mpicoded.errors import ResultsError
from mpicoded.outputs import whole
from mpicoded.results.checks import blocks
from mpicoded.results.layout import TEXT, Layout, Variable, overwritten, variables

Array = npt.NDArray[Any]
FORMAT = "mpicoded results 2"
# An old superblock on purpose: newer ones say "open for writing", and for ever if the writer dies.
VERSION = ("v108", "v108")
METADATA = 1 << 18  # bytes, more than ever seen
# dimensions that are simply counted
COORDINATES = ("query", "stage", "unit", "image", "rank", "epoch", "candidate", "case", "row")
SEAL = Variable("seal", ("byte",), "u1", 0, "1", "checksum of all that a run does not overwrite")
PLAIN = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)  # of attributes
CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - set(b"\t\n\r"), "?")  # of a terminal
HINT = "name another file, or run again with --overwrite"
POINTER = 16  # bytes of a text where its variable lies
MOST_TEXT = 1 << 26  # characters of a variable
MOST_TEXTS = 1 << 18  # a start of 4,096 ranks, 64 times
NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable. %10d"  # netCDF-4 says so


def build(
    path: Path,
    layout: Layout,
    attrs: Mapping[str, Any],
    data: Mapping[str, Any],
    overwrite: bool = True,
) -> None:
    """Make the whole file of a run; ``data`` (arrays or data sets) may be smaller than it."""
    table, about = list(variables(layout)), {"format": FORMAT, **attrs}
    free = [v.path for v in overwritten(layout)]
    make(path, table, layout.sizes, about, data, free, overwrite)


def make(
    path: Path,
    table: Sequence[Variable],
    sizes: Mapping[str, int],
    attrs: Mapping[str, Any],
    data: Mapping[str, Any],
    free: Sequence[str] = (),
    overwrite: bool = True,
) -> None:
    """Make a file of these variables beside ``path``, see it onto the disk, then give it its name.

    ``sizes`` are of the dimensions; ``data`` (arrays or data sets by variable) may be smaller.
    The variables ``free`` may be overwritten later; all else is sealed.
    """
    with whole(path, overwrite) as part:
        _reserve(part, table, sizes)
        with h5py.File(part, "w", libver=VERSION, locking=False) as file:
            _declare(file, SEAL, {"byte": seal.SIZE})  # the first thing in the file
            file.attrs.update(attrs)
            for variable in table:
                dataset = _declare(file, variable, sizes)
                if variable.path in data:
                    _copy(data[variable.path], dataset)
            ids = [file[name].id for name in free]
            spans = [(i.get_offset(), size) for i in ids if (size := i.get_storage_size())]
            at = file[SEAL.path].id.get_offset()
        with part.open("r+b") as raw:
            seal.seal(raw.fileno(), at, spans)


def _copy(value: Any, dataset: h5py.Dataset) -> None:
    """Copy an array or data set, which may be smaller and need not fit into memory."""
    if not value.ndim:
        dataset[...] = value[...]
        return
    rest = tuple(slice(n) for n in value.shape[1:])
    for _, block in blocks([value], np.ones(len(value), bool), most=len(value)):
        part = value[block]
        dataset[(slice(block.start, block.start + len(part)), *rest)] = part


def _reserve(part: Path, table: Sequence[Variable], sizes: Mapping[str, int]) -> None:
    """Raise OSError if the disk has no room for the file: HDF5 itself does not survive that."""
    numbers = [v for v in table if v.dtype != TEXT]
    room = [math.prod(sizes[d] for d in v.dims) * np.dtype(v.dtype).itemsize for v in numbers]
    with part.open("r+b") as file:
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
    """Open a file whose seal is whole, without HDF5's own lock, which would keep readers out."""
    try:
        why = seal.broken(path)
    except FileNotFoundError:
        raise ResultsError(f"{path}: there is no such results file") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        why = str(error.strerror)
    if why:
        raise ResultsError(f"{path}: {why}; {HINT}")
    return h5py.File(path, mode, locking=False)


def attributes(path: Path, file: h5py.File) -> dict[str, Any]:
    """Return the root attributes: texts and single numbers, so many as a file has of ours."""
    ids = [h5py.h5a.open(file.id, index=i) for i in range(min(h5py.h5a.get_num_attrs(file.id), 99))]
    if any(each.shape or each.get_type().get_class() not in PLAIN for each in ids):
        raise ResultsError(f"{path}: has attributes that no results file has; name another")
    names = [each.name.decode(errors="replace") for each in ids]
    found = {name: file.attrs[name] for name in names}
    return {k: v.translate(CONTROLS) if isinstance(v, str) else v for k, v in found.items()}


def dataset(
    file: h5py.File, variable: Variable, sizes: Mapping[str, int] | None = None
) -> h5py.Dataset:
    """Return the data set of a variable, which lies in the file itself, whole and unpacked.

    ValueError if it is a link, lies elsewhere, is packed, or has another type or, with ``sizes``,
    shape.
    """
    found: Any = file
    for name in variable.path.split("/"):
        link = found.get(name, getlink=True) if isinstance(found, h5py.Group) else None
        if not isinstance(link, h5py.HardLink):
            raise ValueError(f"{variable.path} is missing or a link")
        found = found[name]
    if not isinstance(found, h5py.Dataset) or found.shape is None or not _plain(found, variable):
        raise ValueError(f"{variable.path} is not stored as a run stores it")
    if sizes is not None and found.shape != tuple(sizes[d] for d in variable.dims):
        raise ValueError(f"{variable.path} has the shape {found.shape}")
    return found


def _plain(found: h5py.Dataset, variable: Variable) -> bool:
    how = found.id.get_create_plist()
    if how.get_layout() != h5py.h5d.CONTIGUOUS or how.get_external_count():
        return False
    if variable.dtype == TEXT:
        right, item = h5py.check_string_dtype(found.dtype) is not None, POINTER
    else:
        right, item = found.dtype == np.dtype(variable.dtype), found.dtype.itemsize
    taken = math.prod(found.shape) * item
    return right and found.ndim == len(variable.dims) and found.id.get_storage_size() == taken


def array_of(found: h5py.Dataset) -> Array:
    """Return a data set as a plain array, text as str."""
    if not h5py.check_string_dtype(found.dtype):
        return np.asarray(found[()])
    if found.size > MOST_TEXTS:
        raise ValueError(f"{found.name} holds {found.size} texts, more than {MOST_TEXTS}")
    texts, room = np.empty(found.shape, object), MOST_TEXT
    for index in np.ndindex(found.shape):  # one by one: many may be the same long one
        texts[index] = found.asstr()[index].translate(CONTROLS)
        room -= len(texts[index])
        if room < 0:
            raise ValueError(f"{found.name} is longer than {MOST_TEXT} characters")
    return texts


def layout_of(path: Path, file: h5py.File) -> Layout:
    """Return the layout of an open file; ResultsError if it is none of ours."""
    about = attributes(path, file)
    found = about.get("format", "")
    if found == FORMAT:
        return Layout.parse(about["layout"])  # ValueError if it is none
    kind = f"has the format {found!r}" if found else "is HDF5, but no results file of mpicoded"
    raise ResultsError(f"{path}: {kind}; expected {FORMAT!r}")


def open_to_write(path: Path) -> tuple[h5py.File, Layout]:
    """Open a file that is there; nobody else may be writing it."""
    file = open_file(path, "r+")
    try:
        return file, layout_of(path, file)
    except BaseException:
        file.close()
        raise


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the file."""
    try:
        yield
    except PermissionError:
        raise ResultsError(f"{path}: no permission; name another file in [results]") from None
    except (OSError, RuntimeError) as error:  # h5py raises either
        number = getattr(error, "errno", None)
        why = os.strerror(number) if number else str(error)
        other = getattr(error, "filename", None)
        why += f" ({other})" if other not in (None, str(path)) else ""
        raise ResultsError(f"{path}: cannot be written or read: {why}") from error


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn an error that wrong content causes in its reader into one that names the file."""
    with named(path):
        try:
            yield
        except (KeyError, ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
            why = str(error) or type(error).__name__
            raise ResultsError(
                f"{path}: is damaged, or of another version ({why}); {HINT}"
            ) from None
