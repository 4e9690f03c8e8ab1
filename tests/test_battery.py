"""The battery that strikes processes, in short, and its judge, which has to see what is wrong."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import h5py
import pytest

from mpicoded.answer import Mode
from mpicoded.cluster_tools.launch.mpi import Mpi
from running import reseal, write_run

LAB = Path(__file__).parents[1] / "jobs" / "lab"
OPENMPI, QUERIES = Mpi("openmpi", "5.0.11", "mpirun"), 20


@pytest.fixture(autouse=True)
def _modules(monkeypatch):
    monkeypatch.syspath_prepend(str(LAB))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.h5"
    write_run(path, QUERIES).close(finished=True)
    return path


def test_the_launcher_is_struck_and_the_rest_is_run(tmp_path):
    words = ["--start", "--seed", "1", "--only", "156", "--queries", "100"]
    ended = subprocess.run(
        [sys.executable, LAB / "battery.py", *words, "--limit", "120", "--out", tmp_path],
        text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    told = "156 serving + 0.26 s: terminate launcher: ok"
    assert told in ended.stdout, ended.stdout + ended.stderr
    assert "1 runs by launch (1 struck)" in ended.stdout
    assert ended.returncode == 0
    assert not list(tmp_path.iterdir())


def test_a_strike_is_drawn_from_its_number():
    from strike import MOMENTS, Strike

    drawn = [Strike.draw(3, run) for run in range(300)]
    assert drawn == [Strike.draw(3, run) for run in range(300)]
    assert {each.moment for each in drawn} == set(MOMENTS)
    assert {each.victim for each in drawn if each.moment == "launcher"} == {"launcher"}
    assert "launcher" not in {Strike.draw(3, run, "mpirun").victim for run in range(300)}


def test_a_complete_file_is_complete(file):
    from trial import answered, changed, complete

    assert complete(file, QUERIES) == ""
    assert changed(answered(file), answered(file)) == {}


def test_pending_lost_and_unfinished_are_told(file):
    from trial import complete

    with h5py.File(file, "r+") as changing:
        changing["queries/mode"][:3] = [Mode.PENDING, Mode.LOST, Mode.LOST]
        changing["queries/check"][0] = 0
        changing["status"][()] = 0
    reseal(file)
    why = "1 of 20 queries are pending, 2 of 20 queries are lost, the file is not finished"
    assert complete(file, QUERIES) == why
    assert "20 queries, not 30" in complete(file, 30)


def test_an_answer_that_is_given_twice_is_told(file):
    from trial import answered, changed

    before = answered(file)
    with h5py.File(file, "r+") as changing:
        changing["queries/answered"][5] += 1.0
    reseal(file)
    assert changed(before, answered(file)) == {"lost or changed": "answered changed"}


def test_an_answer_that_is_gone_and_a_damaged_file_are_told(file):
    from trial import answered, changed

    before = answered(file)
    with h5py.File(file, "r+") as changing:
        changing["queries/mode"][4] = Mode.PENDING
        changing["queries/check"][4] = 0
        changing["status"][()] = 0
    reseal(file)
    assert changed(before, answered(file)) == {"lost or changed": "answers [4] are gone"}
    os.truncate(file, 1000)
    assert "the file is damaged" in changed(before, answered(file))["lost or changed"]
    file.unlink()
    assert "the file is gone" in changed(before, answered(file))["lost or changed"]


@pytest.mark.parametrize(
    ("victim", "kind", "by", "status", "why", "wrong"),
    [
        ("worker", "kill", "launch", 0, "", ""),
        ("worker", "kill", "launch", 0, "1 is lost", "0, but 1 is lost"),
        ("worker", "kill", "launch", 1, "", "1, but it had to go on"),
        ("mpirun", "stop", "launch", 1, "1 is lost", "1, but it had to go on"),
        ("launcher", "terminate", "launch", 143, "1 is lost", ""),
        ("launcher", "kill", "launch", -9, "1 is lost", ""),
        ("launcher", "kill", "launch", 0, "", "0 of a process that was killed"),
        ("launcher", "pause", "launch", 1, "", "1, but it had to go on"),
        ("leader", "kill", "mpirun", 137, "1 is lost", ""),
        ("leader", "kill", "mpirun", 0, "1 is lost", "0, but 1 is lost"),
        ("worker", "kill", "mpirun", 137, "1 is lost", "137, but it had to go on"),
    ],
)
def test_the_exit_status_is_judged(victim, kind, by, status, why, wrong):
    import trial
    from strike import Blow, Strike

    strike = Strike("serving", 0.5, victim, kind)
    assert trial.wrong(strike, by, OPENMPI, Blow(0.0, (1,)), status, why) == wrong


def test_leftovers_are_found_but_not_what_is_in_use(file, tmp_path):
    from leftovers import SHM, Leftovers

    leftovers, mark = Leftovers(tmp_path / "tmp", file), uuid.uuid4().hex
    used, loose, other = (SHM / f"{mark}{name}" for name in ("a.0", "a.1", "b.0"))
    (tmp_path / "tmp" / "mpicoded-x").mkdir(parents=True)
    try:
        for path in (used, loose, other):
            path.write_bytes(bytes(mmap.PAGESIZE))
        with used.open("r+b") as opened, mmap.mmap(opened.fileno(), 0):
            leftovers.look([os.getpid()])
            assert leftovers.found() == ["mpicoded-x", "tmp", loose.name]
        assert leftovers.found() == ["mpicoded-x", "tmp", used.name, loose.name]
        leftovers.remove()
        assert [path.exists() for path in (used, loose, other)] == [False, False, True]
    finally:
        for path in (used, loose, other):
            path.unlink(missing_ok=True)


def test_processes_are_known_by_what_they_are(tmp_path):
    from started import Started

    script = "OMPI_COMM_WORLD_RANK=3 sleep 60 & wait"
    job = Started("launcher", ["sh", "-c", script], {}, tmp_path / "log", tmp_path)
    try:
        while (rank := job.find("rank 3")) is None:
            assert job.runs()
        assert job.find("launcher") == job.process.pid
        os.kill(rank, signal.SIGSTOP)
        while "rank 3 T" not in job.told():
            assert job.runs()
        job.process.kill()
        job.process.wait()
        assert not job.ended()  # a rank outlives it
    finally:
        job.kill()
    assert job.ended()
