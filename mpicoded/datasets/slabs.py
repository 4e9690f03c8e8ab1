"""Read images slab by slab: only those asked for, if there is memory for them."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.datasets.data import Images
from mpicoded.errors import DataError
from mpicoded.room import lack

SLAB = 32 << 20  # bytes read at once
CHUNK = 1024  # images resized at once
LARGEST = 128 << 20  # bytes of them
Rows = npt.NDArray[np.int64]  # numbers of images, rising
Read = Callable[[int, int], npt.NDArray[Any]]  # images [first, last) of a file


def check_kind(dtype: Any, shape: Sequence[int], what: str) -> None:
    """Raise DataError unless an array of this kind can hold images."""
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(
            f"{what} is {dtype}; images are uint8 (0..255) or floats: convert it with astype."
        )
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(
            f"{what} has shape {shape}; images are (N, H, W) or (N, C, H, W), none of them 0."
        )


def check_room(nbytes: int, stored: int, what: str) -> None:
    """Raise DataError if ``nbytes`` have no room, or ``stored`` bytes cannot hold them."""
    if why := lack("images", nbytes, stored):
        raise DataError(f"{what}: {why}: set limit in [input], or a smaller size.")


def resize(images: Images, size: tuple[int, int] | None) -> Images:
    """Return (N, C, *size): bilinear, antialiased, and rounded if the images are uint8."""
    import torch
    from torch.nn.functional import interpolate

    if size is None or images.shape[2:] == tuple(size):
        return images
    channels, *old = images.shape[1:]
    each = 4 * channels * max(old[0] * old[1], size[0] * size[1])  # bytes of an image
    step = max(1, min(CHUNK, LARGEST // each))
    if each > LARGEST and channels > 1:  # one channel at a time
        return np.concatenate([resize(images[:, c : c + 1], size) for c in range(channels)], 1)
    done = np.empty((len(images), channels, *size), images.dtype)
    for start in range(0, len(images), step):
        x = torch.from_numpy(np.array(images[start : start + step], np.float32))  # (b, C, H, W)
        x = interpolate(x, tuple(size), mode="bilinear", antialias=True)  # (b, C, *size)
        if images.dtype == np.uint8:
            x = x.round().clamp(0, 255).to(torch.uint8)
        done[start : start + step] = x.numpy()
    return done


def fill(
    read: Read, rows: Rows, shape: Sequence[int], size: tuple[int, int] | None, stored: int,
    what: str, whole: int = 1,
) -> Images:  # fmt: skip
    """Return the images ``rows`` of an array, resized, read ``whole`` rows together."""
    channels, high, wide = (1, *shape[1:])[-3:]
    if size is not None and min(high, wide) <= 4 < channels:
        _check_last(shape, what)
    target = (len(rows), channels, *(size or (high, wide)))
    kind = np.dtype(np.uint8 if read(0, 0).dtype == np.uint8 else np.float32)
    check_room(prod(target) * kind.itemsize, stored, what)
    images = np.empty(target, kind)
    bad: list[int] = []
    done = 0
    for part in _parts(rows, channels * high * wide * 4, whole):
        first = int(part[0])
        slab = read(first, int(part[-1]) + 1)[part - first]
        slab = slab.reshape(len(part), channels, high, wide)
        if kind != np.uint8:
            with np.errstate(over="ignore"):  # found as inf in the next line
                slab = slab.astype(np.float32)
            bad += part[~np.isfinite(slab).all(axis=(1, 2, 3))].tolist()
        images[done : done + len(part)] = resize(slab, size)
        done += len(part)
    if bad:
        raise DataError(
            f"{what}: {len(bad)} of {len(rows)} images hold NaN or infinity as float32, "
            f"first image {bad[0]}; mend or leave them out."
        )
    return images


def _parts(rows: Rows, nbytes: int, whole: int) -> Iterator[Rows]:
    """Yield rows that lie so near to one another that all between them can be read too."""
    span = max(1, SLAB // nbytes)
    if span % whole and whole * nbytes <= 4 * SLAB:
        span += whole - span % whole
    start = 0
    while start < len(rows):
        last = (rows[start] // whole) * whole + max(span, whole)
        stop = int(np.searchsorted(rows, min(last, rows[start] + span)))
        yield rows[start:stop]
        start = stop


def _check_last(shape: Sequence[int], what: str) -> None:
    """Raise DataError for an axis of 1 to 4 pixels to be resized: those are channels."""
    if shape[-1] <= 4:
        raise DataError(
            f"{what} has shape {tuple(shape)}, channels last; images are (N, C, H, W): save it "
            "again with .transpose(0, 3, 1, 2)."
        )
