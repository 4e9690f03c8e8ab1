"""Arrays of images in .npy files."""

from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from mpicoded.datasets.data import Data, no_image
from mpicoded.datasets.slabs import check_kind, check_room, fill
from mpicoded.errors import DataError
from mpicoded.paths import open_regular

LONGEST = 10_000  # bytes of a header


def npy(
    path: Path, split: str, limit: int | None, size: tuple[int, int] | None, source: str
) -> Data:
    """Read the first ``limit`` images of an .npy array; DataError if it holds none."""
    with open_regular(path) as file:
        dtype, shape, fortran = _head(file, path)
        check_kind(dtype, shape, str(path))
        start = file.tell()
        stored, needed = path.stat().st_size - start, prod(shape) * dtype.itemsize
        if stored != needed:
            raise _broken(path, f"shape {shape} of {dtype} needs {needed} bytes, it has {stored}")
        if split == "test":
            raise no_image(source, split, 0, shape[0])
        rows = np.arange(min(shape[0], limit or shape[0]))
        each = needed // shape[0]

        def read(first: int, last: int) -> npt.NDArray[Any]:
            file.seek(start + first * each)
            return _values(file, dtype, (last - first, *shape[1:]), path)

        if fortran:  # its images lie apart: there is no reading a few
            check_room(needed, stored, str(path))
            file.seek(start)
            array = _values(file, dtype, shape[::-1], path).transpose()
            images = fill(lambda a, b: array[a:b], rows, shape, size, stored, str(path))
        else:
            images = fill(read, rows, shape, size, stored, str(path))
    return Data(images, None, np.zeros(len(images), bool), (), source)


def _head(file: BinaryIO, path: Path) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    """Read the header of an .npy file."""
    begin = file.read(6)
    if begin.startswith(b"PK\x03\x04"):
        raise DataError(f"{path} is an .npz archive; save one array with numpy.save.")
    if begin != b"\x93NUMPY":
        raise _broken(path, "it does not begin like one")
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        of_version = {(1, 0): np.lib.format.read_array_header_1_0}
        reader = of_version.get(version, np.lib.format.read_array_header_2_0)
        shape, fortran, dtype = reader(file, max_header_size=LONGEST)
    except Exception as error:  # numpy raises many kinds
        raise _broken(path, str(error).split("\n")[0]) from error
    return dtype, shape, fortran


def _values(
    file: BinaryIO, dtype: np.dtype[Any], shape: tuple[int, ...], path: Path
) -> npt.NDArray[Any]:
    raw = file.read(prod(shape) * dtype.itemsize)
    if len(raw) != prod(shape) * dtype.itemsize:
        raise _broken(path, "it became shorter while it was read")
    return np.frombuffer(raw, dtype).reshape(shape)


def _broken(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not a whole .npy array of numbers ({why}); copy it again, or save it again "
        "with numpy.save."
    )
