"""Damaged and hostile results files: numbers that changed are noticed, and nothing else is read.

``MPICODED_FLIPS=2000 pytest tests/test_damage.py`` tries more damages than the suite does.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from mpicoded import seal
from mpicoded.answer import Mode
from mpicoded.commands import app
from mpicoded.errors import ResultsError
from mpicoded.launch.progress import look
from mpicoded.results import Loaded, Results, load
from mpicoded.results.checks import checksums
from mpicoded.results.file import dataset
from mpicoded.results.layout import overwritten
from mpicoded.trace import EVENT
from running import write_run

FLIPS = int(os.environ.get("MPICODED_FLIPS", "150"))
QUERIES = 120


@pytest.fixture(scope="module", params=["finished", "cut short"])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a run that came to its end, or of one that was killed when all but 20 were."""
    path = tmp_path_factory.mktemp("sound") / "run.h5"
    run = write_run(path, QUERIES)
    run.close(finished=True)
    if request.param == "cut short":
        cut_short(path)
    return path


def cut_short(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["status"][()] = 0
        for name in ("queries/mode", "queries/check"):
            file[name][100:] = 0


def damage(content: bytes, draw: random.Random) -> bytes:
    """Flip a bit, replace a byte, spoil a block, empty a block, cut off the end or add to it."""
    size, at = len(content), draw.randrange(len(content))
    length = draw.choice([1, 2, 8, 100, 4096])
    block = {
        "bit": lambda: bytes([content[at] ^ 1 << draw.randrange(8)]),
        "byte": lambda: draw.randbytes(1),
        "burst": lambda: draw.randbytes(min(length, size - at)),
        "zeros": lambda: bytes(min(length, size - at)),
    }
    kind = draw.choice(["bit", "bit", "bit", "byte", "byte", "burst", "zeros", "cut", "more"])
    if kind == "cut":
        return content[:at]
    if kind == "more":
        return content + draw.randbytes(length)
    new = block[kind]()
    return content[:at] + new + content[at + len(new) :]


def numbers(loaded: Loaded) -> dict[str, Any]:
    groups = ("plan", "cluster", "queries", "predictions", "labels")
    found = {f"{g}/{n}": v for g in groups for n, v in getattr(loaded, g).items()}
    return found | {"events": loaded.events, "finished": loaded.finished, "attrs": loaded.attrs}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    assert a.keys() == b.keys()
    return a["attrs"] == b["attrs"] and all(
        np.asarray(a[name]).tobytes() == np.asarray(b[name]).tobytes()
        if np.asarray(a[name]).dtype != object
        else np.array_equal(a[name], b[name])
        for name in a.keys() - {"attrs"}
    )


def resume(path: Path, like: Loaded) -> Results:
    """Resume a file that is the one loaded as ``like``, or should be."""
    job, hosts = like.attrs["job"], list(like.cluster["host"][0])
    return Results.resume(path, like.layout, job_text=job, hosts=hosts, flush=60.0)


def check_resumed(path: Path, like: Loaded) -> None:
    """What still counts after a resume are the numbers that were written, or it is refused."""
    with resume(path, like) as results:
        pending = set(results.pending)
    again = h5py.File(path, "r")
    kept = [q for q in range(QUERIES) if q not in pending and like.queries["mode"][q]]
    for name, values in like.queries.items():
        assert again[f"queries/{name}"][:][kept].tobytes() == values[kept].tobytes(), name
    for name in ("output", "class", "mode"):
        values = like.predictions[name]
        assert again[f"predictions/{name}"][:][kept].tobytes() == values[kept].tobytes(), name
    events = load(path).events
    assert set(events.tolist()) <= set(like.events.tolist())


def test_changed_numbers_are_noticed(sound: Path, tmp_path: Path) -> None:
    content, like, draw = sound.read_bytes(), load(sound), random.Random(9)
    before, path, noticed = numbers(like), tmp_path / "run.h5", 0
    for number in range(FLIPS):
        path.write_bytes(damage(content, draw))
        look(path)
        try:
            assert same(numbers(load(path)), before), f"damage {number} passed"
        except ResultsError as error:
            noticed += 1
            assert "\n" not in str(error)
        try:
            check_resumed(path, like)
        except ResultsError as error:
            assert "\n" not in str(error)
    assert noticed > FLIPS / 2
