"""Damaged and hostile results files: numbers that changed are noticed, and nothing else is read.

``MPICODED_FLIPS=2000 pytest tests/test_damage.py`` tries more damages than the suite does.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mpicoded.cluster_tools.launch.progress import look
from mpicoded.commands import main
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded, Results, load
from mpicoded.results.layout import overwritten
from mpicoded.results.reader import OUTPUTS
from running import reseal, write_run

FLIPS = int(os.environ.get("MPICODED_FLIPS", "40"))
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
    # half of them where something stands: much of a file is room for events that never came
    held = draw.random() < 0.5
    while held and not any(content[at : at + 8]):
        at = draw.randrange(size)
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
    try:
        results = resume(path, like)
    except ResultsError as error:
        assert "\n" not in str(error)
        return
    pending = set(results.pending)
    results.close(finished=False)
    again = load(path)
    kept = [q for q in range(QUERIES) if q not in pending and like.queries["mode"][q]]
    for name, values in like.queries.items():
        assert again.queries[name][kept].tobytes() == values[kept].tobytes(), name
    for name in ("output", "class", "mode"):
        values = like.predictions[name]
        assert again.predictions[name][kept].tobytes() == values[kept].tobytes(), name
    assert set(again.events.tolist()) <= set(like.events.tolist())


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
        check_resumed(path, like)
    assert noticed > FLIPS / 2


def test_the_last_answer_of_a_killed_run_is_told_to_the_launcher(tmp_path: Path) -> None:
    """Killed when its row was whole and its mode was not yet there: nothing is pending."""
    path = tmp_path / "run.h5"
    write_run(path, QUERIES).close(finished=False)
    with h5py.File(path, "r+") as file:
        file["queries/mode"][-1] = 0
    like = load(path)
    results = resume(path, like)
    assert not results.pending.size and not results.damage
    results.close(finished=True)
    progress = look(path)
    assert progress is not None and progress.finished
    assert progress.answered == QUERIES


def test_rows_are_read_in_blocks(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So much at once as fits into memory; it makes no difference."""
    path = tmp_path / "run.h5"
    shutil.copy(sound, path)
    like = load(path)
    monkeypatch.setattr("mpicoded.results.checks.BLOCK", 300)
    again, light = numbers(load(path)), numbers(load(path, outputs=False))
    assert same(again, numbers(like))
    assert again.keys() - light.keys() == set(OUTPUTS)
    check_resumed(path, like)


def test_what_does_not_fit_into_memory_is_not_read(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpicoded.room._free", lambda: 1000)
    with pytest.raises(ResultsError, match="its numbers take .* MB, and 0.001 MB of memory are"):
        load(sound)
    monkeypatch.setattr("mpicoded.room.MUCH", 1000)
    monkeypatch.setattr("mpicoded.room.TIGHTEST", 0)
    with pytest.raises(ResultsError, match="hold numbers of .* MB, and real ones do not shrink"):
        load(sound)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    os.mkfifo(path)
    assert look(path) is None
    for name in (path, Path("/dev/zero")):
        with pytest.raises(ResultsError, match="it is a (FIFO|device), not a file"):
            load(name)


def other(path: str, **how: Any) -> Callable[[h5py.File], None]:
    """Make another data set in place of this one."""

    def change(file: h5py.File) -> None:
        shape = how.pop("shape", file[path].shape)
        del file[path]
        file.create_dataset(path, shape, **how)

    return change


def link(path: str, target: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[path]
        file[path] = target

    return change


def virtual(file: h5py.File) -> None:
    shape = file["queries/own"].shape
    layout = h5py.VirtualLayout(shape, "f8")
    layout[:] = h5py.VirtualSource("run.h5", "queries/latency", shape)
    del file["queries/own"]
    file.create_virtual_dataset("queries/own", layout)


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs[name] = value

    return change


def number(path: str, value: float) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[path][...] = value

    return change


def sizes(**changed: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file.attrs["layout"] = json.dumps(json.loads(file.attrs["layout"]) | changed)

    return change


RAW = [("run.raw", 0, 8 * QUERIES)]
MADE_UP: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "group elsewhere": (link("queries", h5py.ExternalLink("run.h5", "/queries")), "or a link"),
    "rows elsewhere": (link("plan/rank", h5py.ExternalLink("run.h5", "/plan/rank")), "or a link"),
    "soft link": (link("plan/rank", h5py.SoftLink("/plan/flops")), "plan/rank is missing or"),
    "loop": (link("queries", h5py.SoftLink("/queries")), "or a link"),
    "virtual": (virtual, "queries/own is not stored"),
    "raw file": (other("queries/own", dtype="f8", external=RAW), "queries/own is not stored"),
    "packed": (other("queries/own", dtype="f8", compression=9), "queries/own is not stored"),
    "references": (other("plan/rank", dtype=h5py.ref_dtype), "plan/rank is not stored"),
    "lists": (other("queries/own", dtype=h5py.vlen_dtype("f8")), "queries/own is not stored"),
    "no shape": (link("queries/own", h5py.Empty("f8")), "queries/own is not stored"),
    "many attributes": (lambda f: [f.attrs.create(f"a{i}", 0) for i in range(999)], "no results"),
    "long attribute": (attribute("x", np.zeros(9000)), "attributes that no results file has"),
    "no text": (attribute("layout", np.bytes_(b"\xff")), "is damaged, or of another"),
    "bomb": (sizes(queries=10**12), "has the shape"),
    "no size": (sizes(queries="x"), "is damaged, or of another"),
    "no mode": (number("queries/mode", 77), "is damaged"),
    "no rank": (number("trace/rank", 2**31 - 1), "trace/rank .* is not in 0 to 8"),
    "no query": (number("trace/query", -(2**63)), "trace/query"),
    "no time": (number("queries/answered", np.inf), "queries/answered inf is not in"),
    "no events": (number("trace/events", 2**62), "events"),
}


@pytest.mark.parametrize("name", MADE_UP)
def test_a_file_that_was_made_to_mislead_is_refused(
    name: str,
    sound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change, told = MADE_UP[name]
    path = tmp_path / "made-up.h5"
    shutil.copy(sound, tmp_path / "run.h5")
    shutil.copy(sound, path)
    with h5py.File(path, "r+") as file:
        change(file)
    reseal(path)
    monkeypatch.setattr("sys.argv", ["mpicoded", "report", str(path), "--breakdown"])
    assert main() == 2
    error = capsys.readouterr().err
    assert re.search(told, error), error
    assert error.count("\n") == 1
    if name in ("no mode", "no events"):  # what is damaged is answered again
        resume(path, load(sound)).close(finished=False)
        assert load(path).layout.starts == 2
    else:
        with pytest.raises(ResultsError):
            resume(path, load(sound))


def test_what_numbers_that_make_no_sense_do_is_one_line(
    sound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each of them could be, but not one beside the other."""
    path, draw = tmp_path / "run.h5", random.Random(4)
    content = sound.read_bytes()
    for _ in range(FLIPS // 10):
        path.write_bytes(content)
        with h5py.File(path, "r+") as file:
            name = draw.choice([v.path for v in overwritten(load(sound).layout)])
            values = file[name][...]
            draw_from = np.random.default_rng(draw.randrange(1000))
            file[name][...] = draw_from.permuted(values) if values.ndim else values
        reseal(path)
        monkeypatch.setattr("sys.argv", ["mpicoded", "report", str(path), "--breakdown"])
        assert main() in (0, 2)
        assert capsys.readouterr().err.count("\n") <= 1
