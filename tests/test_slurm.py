"""jobs/slurm.sbatch under a real Slurm: a run, a rank that is killed, and a job that is requeued.

Three emulated nodes on this machine, see slurm_cluster.py; the last test takes one of them away.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from digits import ROOT, Digits
from launching import environ
from mpicoded.answer import Mode
from mpicoded.trace import Action
from slurm_cluster import Slurm, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "Slurm is here")

SCRIPT = ROOT / "jobs" / "slurm.sbatch"
RANKS = 3
PACE = 0.02


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.end()


class Batch(Digits):
    """A small run that is submitted with jobs/slurm.sbatch."""

    def __init__(self, slurm: Slurm, folder: Path, *sets: str) -> None:
        super().__init__(
            lambda *_: None, folder, "results.unsplit=false", *sets, small=True, k=1, pace=PACE
        )
        self.slurm, self.log = slurm, folder / "job.log"

    def submit(self) -> None:
        options = [f"--ntasks={RANKS}", "--cpus-per-task=1", f"--output={self.log}"]
        self.number = self.slurm.submit(
            SCRIPT, str(self.job), *self.sets, options=options, cwd=ROOT
        )

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def wait_for(self, answered: int) -> None:
        self.slurm.wait_until(lambda: self.answered() >= answered, 120)

    def done(self) -> None:
        """Wait for the end of the job; everything is answered, and once."""
        waiting = ("PENDING", "CONFIGURING", "RUNNING")
        self.slurm.wait_until(lambda: self.state() not in waiting, 120)
        # A node that died leaves its job COMPLETING, which says nothing of how it ended.
        assert self.state() in ("COMPLETED", "COMPLETING"), self.text() + self.slurm.logs()
        assert self.slurm.about(self.number, "ExitCode") == "0:0", self.text()
        run = self.load()
        assert run.finished
        assert set(run.queries["mode"].tolist()) <= {Mode.AVAILABLE, Mode.DEGRADED}
        assert not np.isnan(run.predictions["output"]).any()
        assert "results: " in self.text()

    def state(self) -> str:
        return self.slurm.about(self.number, "JobState")

    def ranks(self) -> dict[int, int]:
        """Pid by rank."""
        envs = {pid: environ(pid) for pid in sorted(self.slurm.pids(), reverse=True)}
        name = "OMPI_COMM_WORLD_RANK"
        return {int(env[name]): pid for pid, env in envs.items() if name in env}


def test_a_task_is_killed(slurm, tmp_path):
    run = Batch(slurm, tmp_path, "input.limit=200")
    run.submit()
    run.wait_for(60)
    os.kill(run.ranks()[2], signal.SIGKILL)
    run.done()
    assert run.events(Action.FAIL)["rank"].tolist() == [2]
    assert "launch: " not in run.text(), "the code makes good what a rank owed"
    hosts = run.load().cluster["host"]
    assert hosts.tolist() == [["node1", "node1", "node2"]]


def test_the_job_is_requeued(slurm, tmp_path):
    run = Batch(slurm, tmp_path, "input.limit=200")
    run.submit()
    run.wait_for(60)
    before = run.load().queries
    slurm.ask("scontrol", "requeue", run.number)
    slurm.wait_until(lambda: run.state() == "PENDING", 30)
    run.done()
    kept = before["mode"] != Mode.PENDING
    after = run.load()
    assert 0 < kept.sum() < kept.size
    assert after.layout.starts == 2
    for name in ("answered", "mode", "arrived", "attempts"):
        assert np.array_equal(after.queries[name][kept], before[name][kept])


def test_a_node_dies(slurm, tmp_path):
    run = Batch(slurm, tmp_path, "faults=[]", "input.limit=1000")
    run.submit()
    run.wait_for(60)
    slurm.kill_node("node2")
    run.done()
    assert "node2 does not answer (2 ranks instead of 3), starting again without; " in run.text()
    hosts = run.load().cluster["host"]
    assert hosts[0].tolist() == ["node1", "node1", "node2"]
    assert sorted(hosts[1].tolist()) == ["", "node1", "node1"]
