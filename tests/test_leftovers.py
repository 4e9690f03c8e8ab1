"""What a killed launcher leaves behind: only what no living process owns is taken away."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mpicoded.cluster_tools.launch import leftovers
from mpicoded.cluster_tools.launch.leftovers import (
    LIST,
    MARK,
    MEMORY,
    SHARED,
    new_folder,
    new_memory,
    sweep,
)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    (tmp_path / "memory").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(leftovers, "MEMORY", tmp_path / "memory")


def left() -> tuple[Path, Path]:
    """Both folders of a start whose launcher was killed."""
    program = (
        "import pathlib, sys, tempfile; from mpicoded.cluster_tools.launch import leftovers; "
        "tempfile.tempdir = sys.argv[1]; print(leftovers.new_folder())"
    )
    words = [sys.executable, "-c", program, tempfile.gettempdir()]
    folder = Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())
    memory = new_memory(folder)
    assert memory is not None
    (memory / "sm_segment.pi0.0.1.0").write_bytes(b"x")
    (folder / "ompi.42").mkdir()
    return folder, memory


def test_what_a_dead_launcher_left_is_removed():
    ours, memory = new_folder(), leftovers.MEMORY
    dead = left()
    (memory / "mpich_a").write_bytes(b"x")
    (memory / "mpich_of_another").write_bytes(b"x")
    (memory / "images.npy").write_bytes(b"x")
    (dead[0] / LIST).write_text("mpich_a\nimages.npy\n../../x\n")
    sweep()
    assert not any(path.exists() for path in dead)
    assert ours.is_dir(), "this process lives"
    assert sorted(p.name for p in memory.iterdir()) == ["images.npy", "mpich_of_another"]


def test_a_segment_made_anew_is_another_job_s():
    folder, _ = left()
    (folder / LIST).write_text("mpich_a\n")
    os.utime(folder / LIST, (1.0, 1.0))
    (leftovers.MEMORY / "mpich_a").write_bytes(b"x")
    sweep()
    assert not folder.exists() and (leftovers.MEMORY / "mpich_a").exists()


@pytest.mark.parametrize("part", ["place", "user", "name", "link"])
def test_what_may_be_another_s_stays(part, monkeypatch):
    folder, memory = left()
    words = folder.name.split("-")
    if part == "place":  # another machine, or container, that shares the folder
        words[1] = "00000000"
    elif part == "name":
        words = ["mpicoded", "photos"]
    elif part == "user":
        uid = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    kept = folder.with_name("-".join(words))
    folder.rename(kept)
    memory.rename(kept_memory := memory.with_name(kept.name))
    if part == "link":
        kept.rename(target := kept.with_name("elsewhere"))
        kept.symlink_to(target)
        kept_memory.rename(kept.with_name("memory-elsewhere"))
        kept = target
    sweep()
    assert (kept / "ompi.42").is_dir()


def test_the_ranks_of_a_dead_launcher_are_ended(monkeypatch):
    monkeypatch.setattr(leftovers, "LEAVE", 0.1)
    folder, _ = left()
    rank = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: folder.name})
    other = subprocess.Popen(["sleep", "600"], env={**os.environ, MARK: "another"})
    sweep()
    assert rank.wait(5) == -9 and other.poll() is None and not folder.exists()
    other.kill()
    other.wait()


def test_a_reboot_ends_every_launcher(monkeypatch):
    folder = new_folder()
    monkeypatch.setattr(leftovers, "_boot", lambda: "00000000")
    sweep()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        (f"{MEMORY}/sm_segment.n0.0.abc.1", True),
        (f"{MEMORY}/mpich_shar_tmpXYZ", True),
        (f"{MEMORY}/images.npy", False),
        (f"{MEMORY}/venv/lib/libtorch.so", False),
    ],
)
def test_only_the_shared_memory_of_mpi_is_noted(path, ours):
    line = f"7f00-7f10 rw-s 00000000 00:17 42    {path}\n"
    assert bool(SHARED.findall(line)) is ours
