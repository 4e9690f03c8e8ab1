"""Arrays of images in .npy and .h5 files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mpicoded.datasets.data import Data, Images, check_labels
from mpicoded.errors import DataError


def npy(path: Path, rows: int | None, source: str) -> Data:
    """Read the first ``rows`` images of an .npy array; DataError if it holds none."""
    try:
        with path.open("rb") as file:
            begin = file.read(6)
        if begin.startswith(b"PK\x03\x04"):
            raise DataError(f"{path} is an .npz archive; save one array with numpy.save.")
        if begin != b"\x93NUMPY":
            raise ValueError("it does not begin like one")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} is not a whole .npy array of numbers ({error}); copy it again, or save it "
            "again with numpy.save."
        ) from error
    images = _images(array, rows, str(path))
    return Data(images, None, np.zeros(len(images), bool), (), source)


def hdf5(path: Path, dataset: str, rows: int | None, source: str) -> Data:
    """Read the first ``rows`` images of ``dataset``, and "labels" and "held_out" if there."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            node = file.get(dataset)
            if not isinstance(node, h5py.Dataset):
                held = ", ".join(key for key in file if isinstance(file.get(key), h5py.Dataset))
                raise DataError(f"{path} has no data set {dataset!r}; it has: {held or 'none'}.")
            images = _images(node, rows, f"{path}:{dataset}")
            labels = _column(file, "labels", "iu", len(node), path)
            held_out = _column(file, "held_out", "b", len(node), path)
    except OSError as error:
        raise DataError(
            f"{path} is not a whole HDF5 file ({error}); copy it again, or name another."
        ) from error
    if labels is not None:
        labels = check_labels(labels[: len(images)], str(path))
    if held_out is None:
        held_out = np.zeros(len(images), bool)
    classes = () if labels is None else tuple(map(str, range(int(labels.max()) + 1)))
    return Data(images, labels, held_out[: len(images)], classes, source)


def _column(file: Any, name: str, kinds: str, count: int, path: Path) -> Any:
    """Return data set ``name``, one value an image, or None where the file has none."""
    if name not in file:
        return None
    column = file[name]
    shape = getattr(column, "shape", None)
    if shape != (count,) or column.dtype.kind not in kinds:
        what = "a group" if shape is None else f"{column.dtype} {shape}"
        wanted = "bool" if kinds == "b" else "integers"
        raise DataError(f"{path}: {name!r} is {what}; {count} images need {wanted} ({count},).")
    return column[...]


def _images(array: Any, rows: int | None, what: str) -> Images:
    """Check an array or HDF5 data set before reading it; return (N, C, H, W), uint8 or float32."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(
            f"{what} is {array.dtype}; images are uint8 (0..255) or floats: convert it with astype."
        )
    if len(array.shape) not in (3, 4) or 0 in array.shape:
        raise DataError(
            f"{what} has shape {array.shape}; images are (N, H, W) or (N, C, H, W), none of them 0."
        )
    images = np.asarray(array[slice(rows)])
    if images.ndim == 3:
        images = images[:, None]  # (N, 1, H, W)
    if images.dtype != np.uint8:
        with np.errstate(over="ignore"):  # found as inf in the next line
            images = images.astype(np.float32)
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        if len(bad):
            raise DataError(
                f"{what}: {len(bad)} of {len(images)} images hold NaN or infinity as float32, "
                f"first image {bad[0]}; mend or leave them out."
            )
    return images
