"""Ranks that never come, that leave too early, that a foreign mpirun starts: the job ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from digits import Digits
from launching import MPICH, Ended, Running
from mpicoded.processes import START_LIMIT
from mpicoded.runtime.backoff import Stopwatch
from mpicoded.runtime.start import start_limit

LIMIT = 3
END = LIMIT + 10  # s after a rank was struck
SITE = """
import os, signal
if os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK")) == "2":
    {}
"""
FACTORY = """
import os, signal
from mpicoded.commands import run
from mpicoded.models import MODELS

def lenet():
    {}
    return MODELS["lenet5"]()
"""


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        (["{job}"], 7.0),
        (["--set", "runtime.start_limit=3.5", "{job}"], 3.5),
        (["{job}", "--set=runtime.start_limit=4"], 4.0),
        (["{job}", "--set", "runtime.start_limit=-1"], START_LIMIT),
        (["{job}", "--set", "runtime.start_limit=soon"], START_LIMIT),
        (["absent.toml"], START_LIMIT),
        (["{broken}"], START_LIMIT),
        (["{hostile}"], START_LIMIT),
        (["{quoted}"], 5.0),
        ([], START_LIMIT),
    ],
)
def test_every_rank_knows_the_limit(tmp_path, words, seconds):
    names = {name: tmp_path / f"{name}.toml" for name in ("job", "broken", "hostile", "quoted")}
    names["job"].write_text("[runtime]\nstart_limit = 7\n")
    names["broken"].write_text("[runtime\n")
    names["hostile"].write_text("a." * 200_000 + "a=1\n# start_limit = 2\n")
    names["quoted"].write_text("runtime = { threads = 2, start_limit = 5.0 }\n")
    assert start_limit([word.format_map(names) for word in words]) == seconds


def test_a_pause_of_the_whole_process_is_no_waiting(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch()
    for now in (100.5, 101.0, 5000.0):  # noqa: B007
        seconds = watch.seconds()
    assert seconds == 1.0 + Stopwatch.LONGEST


def small(start: Callable[..., Running], folder: Path, limit: int = LIMIT) -> Digits:
    """Return a job of the digits on three ranks, whose start has a limit."""
    limits = (f"runtime.start_limit={limit}", "runtime.end_limit=2")
    return Digits(start, folder, "input.limit=20", *limits, small=True, k=1)


def module(folder: Path, name: str, text: str) -> dict[str, str]:
    (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": f"{folder}:{Path(__file__).parents[1]}"}


STRIKES = {
    "ulfm": ("openmpi", True, "os._exit(1)"),
    "openmpi": ("openmpi", False, "os.kill(os.getpid(), signal.SIGSTOP)"),
    "mpich": ("mpich", False, "os.kill(os.getpid(), signal.SIGSTOP)"),
}


@pytest.fixture(scope="module")
def absences(beside: Callable[..., Future[Any]]) -> dict[str, Future[Any]]:
    def absent(
        start: Callable[..., Running], folder: Path, mpi: str, ft: bool, strike: str
    ) -> tuple[Digits, Ended]:
        run = small(start, folder)
        run.start(mpi=mpi, ft=ft, env=module(folder, "sitecustomize", SITE.format(strike)))
        return run, run.running.wait(timeout=60)

    return {name: beside(absent, *how) for name, how in STRIKES.items()}


@pytest.mark.parametrize("name", STRIKES)
def test_a_rank_that_never_comes_to_mpi_init_is_named(absences, name):
    run, ended = absences[name].result()
    assert ended.status != 0 and not ended.left, ended.output
    assert "ranks [2] of 3 on " in ended.stderr and "MPI_Init within 3 s" in ended.stderr
    assert not run.path.exists()


def stopped_leader(start: Callable[..., Running], folder: Path, mpi: str, ft: bool) -> Ended:
    run = small(start, folder)
    strike = "os.write(2, b'now'); os.kill(os.getpid(), signal.SIGSTOP)"
    env = module(folder, "mine", FACTORY.format(strike))
    run.sets += ["--set", "model.name=mine:lenet"]
    run.start(mpi=mpi, ft=ft, env=env)
    run.running.wait_for("now", timeout=60)
    return run.running.wait(timeout=END)


def stopped_worker(start: Callable[..., Running], folder: Path) -> Ended:
    run = small(start, folder)
    strike = "import time; time.sleep(2)"  # for the leader only
    env = module(folder, "mine", FACTORY.format(strike))
    env |= module(folder, "sitecustomize", SITE.format("import stopping"))
    (folder / "stopping.py").write_text(
        "import os, signal, sys, threading, time\n"
        "def stop():\n"
        "    while 'mpicoded.runtime.worker' not in sys.modules: time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGSTOP)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
    )
    run.sets += ["--set", "model.name=mine:lenet"]
    run.start(env=env)
    return run.running.wait(timeout=60)


@pytest.fixture(scope="module")
def stops(beside: Callable[..., Future[Ended]]) -> dict[str, Future[Ended]]:
    return {
        "worker": beside(stopped_worker),
        "openmpi": beside(stopped_leader, "openmpi", True),
        "mpich": beside(stopped_leader, "mpich", False),
    }


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_a_leader_that_is_stopped_while_it_starts(stops, mpi):
    ended = stops[mpi].result()
    assert ended.status != 0 and not ended.left, ended.output
    assert "rank 0 gave rank 1 on " in ended.stderr


def test_a_worker_that_is_stopped_while_it_starts(stops):
    ended = stops["worker"].result()
    assert ended.status == 1 and not ended.left, ended.output
    assert "error: a worker failed: ranks [2] of 3 on " in ended.stderr


def test_a_signal_amid_a_destructor_is_not_lost():
    program = """
import mpi4py, os, signal, time
mpi4py.rc.initialize = False
from mpicoded.runtime.exit import end_on_signals

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

end_on_signals()
Dying()
time.sleep(60)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50)
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGTERM, b"")


def code_of_the_job_exits(start: Callable[..., Running], folder: Path) -> None:
    run = small(start, folder, limit=60)
    env = module(folder, "mine", FACTORY.format("raise SystemExit"))
    run.sets += ["--set", "model.name=mine:lenet"]
    run.start(env=env)
    ended = run.running.wait(timeout=60)
    assert (ended.status, ended.left) == (2, ()), ended.output
    assert "error: exit() was called in the run" in ended.stderr and not run.path.exists()


def the_leader_is_killed_when_the_workers_are_done(
    start: Callable[..., Running], folder: Path
) -> None:
    """The file is not finished, and so mpirun's status must not be 0."""
    run = small(start, folder, limit=60)
    strike = "run.compare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    env = module(folder, "mine", FACTORY.format(strike))
    run.sets += ["--set", "model.name=mine:lenet"]
    run.start(env=env)
    ended = run.running.wait(timeout=60)
    assert run.answered() == 20 and not run.load().finished
    assert ended.status != 0 and not ended.left, ended.output


def a_signal_to_the_leader_alone(
    start: Callable[..., Running], folder: Path, number: signal.Signals
) -> None:
    run = small(start, folder, limit=60)
    run.sets += ["--set", "faults=[{kind='delay', rank='all', seconds=0.2}]"]
    run.start()
    run.wait_until(3)
    run.running.signal(0, number)
    ended = run.running.wait(timeout=20)
    assert ended.status == 128 + number and not ended.left, ended.output


def the_mpirun_of_another_mpi(start: Callable[..., Running], folder: Path, mpi: str) -> None:
    """Every process finds itself alone; nothing is written."""
    run = small(start, folder, limit=60)
    libraries = {
        "openmpi": MPICH / "lib" / "libmpi.so.12",
        "mpich": Path(sys.prefix) / "lib" / "libmpi.so.40",
    }
    assert libraries[mpi].exists()
    run.start(mpi=mpi, ft=False, env={"MPI4PY_LIBMPI": str(libraries[mpi])})
    ended = run.running.wait(timeout=60)
    assert (ended.status, ended.left) == (2, ()), ended.output
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "mpirun started 3 processes" in errors[0]
    assert not run.path.exists()


ENDS: dict[str, tuple[Any, ...]] = {
    "code of the job exits": (code_of_the_job_exits,),
    "the leader is killed when the workers are done": (
        the_leader_is_killed_when_the_workers_are_done,
    ),
    "SIGTERM to the leader alone": (a_signal_to_the_leader_alone, signal.SIGTERM),
    "SIGINT to the leader alone": (a_signal_to_the_leader_alone, signal.SIGINT),
    "the mpirun of Open MPI, the library of MPICH": (the_mpirun_of_another_mpi, "openmpi"),
    "the mpirun of MPICH, the library of Open MPI": (the_mpirun_of_another_mpi, "mpich"),
}


@pytest.fixture(scope="module")
def ends(beside: Callable[..., Future[None]]) -> dict[str, Future[None]]:
    return {name: beside(*end) for name, end in ENDS.items()}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_that_is_no_good_one(ends, name):
    ends[name].result()
