"""MNIST and its like: gzipped IDX files."""

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpicoded.datasets.data import CLASSES, Data, check_labels
from mpicoded.datasets.store import IDX, find, how_to_get
from mpicoded.errors import DataError
from mpicoded.paths import open_regular


def read(name: str, split: str) -> Data:
    """Read "mnist" or "fashion-mnist", at least the images of ``split``."""
    home = find(name, IDX).parent
    images, labels, held_out = [], [], []
    for part, held in (("train", False), ("t10k", True)):
        if split == ("train" if held else "test"):
            continue  # not asked for, not read
        pixels = _idx(home / f"{part}-images-idx3-ubyte.gz", 3, name)
        numbers = _idx(home / f"{part}-labels-idx1-ubyte.gz", 1, name)
        if len(pixels) != len(numbers):
            raise DataError(f"{home}: {len(pixels)} images but {len(numbers)} labels ({part}).")
        images.append(pixels[:, None])  # (N, 1, H, W)
        labels.append(check_labels(numbers, f"{home} ({part})", 10))
        held_out.append(np.full(len(pixels), held))
    rows = np.concatenate
    return Data(rows(images), rows(labels), rows(held_out), CLASSES[name], name)


MOST = 256 << 20  # bytes of a file, unpacked; the published ones have 47 MB


def _idx(path: Path, axes: int, name: str) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: 0, 0, type, axes, the big-endian sizes, the values."""
    again = f"delete it and run `python -m mpicoded data fetch {name}`"
    start = 4 + 4 * axes
    try:
        with open_regular(path) as packed, gzip.open(packed) as file:
            head = file.read(start)
            shape = tuple(int.from_bytes(head[at : at + 4], "big") for at in range(4, start, 4))
            needed = prod(shape)
            raw = file.read(min(needed, MOST) + 1)
    except FileNotFoundError as error:
        raise DataError(how_to_get(name, f"{path} is missing")) from error
    except PermissionError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); {again}.") from error
    if len(head) < start or head[:4] != bytes((0, 0, 8, axes)):
        raise DataError(
            f"{path} begins with {head[:4].hex()}, not {bytes((0, 0, 8, axes)).hex()} "
            f"(IDX, unsigned bytes, {axes} axes); {again}."
        )
    if len(raw) != needed or 0 in shape:
        held = f"more than {MOST}" if len(raw) > MOST else len(raw)
        raise DataError(f"{path} says {shape} but holds {held} bytes; {again}.")
    return np.frombuffer(raw, np.uint8).reshape(shape)
