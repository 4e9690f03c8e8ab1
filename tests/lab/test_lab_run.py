"""Jobs on a lab: every query is answered, faults come when they are to, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from digits import TRAINED
from lab_programs import state, wait_for
from mpicoded.answer import Mode
from mpicoded.cluster_tools.lab import up
from mpicoded.cluster_tools.lab.inject import inject
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.spec import equal
from mpicoded.cluster_tools.lab.state import Home
from mpicoded.results import Loaded, load
from mpicoded.trace import Action

JOB = f"""\
seed = 7
{TRAINED}
limit = 240
[plan]
split = "width"
stages = ["pool2"]
[code]
name = "replication"
k = 2
r = 2
[runtime]
window = 2
[results]
file = "out.h5"
unsplit = false
"""
FAULTS = """
[[faults]]
kind = "cpu"
rank = 1
start = 0.1
stop = 0.3
share = 0.5
[[faults]]
kind = "rate"
rank = 2
mbit = 5.0
start = 0.1
stop = 0.3
[[faults]]
kind = "link"
rank = 3
start = 0.4
seconds = 0.5
"""
ANSWERED = {Mode.AVAILABLE, Mode.DEGRADED}
REBOOT = """
[[faults]]
kind = "reboot"
rank = 2
start = 0.3
seconds = 3.0
"""


@pytest.fixture(scope="module")
def home(shared_home: Home) -> Home:
    """One lab for all tests: each leaves it as it was built, the last takes it away."""
    return shared_home


@pytest.fixture(scope="module")
def lab(home: Home) -> Lab:
    spec = equal(5, 0.2, 50_000_000, None, "switched", 128)
    up.up(home, spec)
    return Lab.of(home, spec)


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str], Path]:
    def write(more: str) -> Path:
        file = tmp_path / "job.toml"
        file.write_text(JOB + more)
        return file

    return write


def check_quiet(lab: Lab) -> None:
    """No process, no fault, nobody on the line; limits are in force."""
    now = lab.home.need()
    assert (now.run, now.faults, lab.home.line.exists()) == (None, (), False)
    assert all(lab.limited(i) and not lab.group(i).pids() for i in range(5))
    assert [traffic.rate for traffic in lab.network.traffic()] == [50_000_000] * 5
    assert [list(lab.home.tmp(node.name).iterdir()) for node in lab.spec.nodes] == [[]] * 5


def times(results: Loaded, action: Action, rank: int) -> list[tuple[float, float]]:
    events = results.events
    chosen = events[(events["action"] == action) & (events["rank"] == rank)]
    return [(float(event["start"]), float(event["stop"])) for event in chosen]


def test_job_with_faults_of_its_own_and_from_a_shell(lab, job, lab_verb, home):
    process = lab_verb("run", job(FAULTS))
    wait_for(lambda: home.need().run and lab.limited(4) and lab.ranks(4), 60)
    inject(home, "freeze", "n4", None, 0.3)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    check_quiet(lab)
    results = load(job(FAULTS).with_name("out.h5"))
    assert set(results.queries["mode"]) <= ANSWERED and len(results.queries["mode"]) == 240
    for action, rank in ((Action.CPU, 1), (Action.RATE, 2), (Action.LINK, 3), (Action.FREEZE, 4)):
        begun, ended = times(results, action, rank)
        assert begun[0] == begun[1] == ended[0] < ended[1], action
    _, (began, ended) = times(results, Action.LINK, 3)
    assert ended - began == pytest.approx(0.5, abs=0.3)


def test_node_that_reboots_loses_no_query(lab, job, lab_verb):
    process = lab_verb("run", job(REBOOT))
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, out + err
    assert "does not answer" in out + err
    check_quiet(lab)
    results = load(job(REBOOT).with_name("out.h5"))
    assert set(results.queries["mode"]) <= ANSWERED and len(results.queries["mode"]) == 240


PROGRAM = """
import os, sys, time
from mpi4py import MPI
comm = MPI.COMM_WORLD
hosts = comm.gather((MPI.Get_processor_name(), os.environ["ONEDNN_MAX_CPU_ISA"]))
if hosts:
    print(sys.argv[1:], hosts, flush=True)
if "wait" in sys.argv:
    time.sleep(60)
"""


def test_program_of_the_users_own(lab, lab_verb, tmp_path):
    (tmp_path / "own.py").write_text(PROGRAM)
    process = lab_verb(
        "run", "--program", tmp_path / "own.py", "-n", 3, "--limit-start", "one", "--", "--two"
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    names = [(f"n{i}", "SSE41") for i in range(3)]
    assert out.splitlines()[0].strip() == f"{['one', '--two']} {names}"
    check_quiet(lab)


def test_ctrl_c_ends_a_run_and_stopped_ranks_too(lab, lab_verb, home, tmp_path):
    (tmp_path / "own.py").write_text(PROGRAM)
    process = lab_verb("run", "--program", tmp_path / "own.py", "wait")
    wait_for(lambda: all(lab.ranks(i) for i in range(5)), 60)
    inject(home, "freeze", "n3", None, None)
    wait_for(lambda: state(min(lab.ranks(3))) == "T")
    other = lab_verb("run", "--program", tmp_path / "own.py")
    assert "runs a job in the lab already" in other.communicate(timeout=30)[1]
    assert other.returncode == 2
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    check_quiet(lab)


def test_run_that_was_killed_does_not_spoil_the_next(lab, lab_verb, home, tmp_path):
    (tmp_path / "own.py").write_text(PROGRAM)
    process = lab_verb("run", "--program", tmp_path / "own.py", "wait")
    wait_for(lambda: all(lab.ranks(i) for i in range(5)), 60)
    inject(home, "cpu", "n3", 0.5, None)
    process.kill()
    process.communicate()
    process = lab_verb("run", "--program", tmp_path / "own.py")
    assert "n3 has a fault: cpu 0.5" in process.communicate(timeout=60)[1]
    assert process.returncode == 0
    inject(home, "end", "n3", None, None)
    check_quiet(lab)


def test_down_ends_a_run(lab, lab_verb, home, tmp_path):
    (tmp_path / "own.py").write_text(PROGRAM)
    process = lab_verb("run", "--program", tmp_path / "own.py", "wait")
    wait_for(lambda: all(lab.ranks(i) for i in range(5)), 60)
    began = time.monotonic()
    assert up.down(home)
    assert process.wait(10) == 128 + signal.SIGTERM
    assert time.monotonic() - began < 25
