"""Images to serve and to train on: data sets by name, arrays, folders of pictures."""

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np

from mpicoded.datasets import arrays, cifar, digits, hdf5, idx, pictures
from mpicoded.datasets.data import CLASSES, Data, no_image
from mpicoded.datasets.slabs import check_room, resize
from mpicoded.datasets.store import FILES, cache, fetch, homes
from mpicoded.errors import DataError, near, short
from mpicoded.paths import check_regular, locate

__all__ = ["CLASSES", "FILES", "Data", "cache", "fetch", "homes", "load"]

SPLITS = ("all", "train", "test")


def load(
    source: str,
    split: str,
    *,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    folder: Path,
) -> Data:
    """Return the images of ``source``, the first ``limit`` of ``split``, resized to ``size``.

    ``source`` is "digits" (bundled), "mnist", "fashion-mnist", "cifar-10", or a path relative to
    ``folder``: an .npy array, an .h5 file (data set "images", or "x.h5:name" for another; "labels"
    and "held_out" if there) or a folder of pictures, in which sub-folders are classes. ``split``
    is "test" (held out), "train" (the rest) or "all". ``size`` is (H, W); bilinear, antialiased,
    rounded back to uint8. Raises DataError.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not known; known: {', '.join(SPLITS)}.")
    if limit is not None and limit < 1:
        raise DataError(f"limit = {limit} leaves no image of {source!r}; it must be 1 or more.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise DataError(f"size = {list(size)} is not a height and a width of 1 pixel or more.")
    try:
        data = _read(source, split, size, limit, folder)
    except MemoryError as error:
        raise DataError(f"{source!r}: there is not enough memory for it: set limit.") from error
    except OSError as error:
        place = "" if error.filename in (None, source) else f"{error.filename}: "
        denied = isinstance(error, PermissionError)
        why = "no permission to read it" if denied else error.strerror or str(error)
        raise DataError(f"{short(source)}: {place}{why}.") from error
    wanted = {"all": np.ones_like(data.held_out), "test": data.held_out, "train": ~data.held_out}
    rows = np.flatnonzero(wanted[split])[:limit]
    if len(rows) == 0:
        raise no_image(source, split, int(data.held_out.sum()), len(data.held_out))
    images = data.images[rows]
    if size is not None and images.shape[2:] != tuple(size):
        target = prod((*images.shape[:2], *size)) * images.itemsize
        check_room(target, images.nbytes, source)
    return replace(
        data,
        images=resize(images, size),
        labels=None if data.labels is None else data.labels[rows],
        held_out=data.held_out[rows],
    )


def _read(
    source: str, split: str, size: tuple[int, int] | None, limit: int | None, folder: Path
) -> Data:
    """Read at least the first ``limit`` images of ``split``, resized where that spares memory."""
    if source == "digits":
        return hdf5.read(digits.bundled(), "images", split, limit, size, source)
    if source in ("mnist", "fashion-mnist"):
        return idx.read(source, split)
    if source == "cifar-10":
        return cifar.read(split)
    name, colon, dataset = source.partition(".h5:")
    path = locate(folder, name + ".h5" if colon else source)
    if path.is_dir():
        return pictures.read(path, size, limit, source)
    if not path.exists():
        raise DataError(
            f"there is no data set and no file {short(source)}{near(source, CLASSES)} (looked for "
            f"{path}); known: {', '.join(CLASSES)}, an .npy or .h5 file, a folder of pictures."
        )
    check_regular(path)
    if path.suffix == ".h5":
        return hdf5.read(path, dataset or "images", split, limit, size, source)
    if path.suffix == ".npy":
        return arrays.npy(path, split, limit, size, source)
    raise DataError(f"{path} is of no known kind; known: .npy, .h5, a folder of pictures.")
