"""CIFAR-10: pickled batches in a folder or an archive, read without running anything in them."""

import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.datasets.data import THINGS, Data, check_labels
from mpicoded.datasets.store import cache, find
from mpicoded.errors import DataError
from mpicoded.outputs import whole
from mpicoded.paths import open_regular

FORMS = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-python.tar.xz")
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
BATCH_LIMIT = 64 << 20  # bytes; the published ones have 31 MB
LIMIT = 512 << 20  # bytes of an archive, unpacked; the published one has 186 MB

SHOWN = 300  # characters of an error
BROKEN = (tarfile.TarError, OSError, EOFError, ValueError, lzma.LZMAError, zlib.error, MemoryError)

Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def read(split: str) -> Data:
    """Read at least the images of ``split``."""
    parts = ("train", "test") if split == "all" else (split,)
    path = find("cifar-10", FORMS)
    if path.is_dir():
        found = _batches(path, [name for part in parts for name in BATCHES[part]])
        arrays = {part: _join(found, part) for part in parts}
    else:
        arrays = _unpacked(path, parts)
    images = np.concatenate([arrays[part][0] for part in parts])  # (N, 3, 32, 32)
    labels = np.concatenate([arrays[part][1] for part in parts])
    held_out = np.repeat([part == "test" for part in parts], [len(arrays[p][0]) for p in parts])
    return Data(images, labels, held_out, THINGS, "cifar-10")


def _unpacked(archive: Path, parts: tuple[str, ...]) -> dict[str, Batch]:
    """Read the copy of the archive that the cache holds, after making it where there is none."""
    stat = archive.stat()
    kept = cache() / "cifar-10" / f"unpacked-{stat.st_size}-{stat.st_mtime_ns}.npz"
    if not kept.exists():
        found = _batches(archive, BATCHES["train"] + BATCHES["test"])
        (train, train_labels), (test, test_labels) = (_join(found, part) for part in BATCHES)
        _keep(
            kept, train_images=train, train_labels=train_labels, test_images=test,
            test_labels=test_labels,
        )  # fmt: skip
    try:
        with open(kept, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {part: (file[f"{part}_images"], file[f"{part}_labels"]) for part in parts}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{kept} is damaged ({error}); delete it and start again.") from error


def _keep(path: Path, **arrays: Any) -> None:
    """Write an .npz all at once, so that no other process ever finds half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as part, part.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise DataError(
            f"cannot keep the unpacked data set in {path.parent}: {error}. "
            "Set MPICODED_CACHE to a folder that can be written."
        ) from error


def _join(found: dict[str, Batch], part: str) -> Batch:
    batches = [found[name] for name in BATCHES[part]]
    return np.concatenate([b[0] for b in batches]), np.concatenate([b[1] for b in batches])


def _batches(path: Path, names: list[str]) -> dict[str, Batch]:
    try:
        files = _folder_files(path, names) if path.is_dir() else _archive_files(path, names)
        found = {name: _batch(raw, f"{path}: {name}") for name, raw in files}
    except BROKEN as error:
        raise DataError(f"{path} is damaged or cut short ({error}); fetch it again.") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; fetch it again.")
    return found


def _folder_files(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        if (path / name).is_file():
            _check_size((path / name).stat().st_size, f"{path}: {name}")
            yield name, (path / name).read_bytes()


def _archive_files(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Read the wanted files where they stand; nothing is written under a name from the archive."""
    unpack = lzma.open if path.suffix == ".xz" else gzip.open
    with (
        open_regular(path) as packed,
        unpack(packed) as plain,
        tarfile.open(fileobj=_Limited(plain, path), mode="r|") as archive,
    ):
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in names and member.isreg():
                _check_size(member.size, f"{path}: {name}")
                file = archive.extractfile(member)
                assert file is not None  # a regular file has content
                yield name, file.read()


class _Limited(io.RawIOBase):
    """An unpacked archive, which may have any length, up to a limit."""

    def __init__(self, plain: Any, path: Path) -> None:
        self.plain, self.path, self.left = plain, path, LIMIT

    def read(self, size: int = -1) -> bytes:
        """Read; DataError beyond the limit."""
        raw: bytes = self.plain.read(size)
        self.left -= len(raw)
        if self.left < 0:
            raise DataError(f"{self.path} unpacks to more than {LIMIT} bytes; fetch it again.")
        return raw


def _check_size(size: int, what: str) -> None:
    if size > BATCH_LIMIT:
        raise DataError(f"{what} has {size} bytes, more than the {BATCH_LIMIT} of any CIFAR batch.")


def _batch(raw: bytes, what: str) -> Batch:
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        images = content[b"data"].values.reshape(-1, 3, 32, 32)
        numbers = content[b"labels"]
        if not all(type(number) is int for number in numbers):
            raise pickle.UnpicklingError("its labels are no list of whole numbers")
        labels = np.array(numbers, np.int64)
    except Exception as error:  # a hostile or cut file raises anything
        why = repr(error)[:SHOWN]
        raise DataError(f"{what} is refused, it is no CIFAR batch: {why}.") from error
    if labels.shape != (len(images),):
        raise DataError(f"{what} has {len(images)} images but labels {labels.shape}.")
    return images, check_labels(labels, what, 10)


class _Dtype:
    """Stands for numpy.dtype while a batch is read."""

    def __init__(self, code: object, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """Bytes have no order."""


class _Bytes:
    """Stands for numpy.ndarray while a batch is read: numpy never sees the file's own state."""

    def __init__(self, *_: object) -> None:
        self.values: npt.NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, raw = state
        if dtype.code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"its array is of {dtype.code!r}, not of bytes")
        self.values = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Bytes,
    ("numpy._core.multiarray", "_reconstruct"): _Bytes,
    ("numpy", "ndarray"): _Bytes,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle._Unpickler):
    """Reads plain data, none of which can run; Python's own reader, as C's may take gigabytes."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever is not a plain array."""
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image needs")
        return STAND_INS[module, name]


def _with_plain_keys(opcode: bytes) -> None:
    """Let only strings be keys: the hash of a tuple of tuples may take for ever."""
    load = _Unpickler.dispatch[opcode[0]]

    def checked(self: Any) -> None:
        keys = self.stack[-2:-1] if opcode == pickle.SETITEM else self.stack[::2]
        if not all(isinstance(key, str | bytes) for key in keys):
            raise pickle.UnpicklingError("its keys are no names")
        load(self)

    _Unpickler.dispatch[opcode[0]] = checked


for _opcode in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT):
    _with_plain_keys(_opcode)
for _opcode in (pickle.EMPTY_SET, pickle.FROZENSET):
    del _Unpickler.dispatch[_opcode[0]]
