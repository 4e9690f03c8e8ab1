"""Images, labels and a held-out part in HDF5 files, which must hold all of it themselves.

A file from elsewhere may lead to other files (external links, external storage, virtual data sets),
or have chunks that unpack to more than they should; such are refused before anything is read.
"""

import zlib
from collections.abc import Iterator
from itertools import islice, product
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np

from mpicoded.datasets.data import CLASSES_MOST, Data, check_labels, no_image
from mpicoded.datasets.slabs import Rows, check_kind, check_room, fill
from mpicoded.errors import DataError
from mpicoded.paths import check_regular
from mpicoded.room import MUCH

HOPS = 16  # links on the way to a data set
SHOWN = 12  # names in an error
BLOCK = 1 << 20  # values of held_out read at once
CHUNK = 128 << 20  # bytes of a chunk, unpacked
CHUNKS = 1_000_000  # chunks that are looked at one by one
SLACK = 1 << 16  # bytes that packing may add
INFLATES = 1032  # times that deflate packs zeros


def read(
    path: Path, dataset: str, split: str, limit: int | None, size: tuple[int, int] | None,
    source: str,
) -> Data:  # fmt: skip
    """Read the first ``limit`` images of ``split``, and their "labels" and "held_out" if there."""
    import h5py

    stored = check_regular(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            node = _find(file, dataset, path)
            if node is None:
                held = ", ".join(_names(file)) or "none"
                raise DataError(f"{path} has no data set {dataset!r}; it has: {held}.")
            what = f"{path}:{dataset}"
            shape: tuple[int, ...] = node.shape or ()
            check_kind(node.dtype, shape, what)
            rows, held_out = _rows(file, split, limit, shape[0], path, stored)
            labels = _column(file, "labels", "iu", shape[0], path)
            if not len(rows):
                raise no_image(source, split, 0 if split == "test" else shape[0], shape[0])
            _check_stored(node, int(rows[0]), int(rows[-1]) + 1, what)
            images = fill(
                lambda a, b: node[a:b], rows, shape, size, stored, what, (node.chunks or (1,))[0]
            )
            values = None if labels is None else _picked(labels, rows, f"{path}:labels")
    except DataError:
        raise
    except Exception as error:  # h5py raises many kinds
        raise _unreadable(path, error) from error
    if values is None:
        return Data(images, None, held_out, (), source)
    numbers = check_labels(values, str(path), CLASSES_MOST, rows)
    classes = tuple(map(str, range(int(numbers.max()) + 1)))
    return Data(images, numbers, held_out, classes, source)


def _unreadable(path: Path, error: Exception) -> DataError:
    why = " ".join(str(error).split())
    if "lock" in why and "file" in why and "unable to lock" in why.lower():
        return DataError(
            f"{path}: the file system cannot lock it ({why}), which is not needed to read: unset "
            "HDF5_USE_FILE_LOCKING, or set it to FALSE."
        )
    if "already open for" in why:
        return DataError(
            f"{path}: a program is writing it, or died while it was ({why}); close it there, or "
            "run h5clear -s on it."
        )
    return DataError(
        f"{path} is not a whole HDF5 file ({why or type(error).__name__}); copy it again, or name "
        "another."
    )


def _find(file: Any, name: str, path: Path) -> Any:
    """Return data set ``name``, None if the file has none; links are followed within the file."""
    import h5py

    parts, node, hops = name.split("/")[::-1], file, 0
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        link = node.get(part, getlink=True) if isinstance(node, h5py.Group) else None
        if link is None:
            if hops:
                why = f"is a link, and {part!r} on its way is not there"
                raise DataError(f"{path}: {name!r} {why}.")
            return None
        if isinstance(link, h5py.HardLink):
            node = node[part]
            continue
        hops += 1
        if not isinstance(link, h5py.SoftLink):
            other = getattr(link, "filename", "elsewhere")
            raise _outside(path, name, f"is a link into another file, {other!r}")
        if hops > HOPS:
            raise DataError(f"{path}: {name!r} is a link, and its links lead in a circle.")
        node = file if link.path.startswith("/") else node
        parts += link.path.split("/")[::-1]
    if not isinstance(node, h5py.Dataset):
        return None
    if node.is_virtual:
        raise _outside(path, name, "is a virtual data set, made of others")
    if node.external:
        raise _outside(path, name, f"keeps its values in another file, {node.external[0][0]!r}")
    return node


def _outside(path: Path, name: str, how: str) -> DataError:
    return DataError(
        f"{path}: {name!r} {how}; an input holds its own data: copy the values into one file."
    )


def _names(file: Any) -> Iterator[str]:
    """Yield the first data sets of the file itself."""
    import h5py

    own = (name for name in file if isinstance(file.get(name, getlink=True), h5py.HardLink))
    found = (name for name in own if isinstance(file[name], h5py.Dataset))
    for number, name in enumerate(islice(found, SHOWN + 1)):
        yield name if number < SHOWN else "…"


def _column(file: Any, name: str, kinds: str, count: int, path: Path) -> Any:
    """Return data set ``name``, one value an image, or None where the file has none."""
    if file.get(name, getlink=True) is None:
        return None
    column = _find(file, name, path)
    shape = None if column is None else column.shape
    if column is None or shape != (count,) or column.dtype.kind not in kinds:
        what = "a group" if column is None else f"{column.dtype} {shape}"
        wanted = "bool" if kinds == "b" else "integers"
        raise DataError(f"{path}: {name!r} is {what}; {count} images need {wanted} ({count},).")
    return column


def _rows(
    file: Any, split: str, limit: int | None, count: int, path: Path, stored: int
) -> tuple[Rows, Any]:
    """Return which images of the file are asked for, and which of them are held out."""
    column = _column(file, "held_out", "b", count, path)
    wanted = count if limit is None else min(limit, count)
    check_room(8 * wanted, stored, str(path))  # for the numbers of the images alone
    if column is None or split == "all":
        rows = np.arange(0 if split == "test" and column is None else min(count, wanted))
        held = np.zeros(len(rows), bool)
        return rows, held if column is None else _picked(column, rows, f"{path}:held_out")
    rows = np.empty(0, np.int64)
    for first in range(0, count, BLOCK):
        last = min(first + BLOCK, count)
        _check_stored(column, first, last, f"{path}:held_out")
        part = first + np.flatnonzero(column[first:last] == (split == "test"))
        rows = np.concatenate((rows, part))[:wanted]
        if len(rows) == wanted:
            break
    return rows, np.full(len(rows), split == "test")


def _picked(column: Any, rows: Rows, what: str) -> Any:
    """Return the values of ``rows``."""
    if not len(rows):
        return np.empty(0, column.dtype)
    first, last = int(rows[0]), int(rows[-1]) + 1
    _check_stored(column, first, last, what)
    return np.concatenate(
        [
            column[a : min(a + BLOCK, last)][rows[(rows >= a) & (rows < a + BLOCK)] - a]
            for a in range(first, last, BLOCK)
        ]
    )


def _check_stored(node: Any, first: int, last: int, what: str) -> None:
    """Raise DataError unless rows [first, last) were written, and unpack to their size."""
    if node.chunks is None:
        if node.id.get_storage_size() == 0:
            raise _unwritten(what, first)
        return
    nominal = prod(node.chunks) * node.dtype.itemsize
    if nominal > CHUNK:
        raise DataError(
            f"{what} has chunks of {nominal:,} bytes, more than {CHUNK:,}; write it again with "
            f"smaller ones, such as chunks=(1, {', '.join(map(str, node.shape[1:]))})."
        )
    starts = [range(first - first % node.chunks[0], last, node.chunks[0])]
    starts += [range(0, n, step) for n, step in zip(node.shape[1:], node.chunks[1:], strict=True)]
    if prod(map(len, starts)) > CHUNKS:
        whole = prod(ceil(n / step) for n, step in zip(node.shape, node.chunks, strict=True))
        raise DataError(
            f"{what} has {whole:,} chunks of {nominal} bytes, too many to read; write it again "
            "with larger ones."
        )
    for place in product(*starts):
        info = node.id.get_chunk_info_by_coord(place)
        if info.byte_offset is None or not info.size:
            raise _unwritten(what, place[0])
        if info.size > nominal + SLACK or (
            node.compression == "gzip"
            and info.size * INFLATES > MUCH
            and _inflated(node, place, nominal) > nominal
        ):
            raise DataError(
                f"{what}: the chunk at {place} unpacks to more than its {nominal:,} bytes; the "
                "file is damaged: copy it again."
            )


def _inflated(node: Any, place: tuple[int, ...], most: int) -> int:
    """Return to how many bytes a chunk unpacks, and look no further than one beyond ``most``."""
    _, raw = node.id.read_direct_chunk(place)
    try:
        return len(zlib.decompressobj().decompress(raw, most + 1))
    except zlib.error:
        return 0  # HDF5 will say what is wrong


def _unwritten(what: str, row: int) -> DataError:
    return DataError(
        f"{what}: the values of image {row} were never written; end what was writing the file, or "
        "set limit in [input]."
    )
