"""Inputs made to hang, to fill the memory or to reach other files: one line, or what was asked."""

from __future__ import annotations

import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from torch import nn

from mpicoded.datasets import cifar, load
from mpicoded.errors import DataError, ModelError
from mpicoded.network.graph import trace

IMAGES = np.random.default_rng(1).integers(0, 256, (6, 1, 8, 8), np.uint8)
NAMES = ("fifo", "socket", "loop", "dangling", "device")


def refused(message: str, source: str, folder: Path, split: str = "all", **more: Any) -> None:
    with pytest.raises(DataError, match=message) as error:
        load(source, split, folder=folder, **more)
    assert "\n" not in str(error.value) and len(str(error.value)) < 6000


def special(path: Path, kind: str) -> None:
    """Make what is no file at ``path``."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as line:
            here = os.getcwd()
            os.chdir(path.parent)  # the path of a socket must be short
            line.bind(path.name)
            os.chdir(here)
    else:
        path.symlink_to({"loop": path.name, "dangling": "nowhere", "device": "/dev/zero"}[kind])


WORDS = {
    "fifo": "it is a FIFO, not a file",
    "socket": "it is a socket, not a file",
    "loop": "links lead in a circle|Too many levels of symbolic links",
    "dangling": "no file|No such file",
    "device": "it is a device, not a file",
}


@pytest.mark.parametrize("kind", WORDS)
@pytest.mark.parametrize("name", ["x.npy", "x.h5", "x"])
def test_what_is_no_file(tmp_path: Path, kind: str, name: str) -> None:
    special(tmp_path / name, kind)
    refused(WORDS[kind], name, tmp_path)


@pytest.mark.parametrize("kind", WORDS)
def test_what_is_no_picture(tmp_path: Path, kind: str) -> None:
    Image.fromarray(IMAGES[0, 0]).save(tmp_path / "a.png")
    special(tmp_path / "b.png", kind)
    refused(WORDS[kind], ".", tmp_path)
    assert len(load(".", "all", limit=1, folder=tmp_path).images) == 1  # b.png is not asked for


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b.npy", "NUL"),
        ("x" * 5000 + ".npy", "has 5004 bytes; a path has at most 4095"),
        ("a/" * 3000, "has 6000 bytes"),
        ("x" * 300 + ".h5", "255 between two slashes"),
        ("~nouser/x.npy", "there is no user 'nouser' here"),
    ],
)
def test_names_that_no_file_has(tmp_path: Path, name: str, message: str) -> None:
    refused(message, name, tmp_path)


# .npy


def npy(path: Path, shape: Any, descr: Any = "<f4", order: bool = False, size: int = 4096) -> None:
    head = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode().ljust(117)
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + head + b"\n" + bytes(size))


@pytest.mark.parametrize(
    ("shape", "more", "message"),
    [
        ((-1, 1, 32, 32), {}, r"has shape \(-1, 1, 32, 32\)"),
        ((10**9, 3, 224, 224), {}, "needs 602112000000000 bytes, it has 4096"),
        ((2**62, 2**62, 2**62, 8), {}, "is not a whole .npy array"),
        ((1, 2, 32, 32), {}, "needs 8192 bytes, it has 4096"),
        ((1, 1, 8, 8), {}, "needs 256 bytes, it has 4096"),
        ((10**9, 1, 32, 32), {"order": True}, "is not a whole .npy array"),
        ((1, 1, 32, 32), {"descr": "|O"}, "is object; images are"),
        ((1, 1, 32, 32), {"descr": "<c8"}, "is complex64; images are"),
        ((1, 1, 32, 32), {"descr": [("a", "<f4")]}, "; images are uint8"),
        ((1, 1, 32, 32), {"descr": "x"}, "is not a whole .npy array"),
        ("nonsense", {}, "is not a whole .npy array"),
        ((1.5, 2, 3), {}, "is not a whole .npy array"),
    ],
)
def test_npy_heads(tmp_path: Path, shape: Any, more: dict[str, Any], message: str) -> None:
    npy(tmp_path / "x.npy", shape, **more)
    refused(message, "x.npy", tmp_path)


@pytest.mark.parametrize("dtype", ["|u1", ">f4", "<f8"])
def test_npy_in_fortran_order(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "x.npy", np.asfortranarray(IMAGES.repeat(3, 1).astype(dtype)))
    data = load("x.npy", "all", limit=4, folder=tmp_path)
    assert np.array_equal(data.images, IMAGES[:4].repeat(3, 1))


def test_npy_is_read_slab_by_slab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).random((50, 2, 6, 5))
    np.save(tmp_path / "x.npy", array)
    whole = load("x.npy", "all", folder=tmp_path, size=(3, 4)).images
    monkeypatch.setattr("mpicoded.datasets.slabs.SLAB", 1000)
    assert np.array_equal(load("x.npy", "all", folder=tmp_path, size=(3, 4)).images, whole)
    assert np.array_equal(load("x.npy", "all", folder=tmp_path).images, array.astype(np.float32))


# HDF5


@pytest.fixture
def h5(tmp_path: Path) -> Callable[..., None]:
    def write(make: Callable[[Any], object] | None = None, **datasets: Any) -> None:
        with h5py.File(tmp_path / "x.h5", "w") as file:
            for name, values in datasets.items():
                file[name] = values
            if make is not None:
                make(file)

    return write


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((6, 1, 8, 8), "u1")
    layout[:] = h5py.VirtualSource("/nowhere.h5", "images", (6, 1, 8, 8))
    file.create_virtual_dataset("images", layout, fillvalue=7)


def circle(file: Any) -> None:
    file["images"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/images")


def bomb(file: Any) -> None:
    """One chunk of 64 bytes a row, that unpacks to 2 GB."""
    node = file.create_dataset("images", (6, 1, 8, 8), "u1", chunks=(6, 1, 8, 8), compression=9)
    packer = zlib.compressobj(9)
    raw = b"".join(packer.compress(bytes(1 << 20)) for _ in range(200)) + packer.flush()
    node.id.write_direct_chunk((0, 0, 0, 0), raw)


def raw_file(file: Any) -> None:
    external = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("images", (6, 1, 2, 2), "u1", external=external)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (virtual, "'images' is a virtual data set, made of others; an input holds its own data"),
        (circle, "its links lead in a circle"),
        (raw_file, "'images' keeps its values in another file, '/etc/passwd'"),
        (bomb, r"the chunk at \(0, 0, 0, 0\) unpacks to more than its 384 bytes"),
        (lambda f: f.__setitem__("images", h5py.Empty("u1")), r"has shape \(\)"),
        (lambda f: f.__setitem__("images", h5py.SoftLink("/nope")), "'nope' on its way is not"),
        (
            lambda f: f.__setitem__("images", h5py.ExternalLink("/etc/x.h5", "/images")),
            "'images' is a link into another file, '/etc/x.h5'",
        ),
        (
            lambda f: f.create_dataset("images", (6, 1, 8, 8), "u1", chunks=True),
            "the values of image 0 were never written",
        ),
        (
            lambda f: f.create_dataset("images", (10**5, 64, 64), "u1", chunks=(10**5, 64, 64)),
            "has chunks of 409,600,000 bytes",
        ),
        (
            lambda f: f.create_dataset("images", (10**9, 64, 64), "u1", chunks=(1, 64, 64)),
            "0.0014 MB hold images of 8.0 GB, and real ones do not shrink 256 times",
        ),
    ],
)
def test_h5_images(
    h5: Callable[..., None], tmp_path: Path, make: Callable[[Any], object], message: str
) -> None:
    h5(make)
    refused(message, "x.h5", tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.full(6, 2**62),
            "label 4611686018427387904 of image 0 is wrong; labels are 0 to 999999",
        ),
        (np.full(6, 2**63 + 1, np.uint64), "label 9223372036854775809 of image 0 is wrong"),
        (h5py.SoftLink("/nope"), "'labels' is a link, and 'nope' on its way is not there"),
        (h5py.ExternalLink("other.h5", "/labels"), "'labels' is a link into another file"),
        (h5py.Empty("i8"), "'labels' is int64 None; 6 images need integers"),
    ],
)
def test_h5_labels(h5: Callable[..., None], tmp_path: Path, labels: Any, message: str) -> None:
    h5(images=IMAGES, labels=labels)
    refused(message, "x.h5", tmp_path)


def test_links_within_a_file_are_followed(h5: Callable[..., None], tmp_path: Path) -> None:
    h5(images=h5py.SoftLink("deep/er"), **{"deep/er": h5py.SoftLink("/own"), "own": IMAGES})
    assert np.array_equal(load("x.h5", "all", folder=tmp_path).images, IMAGES)


@pytest.mark.parametrize("split", ["all", "train", "test"])
def test_h5_only_the_rows_asked_for(h5: Callable[..., None], tmp_path: Path, split: str) -> None:
    """10^9 rows are there, of which ten were written; nobody reads the others."""

    def make(file: Any) -> None:
        shapes = {"images": ((1, 8, 8), "u1"), "labels": ((), "i8"), "held_out": ((), "?")}
        for name, (rest, kind) in shapes.items():
            chunks = (10, *rest)
            node = file.create_dataset(name, (10**9, *rest), kind, chunks=chunks)
            node[:10] = np.broadcast_to(
                np.arange(10).reshape(-1, *[1] * len(rest)) % 7, (10, *rest)
            )

    h5(make)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("mpicoded.datasets.hdf5.BLOCK", 10)
    with monkey.context():
        data = load("x.h5", split, limit=1 if split == "train" else 5, size=(4, 4), folder=tmp_path)
    monkey.undo()
    rows = {"all": [0, 1, 2, 3, 4], "train": [0], "test": [1, 2, 3, 4, 5]}[split]
    assert data.labels is not None and data.labels.tolist() == rows
    assert data.images.shape == (len(rows), 1, 4, 4) and data.images[:, 0, 0, 0].tolist() == rows


LOCKS = """
#include <errno.h>
int flock(int f, int o) { errno = ENOLCK; return -1; }
"""


def test_a_file_system_without_locks(h5: Callable[..., None], tmp_path: Path) -> None:
    h5(images=IMAGES)
    (tmp_path / "locks.c").write_text(LOCKS)
    library = tmp_path / "locks.so"
    built = subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "locks.c"])
    if built.returncode:
        pytest.skip("there is no C compiler")
    code = (
        "from pathlib import Path; from mpicoded.datasets import load\n"
        f"print(len(load('x.h5', 'all', folder=Path({str(tmp_path)!r})).images))"
    )
    env = {**os.environ, "LD_PRELOAD": str(library)}

    def run(**more: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code], env=env | more, capture_output=True, text=True, timeout=60
        )
        return done.stdout + done.stderr

    assert run() == "6\n"
    assert "cannot lock it" in run(HDF5_USE_FILE_LOCKING="TRUE")


# folders


def test_folders_of_folders(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(IMAGES[0, 0]).save(tmp_path / name / "a.png")
    refused(rf"but train, val do: name one, '{tmp_path}/train'", ".", tmp_path)
    assert load("train", "all", folder=tmp_path).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "told"), [("0 1 10 11 2 3 9", True), ("000 001 010", False), ("a1 a10 a2", False)]
)
def test_numbered_folders(tmp_path: Path, names: str, told: bool) -> None:
    for name in names.split():
        (tmp_path / name).mkdir()
        Image.fromarray(IMAGES[0, 0]).save(tmp_path / name / "a.png")
    data = load(".", "all", folder=tmp_path)
    order = sorted(names.split(), key=int) if told else sorted(names.split())
    assert data.classes == tuple(order) and data.labels is not None
    assert data.labels.tolist() == list(range(len(order)))
    assert ("in the order of the folders' numbers" in data.note) == told
    assert ("10 is 5" in data.note) == told


def test_ten_thousand_pictures_of_which_two_are_asked_for(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number:05}.png").touch()
    for number in range(2):
        Image.fromarray(IMAGES[number, 0]).save(tmp_path / f"{number:05}.png")
    assert np.array_equal(load(".", "all", limit=2, folder=tmp_path).images, IMAGES[:2])
    refused(r"00002\.png is not a picture", ".", tmp_path)


def test_a_picture_starts_no_program(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    refused("is not a picture that pillow can read", ".", tmp_path)


def test_channels_last(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 16, 16, 3), np.uint8))
    refused(r"channels last; .*\.transpose\(0, 3, 1, 2\)", "x.npy", tmp_path, size=(8, 8))
    with pytest.raises(ModelError, match=r"channels last: .*\.transpose\(0, 3, 1, 2\)"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3)), (16, 16, 3))


def test_sizes_that_nothing_holds(tmp_path: Path) -> None:
    refused("hold images of .* GB", "digits", tmp_path, size=(16384, 16384))


# CIFAR-10


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo of 2^31 places
        b"\x80\x04(" + b"K\x01\x85" + b"\x94h\x00h\x00\x86" * 1 + b"K\x01d.",
        pickle.dumps({(1, 2): 3}, 4),
        pickle.dumps({1, 2}, 4),
        pickle.dumps({b"data": 1, b"labels": [[1]]}, 4),
    ],
)
def test_cifar_batches_of_no_batch(raw: bytes) -> None:
    with pytest.raises(DataError, match="is refused, it is no CIFAR batch"):
        cifar._batch(raw, "x")


def test_cifar_archive_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPICODED_DATA", str(tmp_path))
    monkeypatch.setattr(cifar, "LIMIT", 1 << 20)
    (tmp_path / "cifar-10").mkdir()
    with tarfile.open(tmp_path / "cifar-10" / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = 1 << 22
        with open("/dev/zero", "rb") as zeros:
            archive.addfile(member, zeros)
    refused("unpacks to more than 1048576 bytes", "cifar-10", tmp_path)
