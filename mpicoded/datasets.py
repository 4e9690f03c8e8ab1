"""Images to serve and to train on: data sets by name, arrays, folders of pictures."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from lzma import LZMAError
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.errors import DataError

Images = npt.NDArray[np.uint8] | npt.NDArray[np.float32]

BUNDLED = Path(__file__).parent.parent / "data" / "digits.h5"
SPLITS = ("all", "train", "test")
DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
THINGS = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CLASSES = {"digits": DIGITS, "mnist": DIGITS, "fashion-mnist": CLOTHES, "cifar-10": THINGS}

IDX = tuple(
    f"{part}-{file}-ubyte.gz"
    for part in ("train", "t10k")
    for file in ("images-idx3", "labels-idx1")
)
# Where the public files are, and the md5 of each.
FILES: dict[str, tuple[str, dict[str, str]]] = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            IDX[0]: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            IDX[1]: "d53e105ee54ea40749a09fcbcd1e9432",
            IDX[2]: "9fb629c4189551a2d022fa330f9573f3",
            IDX[3]: "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            IDX[0]: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            IDX[1]: "25c81989df183df01b3e8a0aad5dffbe",
            IDX[2]: "bef4ecab320f06d8554ea6380940ec79",
            IDX[3]: "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar-10": (
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    ),
}
CIFAR_FORMS = ("cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-python.tar.xz")
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
BATCH_LIMIT = 64 << 20  # bytes; the published ones have 31 MB
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
CHUNK = 1024  # images resized at once


@dataclass(frozen=True)
class Data:
    """Images (N, C, H, W), uint8 0..255 or float32 as stored, and what is known of them.

    ``labels`` is int64 (N,), or None; ``held_out``, bool (N,), marks what training must not see;
    ``classes`` names the labels, () without labels; ``name`` is the source as the job wrote it.
    """

    images: Images
    labels: npt.NDArray[np.int64] | None
    held_out: npt.NDArray[np.bool_]
    classes: tuple[str, ...]
    name: str


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
    data = _read(source, split, size, limit if split == "all" else None, folder)
    rows = np.flatnonzero(_wanted(data, split))[:limit]
    if len(rows) == 0:
        raise DataError(
            f"{source!r} has no image in split {split!r}: {int(data.held_out.sum())} of its "
            f'{len(data.held_out)} images are held out for "test". Say split = "all"; an .h5 '
            'file tells in a bool data set "held_out" which ones are for "test".'
        )
    return replace(
        data,
        images=_resize(data.images[rows], size),
        labels=None if data.labels is None else data.labels[rows],
        held_out=data.held_out[rows],
    )


def fetch(name: str) -> Path:
    """Download the public files of a data set into the cache, check their md5, return the folder.

    Raises DataError for an unknown name, without network, and for a wrong checksum.
    """
    import pooch

    if name not in FILES:
        unknown = f"there is no data set {name!r}{_near(name)}"
        hint = "digits is bundled" if name == "digits" else unknown
        raise DataError(f"{hint}; data sets to fetch: {', '.join(FILES)}.")
    address, files = FILES[name]
    home = cache() / name
    for file, md5 in files.items():
        try:
            pooch.retrieve(address + file, f"md5:{md5}", fname=file, path=home)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors
            raise DataError(
                f"cannot fetch {address + file} into {home}: {error}. Put the file there by other "
                f"means, or set MPICODED_DATA to the folder that holds {name}/{file}."
            ) from error
    return home


def cache() -> Path:
    """Return the folder for downloads and unpacked copies: $MPICODED_CACHE, or as XDG has it."""
    own = os.environ.get("MPICODED_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own).expanduser() if own else Path(shared).expanduser() / "mpicoded"


def _read(
    source: str, split: str, size: tuple[int, int] | None, rows: int | None, folder: Path
) -> Data:
    """Read at least the images of ``split``; for "all", no more than ``rows`` need be read."""
    if source == "digits":
        return _hdf5(BUNDLED, "images", rows, source)
    if source in ("mnist", "fashion-mnist"):
        return _idx_set(source, split)
    if source == "cifar-10":
        return _cifar(split)
    name, colon, dataset = source.partition(".h5:")
    path = folder / (name + ".h5" if colon else source)
    if path.is_dir():
        return _pictures(path, size, rows, source)
    if not path.exists():
        raise DataError(
            f"there is no data set and no file {source!r}{_near(source)} (looked for {path}); "
            f"known: {', '.join(CLASSES)}, an .npy or .h5 file, a folder of pictures."
        )
    if path.suffix == ".h5":
        return _hdf5(path, dataset or "images", rows, source)
    if path.suffix == ".npy":
        return _npy(path, rows, source)
    raise DataError(f"{path} is of no known kind; known: .npy, .h5, a folder of pictures.")


def _wanted(data: Data, split: str) -> npt.NDArray[np.bool_]:
    if split == "all":
        return np.ones(len(data.images), bool)
    return data.held_out if split == "test" else ~data.held_out


# arrays: .npy and .h5


def _npy(path: Path, rows: int | None, source: str) -> Data:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is not a whole .npy array of numbers: {error}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path} is an .npz archive; save one array with numpy.save.")
    images = _images(array, rows, str(path))
    return Data(images, None, np.zeros(len(images), bool), (), source)


def _hdf5(path: Path, dataset: str, rows: int | None, source: str) -> Data:
    import h5py

    if not path.is_file():
        raise DataError(
            f"{path} is missing; {source!r} is bundled with the repository: "
            "install from a clone with `pip install -e .`."
        )
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
        raise DataError(f"{path} is not a whole HDF5 file: {error}") from error
    if labels is not None:
        labels = _labels(labels[: len(images)], str(path))
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


def _labels(values: Any, what: str, classes: int | None = None) -> npt.NDArray[np.int64]:
    labels = np.asarray(values).astype(np.int64)
    top = np.inf if classes is None else classes - 1
    bad = np.flatnonzero((labels < 0) | (labels > top))
    if len(bad):
        wanted = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise DataError(
            f"{what}: label {labels[bad[0]]} of image {bad[0]} is wrong; labels are {wanted}."
        )
    return labels


# MNIST and its like


def _idx_set(name: str, split: str) -> Data:
    home = _find(name, IDX).parent
    images, labels, held_out = [], [], []
    for part, held in (("train", False), ("t10k", True)):
        if split == ("train" if held else "test"):
            continue  # not asked for, not read
        pixels = _idx(home / f"{part}-images-idx3-ubyte.gz", 3, name)
        numbers = _idx(home / f"{part}-labels-idx1-ubyte.gz", 1, name)
        if len(pixels) != len(numbers):
            raise DataError(f"{home}: {len(pixels)} images but {len(numbers)} labels ({part}).")
        images.append(pixels[:, None])  # (N, 1, H, W)
        labels.append(_labels(numbers, f"{home} ({part})", 10))
        held_out.append(np.full(len(pixels), held))
    rows = np.concatenate
    return Data(rows(images), rows(labels), rows(held_out), CLASSES[name], name)


def _idx(path: Path, axes: int, name: str) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: 0, 0, type, axes, the big-endian sizes, the values."""
    again = f"delete it and run `python -m mpicoded data fetch {name}`"
    try:
        raw = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(_how_to_get(name, f"{path} is missing")) from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); {again}.") from error
    start = 4 + 4 * axes
    if len(raw) < start or raw[:4] != bytes((0, 0, 8, axes)):
        raise DataError(
            f"{path} begins with {raw[:4].hex()}, not {bytes((0, 0, 8, axes)).hex()} "
            f"(IDX, unsigned bytes, {axes} axes); {again}."
        )
    shape = tuple(int(size) for size in np.frombuffer(raw[4:start], ">u4"))
    if len(raw) - start != int(np.prod(shape, dtype=object)):
        raise DataError(f"{path} says {shape} but holds {len(raw) - start} bytes; {again}.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


# CIFAR-10


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


class _Unpickler(pickle.Unpickler):
    """Reads numbers, strings, bytes, lists, dicts and arrays of bytes; nothing in it can run."""

    def find_class(self, module: str, name: str) -> Any:
        """Refuse whatever is not a plain array."""
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no image needs")
        return STAND_INS[module, name]


def _cifar(split: str) -> Data:
    parts = ("train", "test") if split == "all" else (split,)
    path = _find("cifar-10", CIFAR_FORMS)
    if path.is_dir():
        found = _batches(path, [name for part in parts for name in BATCHES[part]])
        arrays = {part: _join(found, part) for part in parts}
    else:
        arrays = _unpacked(path, parts)
    images = np.concatenate([arrays[part][0] for part in parts])  # (N, 3, 32, 32)
    labels = np.concatenate([arrays[part][1] for part in parts])
    held_out = np.repeat([part == "test" for part in parts], [len(arrays[p][0]) for p in parts])
    return Data(images, labels, held_out, THINGS, "cifar-10")


Batch = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def _unpacked(archive: Path, parts: tuple[str, ...]) -> dict[str, Batch]:
    """Read the copy of the archive that the cache holds, after making it where there is none."""
    stat = archive.stat()
    kept = cache() / "cifar-10" / f"unpacked-{stat.st_size}-{stat.st_mtime_ns}.npz"
    if not kept.exists():
        found = _batches(archive, BATCHES["train"] + BATCHES["test"])
        pairs = {part: _join(found, part) for part in BATCHES}
        _keep(
            kept,
            {f"{part}_images": pair[0] for part, pair in pairs.items()}
            | {f"{part}_labels": pair[1] for part, pair in pairs.items()},
        )
    try:
        with open(kept, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {part: (file[f"{part}_images"], file[f"{part}_labels"]) for part in parts}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{kept} is damaged ({error}); delete it and start again.") from error


def _keep(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz all at once, so that no other process ever finds half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            np.savez(Path(folder) / path.name, **arrays)
            os.replace(Path(folder) / path.name, path)
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
    except (tarfile.TarError, OSError, EOFError, LZMAError, zlib.error) as error:
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
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            name = member.name.rpartition("/")[2]
            if name in names and member.isreg():
                _check_size(member.size, f"{path}: {name}")
                file = archive.extractfile(member)
                assert file is not None  # a regular file has content
                yield name, file.read()


def _check_size(size: int, what: str) -> None:
    if size > BATCH_LIMIT:
        raise DataError(f"{what} has {size} bytes, more than the {BATCH_LIMIT} of any CIFAR batch.")


def _batch(raw: bytes, what: str) -> Batch:
    try:
        content = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
        images = content[b"data"].values.reshape(-1, 3, 32, 32)
        labels = np.array(content[b"labels"], np.int64)
    except Exception as error:  # a hostile or cut file raises anything
        raise DataError(f"{what} is refused, it is no CIFAR batch: {error!r}.") from error
    if labels.shape != (len(images),):
        raise DataError(f"{what} has {len(images)} images but labels {labels.shape}.")
    return images, _labels(labels, what, 10)


# pictures


def _pictures(path: Path, size: tuple[int, int] | None, rows: int | None, source: str) -> Data:
    files, labels, classes = _walk(path)
    files = files[:rows]
    grey = all(_is_grey(file) for file in files)
    images: list[npt.NDArray[Any]] = []
    for file in files:
        image = _resize(_picture(file, "L" if grey else "RGB"), size)  # (1, C, H, W)
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


def _resize(images: Images, size: tuple[int, int] | None) -> Images:
    """Return (N, C, *size): bilinear, antialiased, and rounded if the images are uint8."""
    import torch
    from torch.nn.functional import interpolate

    if size is None or images.shape[2:] == tuple(size):
        return images
    done = []
    for start in range(0, len(images), CHUNK):
        x = torch.from_numpy(np.array(images[start : start + CHUNK], np.float32))  # (b, C, H, W)
        x = interpolate(x, tuple(size), mode="bilinear", antialias=True)  # (b, C, *size)
        if images.dtype == np.uint8:
            x = x.round().clamp(0, 255).to(torch.uint8)
        done.append(x.numpy())
    return np.concatenate(done)


def _find(name: str, files: tuple[str, ...]) -> Path:
    """Return the first of ``files`` that $MPICODED_DATA/name or the cache holds."""
    own = os.environ.get("MPICODED_DATA")
    homes = [Path(own).expanduser() / name] if own else []
    homes.append(cache() / name)
    for home in homes:
        for file in files:
            if (home / file).exists():
                return home / file
    raise DataError(_how_to_get(name, f"data set {name!r} is in none of {list(map(str, homes))}"))


def _how_to_get(name: str, what: str) -> str:
    return (
        f"{what}; get it with `python -m mpicoded data fetch {name}`, or set MPICODED_DATA to the "
        f"folder that holds {name}/."
    )


def _near(name: str) -> str:
    close = get_close_matches(name, CLASSES, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
