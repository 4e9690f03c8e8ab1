"""Folders of pictures, in which sub-folders are classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.datasets.data import Data
from mpicoded.datasets.sizes import resize
from mpicoded.errors import DataError

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")


def read(path: Path, size: tuple[int, int] | None, rows: int | None, source: str) -> Data:
    """Read the first ``rows`` pictures, each resized to ``size`` (H, W) as it comes."""
    files, labels, classes = _walk(path)
    files = files[:rows]
    grey = all(_is_grey(file) for file in files)
    images: list[npt.NDArray[Any]] = []
    for file in files:
        image = resize(_picture(file, "L" if grey else "RGB"), size)  # (1, C, H, W)
        if images and image.shape != images[0].shape:
            raise DataError(
                f"pictures differ in size: {files[0]} is {images[0].shape[2:]}, {file} is "
                f"{image.shape[2:]} (height, width); say size = [H, W] to resize them all."
            )
        images.append(image)
    numbers = None if labels is None else np.array(labels[:rows], np.int64)
    return Data(np.concatenate(images), numbers, np.zeros(len(files), bool), classes, source)


def _walk(path: Path) -> tuple[list[Path], list[int] | None, tuple[str, ...]]:
    """Return the pictures in the order of their names, and the classes that sub-folders are."""
    top = _in_folder(path)
    folders = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    found = [(folder.name, _in_folder(folder)) for folder in folders]
    if top and any(files for _, files in found):
        raise DataError(f"{path} holds pictures beside folders of pictures; keep one of the two.")
    if top:
        return top, None, ()
    if not any(files for _, files in found):
        raise DataError(f"{path} holds no pictures; known: {', '.join(PICTURES)}.")
    empty = [name for name, files in found if not files]
    if empty:
        raise DataError(f"{path}: class folder {empty[0]!r} holds no pictures; delete or fill it.")
    labels = [label for label, (_, files) in enumerate(found) for _ in files]
    return [f for _, files in found for f in files], labels, tuple(name for name, _ in found)


def _in_folder(path: Path) -> list[Path]:
    return sorted(
        p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")
    )


def _is_grey(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode = image.mode
    except Exception as error:  # pillow raises many kinds
        raise DataError(f"{path} is not a picture that pillow can read: {error}") from error
    if mode.startswith(("I", "F")):
        raise DataError(f"{path} has more than 8 bits a channel (mode {mode}); save it with 8.")
    return mode in ("1", "L", "LA")


def _picture(path: Path, mode: str) -> npt.NDArray[np.uint8]:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)  # as a viewer shows it
            pixels = np.asarray(upright.convert(mode), np.uint8)
    except Exception as error:  # pillow raises many kinds
        raise DataError(f"{path} is a damaged picture: {error}") from error
    return pixels[None, None] if mode == "L" else pixels.transpose(2, 0, 1)[None]  # (1, C, H, W)
