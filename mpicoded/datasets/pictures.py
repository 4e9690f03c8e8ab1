"""Folders of pictures, in which sub-folders are classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mpicoded.datasets.data import Data
from mpicoded.datasets.slabs import check_room, resize
from mpicoded.errors import DataError
from mpicoded.paths import check_regular, open_regular

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
SHOWN = 8  # classes at either end
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # nothing that starts a program


def read(path: Path, size: tuple[int, int] | None, rows: int | None, source: str) -> Data:
    """Read the first ``rows`` pictures, each resized to ``size`` (H, W) as it comes."""
    files, labels, classes = _walk(path)
    files = files[:rows]
    stored = sum(map(check_regular, files))
    grey = all(_is_grey(file) for file in files)
    mode = "L" if grey else "RGB"
    first = resize(_picture(files[0], mode), size)  # (1, C, H, W)
    check_room(first.nbytes * len(files), stored, str(path))
    images = np.empty((len(files), *first.shape[1:]), np.uint8)
    for number, file in enumerate(files):
        image = resize(_picture(file, mode), size) if number else first
        if image.shape != first.shape:
            raise DataError(
                f"pictures differ in size: {files[0]} is {first.shape[2:]}, {file} is "
                f"{image.shape[2:]} (height, width); say size = [H, W] to resize them all."
            )
        images[number] = image[0]
    numbers = None if labels is None else np.array(labels[:rows], np.int64)
    note = _order(classes, source)
    return Data(images, numbers, np.zeros(len(files), bool), classes, source, note)


def _order(classes: tuple[str, ...], source: str) -> str:
    """Return a note of the label of each class, if that is not by name."""
    if classes == tuple(sorted(classes)):
        return ""
    labels = [f"{name} is {label}" for label, name in enumerate(classes)]
    shown = [*labels[:SHOWN], "…", *labels[-SHOWN:]] if len(labels) > 2 * SHOWN else labels
    return (
        f"{source}: labels are in the order of the folders' numbers, not of their names: "
        f"{', '.join(shown)}"
    )


def _walk(path: Path) -> tuple[list[Path], list[int] | None, tuple[str, ...]]:
    """Return the pictures in the order of their names, and the classes that sub-folders are."""
    top = _in_folder(path)
    folders = _folders(path)
    found = [(folder.name, _in_folder(folder)) for folder in folders]
    if top and any(files for _, files in found):
        raise DataError(f"{path} holds pictures beside folders of pictures; keep one of the two.")
    if top:
        return top, None, ()
    if not any(files for _, files in found):
        nested = [f.name for f in folders if any(_in_folder(each) for each in _folders(f))]
        if nested:
            raise DataError(
                f"{path} holds no pictures and no folders of them, but {', '.join(nested[:8])} "
                f"{'do' if len(nested) > 1 else 'does'}: name one, {str(path / nested[0])!r}."
            )
        raise DataError(f"{path} holds no pictures; known: {', '.join(PICTURES)}.")
    empty = [name for name, files in found if not files]
    if empty:
        raise DataError(f"{path}: class folder {empty[0]!r} holds no pictures; delete or fill it.")
    labels = [label for label, (_, files) in enumerate(found) for _ in files]
    return [f for _, files in found for f in files], labels, tuple(name for name, _ in found)


def _folders(path: Path) -> list[Path]:
    """Return the sub-folders by name, or by number if all are numbers: 10 comes after 9."""
    found = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if all(p.name.isascii() and p.name.isdecimal() for p in found):
        found.sort(key=lambda p: (len(p.name.lstrip("0")), p.name.lstrip("0")))
    return found


def _in_folder(path: Path) -> list[Path]:
    shown = (p for p in path.iterdir() if not p.name.startswith(".") and not p.is_dir())
    return sorted(p for p in shown if p.suffix.lower() in PICTURES)


def _is_grey(path: Path) -> bool:
    with _opened(path, "is not a picture that pillow can read") as image:
        mode = image.mode
    if mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits a channel (mode {mode}); save it with 8.")
    return mode in ("1", "L", "LA")


def _picture(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    from PIL import ImageOps

    with _opened(path, "is a damaged picture") as image:
        upright = ImageOps.exif_transpose(image)  # as a viewer shows it
        pixels = np.asarray(upright.convert(mode), np.uint8)
    return pixels[None, None] if mode == "L" else pixels.transpose(2, 0, 1)[None]  # (1, C, H, W)


@contextmanager
def _opened(path: Path, wrong: str) -> Iterator[Image]:
    """Open a picture; DataError if it is ``wrong``."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")  # of odd tags; they would stand beside the error
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                yield image
    except Exception as error:  # pillow raises many kinds
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(f"{path} {wrong}: {why}") from error
