"""Images as arrays, with labels and a held-out part; the data sets' classes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.errors import DataError

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

CLASSES_MOST = 1_000_000  # of a file that does not say how many there are

DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
THINGS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CLASSES = {"digits": DIGITS, "mnist": DIGITS, "fashion-mnist": CLOTHES, "cifar-10": THINGS}


@dataclass(frozen=True)
class Data:
    """Images (N, C, H, W), uint8 0..255 or float32 as stored, with their labels.

    ``labels`` is int64 (N,), or None; ``held_out``, bool (N,), marks what training must not see;
    ``classes`` names the labels, () without labels; ``name`` is the source as the job wrote it,
    ``note`` what its user may not expect.
    """

    images: Images
    labels: npt.NDArray[np.int64] | None
    held_out: npt.NDArray[np.bool_]
    classes: tuple[str, ...]
    name: str
    note: str = ""


def check_labels(
    values: Any, what: str, classes: int, rows: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.int64]:
    """Return labels (of the images ``rows``) as int64; DataError names the first that is wrong."""
    labels = np.asarray(values)
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        image = bad[0] if rows is None else rows[bad[0]]
        wanted = "0 or more" if labels[bad[0]] < 0 and classes == CLASSES_MOST else None
        raise DataError(
            f"{what}: label {labels[bad[0]]} of image {image} is wrong; labels are "
            f"{wanted or f'0 to {classes - 1}'}."
        )
    return labels.astype(np.int64)


def no_image(source: str, split: str, held: int, count: int) -> DataError:
    """Return the error for a split that has no image: ``held`` of ``count`` are held out."""
    return DataError(
        f"{source!r} has no image in split {split!r}: {held} of its {count} images are held out "
        'for "test". Say split = "all"; an .h5 file tells in a bool data set "held_out" which ones '
        'are for "test".'
    )
