"""The data sets, arrays and folders of pictures, and every input that must be refused."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from mpicoded.datasets import FILES, cache, cifar, digits, fetch, load, slabs
from mpicoded.errors import DataError

SHARED = os.environ.get("MPICODED_DATA")  # before the fixture below hides it


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the user's own data sets and cache out of the tests."""
    monkeypatch.delenv("MPICODED_DATA", raising=False)
    monkeypatch.setenv("MPICODED_CACHE", str(tmp_path / "cache"))


def refused(message: str, source: str, split: str = "all", **more: Any) -> str:
    with pytest.raises(DataError, match=message) as error:
        load(source, split, **{"folder": Path(), **more})
    return str(error.value)


# digits


def test_digits() -> None:
    data = load("digits", "all", folder=Path("/nowhere"))
    assert data.images.shape == (1797, 1, 8, 8) and data.images.dtype == np.uint8
    assert data.labels is not None and data.labels.dtype == np.int64
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert (int(data.held_out.sum()), data.held_out.dtype) == (360, np.bool_)
    assert (data.classes, data.name) == (tuple("0123456789"), "digits")


def test_digits_held_out_part_has_every_class_in_its_proportion() -> None:
    data = load("digits", "all", folder=Path())
    assert data.labels is not None
    held = np.bincount(data.labels[data.held_out], minlength=10)
    assert np.abs(held - np.bincount(data.labels) * 360 / 1797).max() < 1


def test_digits_splits_make_the_whole() -> None:
    whole = load("digits", "all", folder=Path())
    for split, count in [("train", 1437), ("test", 360)]:
        part = load("digits", split, folder=Path())
        rows = whole.held_out == (split == "test")
        assert len(part.images) == count
        assert np.array_equal(part.images, whole.images[rows])
        assert whole.labels is not None and np.array_equal(part.labels, whole.labels[rows])
        assert (part.held_out == (split == "test")).all()


def test_digits_are_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs, ours = sklearn.load_digits(), load("digits", "all", folder=Path())
    assert np.array_equal(ours.images[:, 0], np.rint(theirs.images * 255 / 16))
    assert np.array_equal(ours.labels, theirs.target)


def test_digits_file_names_source_and_licence() -> None:
    with h5py.File(digits.CLONE) as file:
        assert "Alpaydin" in file.attrs["source"] and "CC BY 4.0" in file.attrs["licence"]


def test_digits_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(digits, "CLONE", tmp_path / "digits.h5")
    monkeypatch.setattr(digits, "_installed", list)
    refused(r"digits\.h5 is missing; 'digits' is bundled .*pip install -e", "digits")


def test_import_is_light() -> None:
    code = (
        "import sys, mpicoded.datasets; "
        "print([m for m in ('torch', 'h5py', 'PIL', 'pooch') if m in sys.modules])"
    )
    path = os.pathsep.join([str(digits.CLONE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


# what is asked for


@pytest.mark.parametrize(
    ("source", "split", "more", "message"),
    [
        ("digits", "tset", {}, "split 'tset' is not known; known: all, train, test"),
        ("digits", "all", {"limit": 0}, "limit = 0 leaves no image of 'digits'"),
        ("digits", "all", {"size": (0, 3)}, r"size = \[0, 3\] is not a height and a width"),
        ("digits", "all", {"size": (3,)}, r"size = \[3\] is not a height"),
        ("digit", "all", {}, r"no file 'digit' \(did you mean 'digits'\?\).*known: digits, mnist"),
        ("no/such.npy", "all", {}, r"no file 'no/such\.npy' \(looked for .*such\.npy\)"),
    ],
)
def test_bad_request(source: str, split: str, more: dict[str, Any], message: str) -> None:
    refused(message, source, split, **more)


def test_limit_is_the_first_of_the_split() -> None:
    few, whole = (load("digits", "test", limit=n, folder=Path()) for n in (5, None))
    assert np.array_equal(few.images, whole.images[:5]) and len(few.held_out) == 5
    assert whole.labels is not None and np.array_equal(few.labels, whole.labels[:5])
    assert len(load("digits", "all", limit=9999, folder=Path()).images) == 1797


def test_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("1")
    refused(r"x\.txt is of no known kind; known: \.npy", "x.txt", folder=tmp_path)


# size


def test_resize_keeps_constants_and_type() -> None:
    flat = np.full((3, 2, 8, 8), 201, np.uint8)
    out = slabs.resize(flat, (13, 5))
    assert out.shape == (3, 2, 13, 5) and out.dtype == np.uint8 and (out == 201).all()


def test_resize_is_pillows_bilinear() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 30, 20), np.uint8)
    for size in [(32, 32), (7, 11)]:
        ours = slabs.resize(image, size)[0, 0].astype(int)
        theirs = Image.fromarray(image[0, 0]).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.abs(ours - np.asarray(theirs, int)).max() <= 1


def test_resize_in_chunks_is_resize(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load("digits", "all", limit=10, size=(32, 32), folder=Path()).images
    monkeypatch.setattr(slabs, "CHUNK", 3)
    assert np.array_equal(
        whole, load("digits", "all", limit=10, size=(32, 32), folder=Path()).images
    )


def test_resize_of_floats_is_not_rounded() -> None:
    out = slabs.resize(np.array([[[[0.0, 1.0]]]], np.float32), (1, 4))
    assert out.dtype == np.float32 and out.ravel().tolist() == [0, 0.25, 0.75, 1]


# arrays


@pytest.mark.parametrize(
    ("given", "kept", "shape"),
    [
        (np.zeros((4, 3, 5, 6), np.uint8), np.uint8, (4, 3, 5, 6)),
        (np.zeros((4, 5, 6), np.float64), np.float32, (4, 1, 5, 6)),
        (np.zeros((4, 2, 5, 6), ">f4"), np.float32, (4, 2, 5, 6)),
        (np.zeros((4, 2, 5, 6), np.float16), np.float32, (4, 2, 5, 6)),
    ],
    ids=["uint8", "grey-float64", "big-endian", "float16"],
)
@pytest.mark.parametrize("kind", ["npy", "h5"])
def test_array(tmp_path: Path, kind: str, given: Any, kept: type, shape: tuple[int, ...]) -> None:
    write(tmp_path / f"x.{kind}", given)
    data = load(f"x.{kind}", "all", folder=tmp_path)
    assert (data.images.dtype, data.images.shape) == (kept, shape)
    assert data.images.dtype.isnative
    assert (data.labels, data.classes, data.name) == (None, (), f"x.{kind}")
    assert not data.held_out.any()
    assert load(f"x.{kind}", "train", limit=2, folder=tmp_path).images.shape[0] == 2
    refused(r'has no image in split \'test\': 0 of its 4 images.*split = "all"', f"x.{kind}",
            "test", folder=tmp_path)  # fmt: skip


def write(path: Path, array: Any) -> None:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        with h5py.File(path, "w") as file:
            file["images"] = array


@pytest.mark.parametrize("kind", ["npy", "h5"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 5, 6), np.int64), r"is int64; images are uint8 \(0..255\) or floats"),
        (np.zeros((4, 5, 6), bool), "is bool; images are"),
        (np.zeros((4, 5, 6), complex), "is complex128; images are"),
        (np.zeros((4, 5), np.uint8), r"has shape \(4, 5\); images are \(N, H, W\)"),
        (np.zeros((0, 5, 5), np.uint8), r"has shape \(0, 5, 5\)"),
        (np.full((3, 1, 2, 2), np.nan), "3 of 3 images hold NaN or infinity .*first image 0"),
        (np.array([[[1.0]], [[1e300]]]), "1 of 2 images hold NaN .*first image 1"),
    ],
    ids=["int64", "bool", "complex", "2-D", "empty", "nan", "overflow"],
)
def test_array_refused(tmp_path: Path, kind: str, given: Any, message: str) -> None:
    write(tmp_path / f"x.{kind}", given)
    assert f"x.{kind}" in refused(message, f"x.{kind}", folder=tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK rubbish", b"\x93NUMPY", b"cos\nsystem\n(S'x'\ntR."])
def test_npy_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    refused(r"x\.npy is not a whole \.npy array of numbers", "x.npy", folder=tmp_path)


def test_npy_cut_short_or_of_objects(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 5, 6)))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    refused("is not a whole", "x.npy", folder=tmp_path)
    np.save(tmp_path / "x.npy", np.array([[[{}]]]), allow_pickle=True)
    refused("is object; images are uint8", "x.npy", folder=tmp_path)
    with open(tmp_path / "x.npy", "wb") as file:
        np.savez(file, a=np.zeros((1, 2, 2)))
    refused("is an .npz archive", "x.npy", folder=tmp_path)


@pytest.fixture
def h5(tmp_path: Path) -> Callable[..., Path]:
    def write(**datasets: Any) -> Path:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            for name, values in datasets.items():
                file[name.replace("__", "/")] = values
        return tmp_path

    return write


IMAGES = np.arange(4 * 9, dtype=np.uint8).reshape(4, 1, 3, 3)


def test_h5_with_labels_and_held_out(h5: Callable[..., Path]) -> None:
    held = np.array([True, False, False, True])
    folder = h5(images=IMAGES, labels=np.array([2, 0, 1, 1], np.uint8), held_out=held)
    data = load("x.h5", "test", folder=folder)
    assert data.labels is not None and data.labels.tolist() == [2, 1]
    assert np.array_equal(data.images, IMAGES[held]) and data.classes == ("0", "1", "2")
    first = load("x.h5", "train", limit=1, folder=folder)
    assert np.array_equal(first.images, IMAGES[1:2])


def test_h5_data_set_by_name(h5: Callable[..., Path]) -> None:
    folder = h5(images=IMAGES, more__others=IMAGES[::-1])
    data = load("x.h5:more/others", "all", limit=3, folder=folder)
    assert np.array_equal(data.images, IMAGES[:0:-1]) and data.name == "x.h5:more/others"
    refused(r"x\.h5 has no data set 'more'; it has: images\.", "x.h5:more", folder=folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pictures": IMAGES}, r"no data set 'images'; it has: pictures\."),
        ({"images__a": IMAGES}, r"no data set 'images'; it has: none\."),
        ({"images": IMAGES, "labels": [1, 2]}, r"'labels' is int64 \(2,\); 4 images need integers"),
        ({"images": IMAGES, "labels": [0.5] * 4}, r"'labels' is float64 \(4,\)"),
        ({"images": IMAGES, "labels": [0, 0, -1, 0]}, "label -1 of image 2 is wrong; .* 0 or more"),
        ({"images": IMAGES, "labels__a": [1]}, "'labels' is a group"),
        ({"images": IMAGES, "held_out": [0, 1, 0, 1]}, r"'held_out' is int64 .* need bool \(4,\)"),
        ({"images": [b"a"] * 4}, "images are uint8"),
        ({"images": 3.0}, r"has shape \(\)"),
    ],
)
def test_h5_refused(h5: Callable[..., Path], content: dict[str, Any], message: str) -> None:
    refused(message, "x.h5", folder=h5(**content))


def test_h5_foreign_or_cut_short(h5: Callable[..., Path]) -> None:
    folder = h5(images=np.zeros((50, 50, 50)))
    raw = (folder / "x.h5").read_bytes()
    for content in [b"", b"not HDF5", raw[: len(raw) // 2]]:
        (folder / "x.h5").write_bytes(content)
        refused(r"x\.h5 is not a whole HDF5 file", "x.h5", folder=folder)


# MNIST and its like


def idx(array: Any, kind: int = 8) -> bytes:
    head = struct.pack(">BBBB", 0, 0, kind, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    return gzip.compress(head + array.tobytes())


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an MNIST of 3 + 2 images, found through MPICODED_DATA."""
    monkeypatch.setenv("MPICODED_DATA", str(tmp_path))
    home = tmp_path / "mnist"
    home.mkdir()
    for part, count in [("train", 3), ("t10k", 2)]:
        images = np.arange(count * 784).reshape(count, 28, 28).astype(np.uint8)
        (home / f"{part}-images-idx3-ubyte.gz").write_bytes(idx(images))
        (home / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(count, dtype=np.uint8)))
    return home


def test_mnist(mnist: Path) -> None:
    data = load("mnist", "all", folder=Path())
    assert data.images.shape == (5, 1, 28, 28)
    assert data.images[1, 0, 0, :3].tolist() == [784 % 256, 785 % 256, 786 % 256]
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 0, 1]
    assert data.held_out.tolist() == [False] * 3 + [True] * 2
    assert len(load("mnist", "test", folder=Path()).images) == 2
    data.images[0] = 0  # the caller may write


def test_mnist_of_the_cache_and_only_the_part_asked_for(
    mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPICODED_DATA")
    cache().mkdir()
    mnist.rename(cache() / "mnist")
    (cache() / "mnist" / "train-images-idx3-ubyte.gz").unlink()
    assert len(load("mnist", "test", folder=Path()).images) == 2
    refused("train-images-idx3-ubyte.gz is missing; get it with `python -m mpicoded data fetch",
            "mnist", "train")  # fmt: skip


PIXELS = "train-images-idx3-ubyte.gz"
NUMBERS = "train-labels-idx1-ubyte.gz"
GOOD = np.zeros((3, 28, 28), np.uint8)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (PIXELS, idx(GOOD)[:-20], "is not a whole gzip file"),
        (PIXELS, b"plain", "is not a whole gzip file"),
        (PIXELS, gzip.compress(b""), "begins with , not 00000803"),
        (PIXELS, gzip.compress(gzip.decompress(idx(GOOD))[:-1]), r"\(3, 28, 28\) but holds 2351"),
        (PIXELS, idx(GOOD.astype(">i4"), 0x0C), "begins with 00000c03, not 00000803"),
        (PIXELS, idx(np.zeros(3, np.uint8)), "begins with 00000801, not 00000803"),
        (NUMBERS, idx(np.zeros(4, np.uint8)), r"3 images but 4 labels \(train\)"),
        (NUMBERS, idx(np.full(3, 10, np.uint8)), "label 10 of image 0 is wrong; labels are 0 to 9"),
    ],
    ids=["cut", "plain", "empty", "short", "int32", "axes", "count", "label"],
)  # fmt: skip
def test_mnist_refused(mnist: Path, file: str, content: bytes, message: str) -> None:
    (mnist / file).write_bytes(content)
    assert str(mnist) in refused(message, "mnist", "train")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar-10"])
def test_missing_set_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    text = refused(f"data set '{name}' is not in ", name)
    assert f"`python -m mpicoded data fetch {name}`" in text and "MPICODED_DATA" in text
    assert str(tmp_path / "cache" / name) in text


# CIFAR-10


def batch(first: int, count: int = 2) -> dict[bytes, Any]:
    pixels = (np.arange(count * 3072).reshape(count, 3072) + first).astype(np.uint8)
    return {b"data": pixels, b"labels": [first % 10] * count, b"batch_label": b"one"}


def cifar_files() -> dict[str, bytes]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
    return {name: pickle.dumps(batch(i), protocol=4) for i, name in enumerate(names)}


def pack(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode: Any = "w:xz" if path.suffix == ".xz" else "w:gz"
    with tarfile.open(path, mode) as archive:
        for name, raw in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(raw)
            archive.addfile(member, io.BytesIO(raw))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPICODED_DATA", str(tmp_path))
    return tmp_path / "cifar-10"


@pytest.mark.parametrize("form", cifar.FORMS)
def test_cifar(home: Path, form: str) -> None:
    if form.endswith("py"):
        (home / form).mkdir(parents=True)
        for name, raw in cifar_files().items():
            (home / form / name).write_bytes(raw)
    else:
        pack(home / form, cifar_files())
    data = load("cifar-10", "all", folder=Path())
    assert data.images.shape == (12, 3, 32, 32) and data.images.dtype == np.uint8
    assert data.images[3, 2, 31, 31] == (2 * 3072 - 1 + 1) % 256  # second batch, last byte
    assert data.labels is not None and data.labels.tolist() == [i // 2 for i in range(12)]
    assert data.held_out.tolist() == [False] * 10 + [True] * 2
    assert (data.classes[0], data.classes[9]) == ("airplane", "truck")
    test = load("cifar-10", "test", folder=Path())
    assert np.array_equal(test.images, data.images[10:])
    data.images[0] = 0  # the caller may write
    assert load("cifar-10", "train", limit=3, folder=Path()).images.shape[0] == 3


def test_cifar_written_by_python_2(home: Path) -> None:
    """The published batches are of protocol 2, with byte strings throughout."""
    raw = bytes(range(256)) * 12  # one image
    old = (
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n"
        b"cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n"
        b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", len(raw)) + raw + b"tbU\x06labels]K\x03au."
    )  # fmt: skip
    pack(home / "cifar-10-python.tar.gz", dict.fromkeys(cifar_files(), old))
    data = load("cifar-10", "test", folder=Path())
    assert data.labels is not None and data.labels.tolist() == [3]
    assert data.images.tobytes() == raw


def test_cifar_is_unpacked_once(home: Path) -> None:
    archive = home / "cifar-10-python.tar.gz"
    pack(archive, cifar_files())
    first = load("cifar-10", "train", folder=Path())
    (kept,) = (cache() / "cifar-10").iterdir()
    assert kept.suffix == ".npz"
    stat = archive.stat()
    archive.write_bytes(bytes(stat.st_size))
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = load("cifar-10", "train", folder=Path())  # of the copy: the archive is rubbish
    assert np.array_equal(first.images, again.images)
    kept.write_bytes(kept.read_bytes()[:100])
    refused("is damaged .*; delete it and start again", "cifar-10")


def test_cifar_changed_archive_is_unpacked_again(home: Path) -> None:
    pack(home / "cifar-10-python.tar.gz", cifar_files())
    load("cifar-10", "test", folder=Path())
    pack(
        home / "cifar-10-python.tar.gz", {**cifar_files(), "test_batch": pickle.dumps(batch(9, 4))}
    )
    assert len(load("cifar-10", "test", folder=Path()).images) == 4


def test_cifar_cache_that_cannot_be_written(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(home / "cifar-10-python.tar.gz", cifar_files())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MPICODED_CACHE", str(tmp_path / "file"))
    refused("cannot keep the unpacked data set .*Set MPICODED_CACHE", "cifar-10")


class Evil:
    """Calls something when it is unpickled."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.reduced = (call, args)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("form", cifar.FORMS)
@pytest.mark.parametrize("place", ["whole", "inside", "in the array"])
def test_cifar_attack_is_refused(home: Path, tmp_path: Path, form: str, place: str) -> None:
    bait = tmp_path / "owned"
    evil: Any = Evil(os.mkdir, str(bait))
    if place == "inside":
        evil = {**batch(0), b"filenames": [evil]}
    if place == "in the array":
        array = np.empty(1, object)
        array[0] = evil
        evil = {**batch(0), b"data": array}
    files = {**cifar_files(), "test_batch": pickle.dumps(evil, protocol=4)}
    pickle.loads(files["test_batch"])  # the attack is a real one
    assert bait.exists()
    bait.rmdir()
    if form.endswith("py"):
        (home / form).mkdir(parents=True)
        for name, raw in files.items():
            (home / form / name).write_bytes(raw)
    else:
        pack(home / form, files)
    refused(r"test_batch is refused, it is no CIFAR batch: .*posix\.mkdir, which no", "cifar-10")
    assert not bait.exists()


@pytest.mark.parametrize(
    "asked",
    [eval, exec, getattr, __import__, os.system, np.load, np.save, np.lib.format.read_array],
    ids=lambda call: str(call.__name__),
)
def test_cifar_unpickler_knows_no_function(asked: Callable[..., object]) -> None:
    raw = pickle.dumps({b"data": asked}, protocol=4)
    with pytest.raises(DataError, match="it asks for .*, which no image needs"):
        cifar._batch(raw, "x")


def test_cifar_archive_writes_nothing_outside(home: Path, tmp_path: Path) -> None:
    pack(home / "cifar-10-python.tar.gz", {**cifar_files(), "../../../escaped": b"x"})
    load("cifar-10", "test", folder=Path())
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is refused, it is no CIFAR batch: EOFError"),
        (pickle.dumps([1, 2]), "is refused"),
        (pickle.dumps({b"data": 3}), "is refused"),
        (pickle.dumps({**batch(0), b"data": np.zeros((2, 3072))}), "is of .*f8.*, not of bytes"),
        (pickle.dumps({**batch(0), b"data": np.zeros((2, 3000), np.uint8)}), "is refused"),
        (pickle.dumps({**batch(0), b"labels": [1, 2, 3]}), r"has 2 images but labels \(3,\)"),
        (pickle.dumps({**batch(0), b"labels": [1, 12]}), "label 12 of image 1 is wrong; .* 0 to 9"),
    ],
    ids=["empty", "list", "number", "floats", "width", "count", "label"],
)  # fmt: skip
def test_cifar_batch_refused(home: Path, content: bytes, message: str) -> None:
    pack(home / "cifar-10-python.tar.gz", {**cifar_files(), "data_batch_3": content})
    assert "data_batch_3" in refused(message, "cifar-10") and not cache().exists()


@pytest.mark.parametrize("suffix", ["gz", "xz"])
def test_cifar_archive_refused(home: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = home / f"cifar-10-python.tar.{suffix}"
    pack(archive, cifar_files())
    raw = archive.read_bytes()
    for content in [b"", b"rubbish", raw[:100], raw[: len(raw) // 2]]:
        archive.write_bytes(content)
        refused("is damaged or cut short .*; fetch it again", "cifar-10")
    pack(
        archive, {k: v for k, v in cifar_files().items() if k not in ("data_batch_2", "test_batch")}
    )
    refused("lacks data_batch_2, test_batch; fetch it again", "cifar-10")
    pack(archive, cifar_files())
    monkeypatch.setattr(cifar, "BATCH_LIMIT", 1000)
    refused("data_batch_1 has .* bytes, more than the 1000 of any CIFAR batch", "cifar-10")


# folders of pictures


def picture(
    path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", value: Any = None
) -> None:
    """Save one colour, (H, W) = ``size``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], value if value is not None else 0).save(path)


def test_pictures_in_order_of_name(tmp_path: Path) -> None:
    picture(tmp_path / "p" / "b.png", value=(10, 20, 30))
    picture(tmp_path / "p" / "a.PNG", mode="L", value=40)
    (tmp_path / "p" / "README.txt").write_text("no picture")
    (tmp_path / "p" / ".hidden.png").write_text("no picture")
    data = load("p", "all", folder=tmp_path)
    assert data.images.shape == (2, 3, 6, 4) and data.images.dtype == np.uint8
    assert data.images[:, :, 0, 0].tolist() == [[40] * 3, [10, 20, 30]]
    assert (data.labels, data.classes, data.name) == (None, (), "p")
    assert not data.held_out.any()


@pytest.mark.parametrize("modes", [("L", "1"), ("LA", "L")])
def test_pictures_all_grey(tmp_path: Path, modes: tuple[str, str]) -> None:
    for number, mode in enumerate(modes):
        picture(tmp_path / f"{number}.png", mode=mode)
    assert load(str(tmp_path), "all", folder=Path("/elsewhere")).images.shape == (2, 1, 6, 4)


def test_pictures_of_classes(tmp_path: Path) -> None:
    for number, name in enumerate(["dog/1.png", "dog/0.jpg", "cat/9.bmp"]):
        picture(tmp_path / name, size=(5 + number, 7))
    data = load(".", "train", size=(8, 9), folder=tmp_path)
    assert data.images.shape == (3, 3, 8, 9)
    assert data.labels is not None and data.labels.tolist() == [0, 1, 1]
    assert (data.labels.dtype, data.classes) == (np.int64, ("cat", "dog"))
    few = load(".", "all", size=(8, 9), limit=2, folder=tmp_path)
    assert few.labels is not None and few.labels.tolist() == [0, 1]


def test_pictures_turned_by_the_camera(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right
    Image.new("L", (4, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert load(".", "all", folder=tmp_path).images.shape == (1, 1, 4, 6)


def test_pictures_keep_their_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    images = load(".", "all", folder=tmp_path).images
    assert np.array_equal(images[0].transpose(1, 2, 0), pixels)


def two_sizes(path: Path) -> None:
    picture(path / "a.png", size=(6, 4))
    picture(path / "b.png", size=(6, 5))


def damaged(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50), np.uint8)
    Image.fromarray(noise).save(path / "a.png")
    (path / "a.png").write_bytes((path / "a.png").read_bytes()[:500])


def text(path: Path) -> None:
    (path / "a.png").write_text("<svg/>")


def deep(path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(path / "a.png")


def mixed(path: Path) -> None:
    picture(path / "a.png")
    picture(path / "cat" / "a.png")


def hollow(path: Path) -> None:
    picture(path / "cat" / "a.png")
    (path / "dog").mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_sizes, r"a\.png is \(6, 4\), .*b\.png is \(6, 5\) .*say size = \[H, W\]"),
        (damaged, r"a\.png is a damaged picture: .*truncated"),
        (text, r"a\.png is not a picture that pillow can read"),
        (deep, r"a\.png has more than 8 bits a channel \(mode I;16\)"),
        (mixed, "holds pictures beside folders of pictures; keep one"),
        (hollow, "class folder 'dog' holds no pictures"),
        (lambda path: None, r"holds no pictures; known: \.png, \.jpg"),
    ],
    ids=["sizes", "damaged", "text", "16-bit", "mixed", "hollow", "empty"],
)
def test_pictures_refused(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    make(tmp_path)
    refused(message, ".", folder=tmp_path)


def test_pictures_bomb(tmp_path: Path) -> None:
    """A file of some bytes that says it has 10^10 pixels is refused before it is unpacked."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b""))
    refused("decompression bomb", ".", folder=tmp_path)


# fetch


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server of this machine's own, and the folder that it serves."""

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    served = tmp_path / "served"
    served.mkdir()
    handler = partial(Silent, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/", served
        running.shutdown()
        thread.join(timeout=5)


def serve(monkeypatch: pytest.MonkeyPatch, address: str, file: str, md5: str) -> None:
    monkeypatch.setitem(FILES, "mnist", (address, {file: md5}))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_fetch_then_found(
    server: tuple[str, Path], mnist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served = server
    monkeypatch.delenv("MPICODED_DATA")
    md5s = {}
    for file in mnist.iterdir():
        md5s[file.name] = hashlib.md5(file.read_bytes()).hexdigest()
        file.rename(served / file.name)
    serve(monkeypatch, address, "", "")
    monkeypatch.setitem(FILES, "mnist", (address, md5s))
    assert fetch("mnist") == cache() / "mnist"
    assert len(load("mnist", "all", folder=Path()).images) == 5
    (served / PIXELS).unlink()
    fetch("mnist")  # what is there and right is not fetched again


def test_fetch_refuses_another_file(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, served = server
    (served / "a.gz").write_bytes(b"something else")
    serve(monkeypatch, address, "a.gz", "0" * 32)
    with pytest.raises(DataError, match=r"cannot fetch .*/a\.gz into .*(?s:.*)MPICODED_DATA"):
        fetch("mnist")
    assert not list(cache().rglob("a.gz"))
    serve(monkeypatch, address, "absent.gz", "0" * 32)
    with pytest.raises(DataError, match="cannot fetch .*404"):
        fetch("mnist")


def test_fetch_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, "http://127.0.0.1:9/", "a.gz", "0" * 32)  # nobody listens there
    with pytest.raises(DataError, match=r"cannot fetch http://127\.0\.0\.1:9/a\.gz"):
        fetch("mnist")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", r"no data set 'mnits' \(did you mean 'mnist'\?\); data sets to fetch: mnist,"),
        ("digits", "digits is bundled; data sets to fetch"),
    ],
)  # fmt: skip
def test_fetch_unknown(name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fetch(name)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPICODED_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/cache")
    assert cache() == Path("/some/cache/mpicoded")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache() == Path.home() / ".cache" / "mpicoded"


# the published files, where they are


@pytest.mark.skipif(SHARED is None, reason="needs MPICODED_DATA")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_published_files(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(str(SHARED)) / name
    if not home.is_dir():
        pytest.skip(f"{home} is not there")
    for file, md5 in FILES[name][1].items():
        assert hashlib.md5((home / file).read_bytes()).hexdigest() == md5
    monkeypatch.setenv("MPICODED_DATA", str(SHARED))
    data = load(name, "all", folder=Path())
    assert data.images.shape == (70_000, 1, 28, 28) and data.held_out.sum() == 10_000
    if name == "fashion-mnist":
        assert data.labels is not None and np.bincount(data.labels).tolist() == [7000] * 10
