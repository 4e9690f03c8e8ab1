"""Seeded ways to damage a file: bytes, numbers and strings of TOML, what a path leads to."""

from __future__ import annotations

import gzip
import json
import os
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import h5py
import numpy as np
from PIL import Image

Mutation = Callable[[Path, Random], None]

NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3",
    "7",
    "1000",
    "65536",
    "1000000",
    "2147483647",
    "4294967296",
    "1000000000",
    "9223372036854775807",
    "18446744073709551616",
    "1000000000000000000000000000000",
    "0.0",
    "-0.5",
    "1e-320",
    "1e308",
    "1e400",
    "inf",
    "-inf",
    "nan",
    "true",
    "0x7fffffff",
    "1_0",
    "[]",
    "[0]",
    "[1,2,3]",
    "[1000000,1000000]",
    "{}",
    "{a=1}",
    '""',
    "''",
    '"5"',
    "1979-05-27",
] + [
    "9" * 5000,
    "[" * 3000,
    "[" * 40 + "1" + "]" * 40,
]
STRINGS = (
    "", ".", "..", "/", "a/b/c", "\\u0000", "a\\u0000b.h5", "~nouser/x.h5", "x" * 5000, "x" * 300,
    "a/" * 3000, "fifo", "fifo.npy", "socket.h5", "loop", "loop.h5", "dangling.npy", "device.npy",
    "device.h5", "empty", "none.h5", "images.h5:", "images.h5:labels", "images.h5:/", "a\\nb",
    "\\u001b[2J", "\\ud83d", "é", "%s{}%d", "-n", "--help", "inf", "auto", "all", "uncoded", "mds",
    "learned", "zerofill", "replication", "berrut", "tiles", "batch", "channels", "uint8", "int8",
)  # fmt: skip
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1)


def damage(raw: bytes, random: Random) -> bytes:
    """Change some bytes of a file."""
    data = bytearray(raw)
    for _ in range(random.choice((1, 1, 1, 2, 8))):
        at = random.randrange(min(len(data), random.choice((64, 2048, 1 << 30))) or 1)
        length = random.choice((1, 2, 4, 8, 64))
        kind = random.randrange(8)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + length] = random.randbytes(length)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + length]
        elif kind == 4:
            data[at:at] = random.randbytes(length)
        elif kind == 5:
            data[at:at] = data[at : at + 256]
        else:
            value = random.choice(EXTREMES)
            form = random.choice(("<I", ">I", "<Q", ">Q", "<H"))
            size = struct.calcsize(form)
            data[at : at + size] = struct.pack(form, value % (1 << 8 * size))
    return bytes(data)


def of_bytes(path: Path, random: Random) -> None:
    path.write_bytes(damage(path.read_bytes(), random))


def inside_gzip(path: Path, random: Random) -> None:
    path.write_bytes(gzip.compress(damage(gzip.decompress(path.read_bytes()), random), 1))


def of_toml(path: Path, random: Random) -> None:
    """Replace a value, or take out, double, or make up a line."""
    lines = path.read_text().splitlines()
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(lines))
        kind = random.randrange(8)
        key, equals, _ = lines[at].partition("=")
        if kind < 6 and equals:
            string = random.random() < (0.7 if '"' in lines[at] else 0.1)
            value = f'"{random.choice(STRINGS)}"' if string else random.choice(NUMBERS)
            lines[at] = f"{key}= {value}"
        elif kind == 6:
            lines[at] = random.choice(("", lines[at] * 2, lines[at] + "\n" + lines[at], "x = 1"))
        else:
            junk = (
                "\x00",
                "\ufeff",
                "a." * 500 + "b = 1",
                "[[faults]]",
                "[x",
                "= 3",
                "\r",
                "x" * 9999,
            )
            lines.insert(at, random.choice(junk))
    path.write_text("\n".join(lines), newline=random.choice(("\n", "\r\n")))


def of_words(path: Path, random: Random) -> None:
    """Replace one word of a text that is no TOML."""
    words = re.split(r"(\W+)", path.read_text())
    at = random.randrange(len(words))
    words[at] = random.choice((random.choice(NUMBERS), random.choice(STRINGS), "", words[at] * 2))
    path.write_text("".join(words))


def of_json(path: Path, random: Random) -> None:
    """Replace one value, at any depth."""
    data = json.loads(path.read_text())
    inside: Any = data
    while True:
        keys = list(inside) if isinstance(inside, dict) else range(len(inside))
        key = random.choice(list(keys) or [0])
        below = inside[key] if keys else None
        if not isinstance(below, dict | list) or not below or random.random() < 0.3:
            break
        inside = below
    values = (0, -1, 1.5, 10**30, float("nan"), float("inf"), "", "1", None, [], {}, [1], True)
    if isinstance(inside, dict) or inside:
        inside[key] = random.choice(values)
    path.write_text(json.dumps(data))


def of_kind(path: Path, random: Random) -> None:
    """Put something else in the place of a file."""
    if path.is_dir():
        path = random.choice(sorted(p for p in path.rglob("*") if p.is_file()))
    path.unlink()
    kind = random.randrange(7)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.symlink_to(path.name)
    elif kind == 2:
        path.symlink_to("nowhere")
    elif kind == 3:
        path.mkdir()
    elif kind == 4:
        here = os.open(path.parent, os.O_PATH)  # a socket's own path must be short
        with socket.socket(socket.AF_UNIX) as line:
            line.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
    elif kind == 5:
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"")


def of_folder(path: Path, random: Random) -> None:
    """Damage one picture, or put a strange one beside the others."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    one = random.choice(files)
    kind = random.randrange(5)
    if kind < 2:
        of_bytes(one, random)
    elif kind == 2:
        of_kind(one, random)
    elif kind == 3:
        mode = random.choice(("1", "L", "P", "RGBA", "CMYK", "I;16", "F", "LA"))
        Image.new(mode, (random.choice((1, 8, 3000)), 8)).save(one, "TIFF", compression="tiff_lzw")
    else:
        one.rename(one.with_suffix(random.choice((".png", ".gif", ".webp", ".tif", ".txt"))))


def new_npy(path: Path, random: Random) -> None:
    """Write an .npy file with a head of any kind."""
    shape = tuple(
        random.choice((0, 1, 4, 32, -1, 2**31, 2**62)) for _ in range(random.randrange(6))
    )
    shape = random.choice((shape, (12, 1, 32, 32), (32, 32, 12)))
    dtypes = ("|u1", "<f4", ">f4", "<f2", "<f8", "<c8", "|O", "|V8", "<M8[s]", "|S9", "<U3", "|b1",
              "<f16", [("a", "<f4")], "x", ("<f4", (2, 2)))  # fmt: skip
    head: dict[str, Any] = {"descr": random.choice(dtypes), "fortran_order": random.random() < 0.4,
                            "shape": shape}  # fmt: skip
    if random.random() < 0.2:
        head.pop(random.choice(list(head)))
    text = repr(head) if random.random() < 0.9 else "(" * 5000
    raw = text.encode().ljust(117) + b"\n"
    size = random.choice((0, 100, 12 * 1024, 12 * 4096))
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(size))


def new_h5(path: Path, random: Random) -> None:
    """Write an HDF5 file in which one thing is as no input should be."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 32, 32), np.uint8)
    name = random.choice(("images", "images", "labels", "held_out"))
    good = {"images": images, "labels": np.arange(12) % 10, "held_out": np.arange(12) % 4 == 0}
    with h5py.File(path, "w", libver=random.choice(("earliest", "latest"))) as file:
        for each, values in good.items():
            if each != name:
                file[each] = values
        random.choice(ODD)(file, name, good[name], random)


def _layout(file: Any, name: str, values: Any, random: Random) -> None:
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(random.choice(("/nowhere.h5", ".")), name, values.shape)
    file.create_virtual_dataset(name, layout)


def _circle(file: Any, name: str, values: Any, random: Random) -> None:
    file[name], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink(f"/{name}")


def _lazy(file: Any, name: str, values: Any, random: Random) -> None:
    shape = (random.choice((12, 10**9)), *values.shape[1:])
    chunks = (random.choice((1, 5, 12)), *values.shape[1:])
    file.create_dataset(name, shape, values.dtype, chunks=chunks, compression="gzip")
    if random.random() < 0.5:
        file[name][:5] = values[:5]


def _strange(file: Any, name: str, values: Any, random: Random) -> None:
    kinds = ("<f8", ">f4", "<f2", "<c8", "<i8", "<u8", "S9", "V7", [("a", "<f4")])
    file[name] = np.zeros(values.shape, random.choice(kinds))


ODD: tuple[Callable[[Any, str, Any, Random], None], ...] = (
    _layout,
    _circle,
    _lazy,
    _lazy,
    _strange,
    lambda f, name, values, r: f.__setitem__(name, h5py.Empty(values.dtype)),
    lambda f, name, values, r: f.__setitem__(name, h5py.SoftLink("/nope")),
    lambda f, name, values, r: f.__setitem__(name, h5py.ExternalLink("fifo", "/x")),
    lambda f, name, values, r: f.create_group(name),
    lambda f, name, values, r: f.__setitem__(name, values[0]),
    lambda f, name, values, r: f.__setitem__(name, values[:0]),
    lambda f, name, values, r: f.__setitem__(name, 3),
    lambda f, name, values, r: f.__setitem__(name, "text"),
    lambda f, name, values, r: f.__setitem__(name, np.full(values.shape, r.choice((-1, 2**62)))),
    lambda f, name, values, r: f.__setitem__(
        name, np.full(values.shape, r.choice((np.nan, 1e300)))
    ),
    lambda f, name, values, r: f.create_dataset(
        name, values.shape, values.dtype, external=[("/dev/zero", 0, h5py.h5f.UNLIMITED)]
    ),
)
