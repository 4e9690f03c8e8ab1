"""The leader, or the whole job, is killed: the file holds what was answered, --resume the rest."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from digits import Digits
from launching import Ended
from mpicoded.answer import Mode
from mpicoded.results import Loaded
from mpicoded.trace import Action

PACE = 0.005


def table(ended: Ended) -> str:
    """What was printed behind the progress bar."""
    assert "results: " in ended.stdout
    return ended.stdout[ended.stdout.index(" ranks on ") :]


def check_events(loaded: Loaded) -> None:
    """Every unit that a query was decoded from was sent and arrived in the trace."""
    used = {tuple(int(i) for i in place) for place in np.argwhere(loaded.queries["arrived"])}
    for action in (Action.SEND, Action.ARRIVE):
        events = loaded.events[loaded.events["action"] == action]
        told = set(
            zip(*(events[name].tolist() for name in ("query", "stage", "unit")), strict=True)
        )
        assert used <= told, f"{len(used - told)} of {len(used)} have no {action.name}"


def check_resumed(run: Digits, **how: object) -> str:
    """Resume: every query has one answer, those that were there stay. Return the table."""
    check_events(run.load())
    before = run.load().queries
    kept = before["mode"] != Mode.PENDING
    assert 0 < kept.sum() < kept.size
    assert not run.load().finished
    run.start("--resume", **how)
    ended = run.end(timeout=60)
    after = run.load()
    assert after.finished
    check_events(after)
    for name in ("answered", "mode", "arrived", "attempts"):
        assert np.array_equal(after.queries[name][kept], before[name][kept])
    assert (after.queries["answered"][~kept] > before["answered"][kept].max()).all()
    assert not np.isnan(after.predictions["output"]).any()
    return table(ended)


def test_the_leader_is_killed(start, tmp_path):
    run = Digits(start, tmp_path, "input.limit=600", small=True, k=1, pace=PACE)
    run.start()
    run.wait_until(100)
    run.kill([0])
    ended = run.running.wait(timeout=20)
    assert ended.status != 0
    assert ended.left == (), "the workers leave"
    printed = check_resumed(run)
    assert run.load().layout.starts == 2
    run.start("--resume")
    assert table(run.end(timeout=60)) == printed, "a finished file has nothing to add"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_mpirun_is_ended(start, tmp_path, number):
    run = Digits(start, tmp_path, "input.limit=600", small=True, k=1, pace=PACE)
    run.start()
    run.wait_until(100)
    run.running.process.send_signal(number)
    ended = run.running.wait(timeout=20)
    assert ended.status != 0
    assert ended.left == ()
    check_resumed(run)


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_a_worker_is_killed_without_ulfm(start, tmp_path, mpi):
    run = Digits(start, tmp_path, "input.limit=600", small=True, k=1, pace=PACE)
    run.start(mpi=mpi, ft=False)
    run.wait_until(100)
    run.kill([2])
    ended = run.running.wait(timeout=20)
    assert ended.status != 0, ended.output
    assert ended.left == ()
    check_resumed(run, mpi=mpi, ft=False)
