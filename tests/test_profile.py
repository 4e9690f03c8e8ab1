"""A cluster is measured, the stages are chosen for it, and a run keeps what was predicted."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from digits import UNTRAINED
from many_jobs import LiveRanks
from mpicoded import __main__ as program
from mpicoded import clusterfile
from mpicoded.commands.profile import grids
from mpicoded.errors import JobError
from mpicoded.job import Job
from mpicoded.models import build
from mpicoded.network.graph import trace
from mpicoded.results import load

JOB = f"""\
{UNTRAINED}
limit = 3
[plan]
split = "width"
stages = "auto"
cluster = "cluster.toml"
[code]
k = 2
[runtime]
wire = "float16"
"""
BLOCKS = {"conv1", "pool1", "conv2", "pool2"}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(JOB)
    return path


def test_measured_planned_and_run(
    job: Path, ranks: LiveRanks, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = ranks.run(3, "profile", job)
    assert ended.status == 0, ended.output
    cluster = clusterfile.read(job.parent / "cluster.toml")
    assert len(cluster.devices) == 3 and all(cluster.hosts)
    for device, names in zip(cluster.devices, (BLOCKS | {"head"}, BLOCKS, BLOCKS), strict=True):
        assert set(device.blocks) == names
        assert all(0 < rate < np.inf for rate in (device.flops, device.values, device.pack))
    for link in cluster.links:
        assert 0 < link.sends < np.inf and 0 < link.receives < np.inf and link.latency < 60

    monkeypatch.setattr(sys, "argv", ["mpicoded", "plan", str(job)])
    assert program._alone() == 0 and "one device, T_1" in capsys.readouterr().out
    ended = ranks.run(3, "run", job)
    assert ended.status == 0, ended.output
    plan = load(job.with_suffix(".h5")).plan
    assert (plan["predicted"] > 0).all() and plan["predicted"].sum() < plan["predicted_latency"]
    assert plan["bound"] <= plan["predicted_latency"]
    told = "one device is predicted to be faster" in ended.stderr
    assert told == (plan["predicted_latency"] >= plan["predicted_alone"])


def test_without_a_cluster_nothing_is_predicted(job: Path, ranks: LiveRanks) -> None:
    job.write_text(JOB.replace('stages = "auto"\ncluster = "cluster.toml"\n', ""))
    ended = ranks.run(1, "run", job)
    assert ended.status == 0, ended.output
    plan = load(job.with_suffix(".h5")).plan
    assert np.isnan(plan["predicted"]).all() and np.isnan(plan["predicted_latency"])


NEEDS = {
    "one rank": (1, [], r"one rank has no links to measure: start more"),
    "no file": (2, ["--set", "plan.stages=[]", "--set", "plan.cluster=x/y.toml"], "cannot be writ"),
}


@pytest.mark.parametrize("case", NEEDS)
def test_what_profile_needs(case: str, job: Path, ranks: LiveRanks) -> None:
    n, more, why = NEEDS[case]
    ended = ranks.run(n, "profile", job, *more)
    assert ended.status == 2 and why in " ".join(ended.stderr.split()), ended.output
    assert not (job.parent / "cluster.toml").exists()


def test_grids(job: Path) -> None:
    """LeNet-5's smallest map is 6 x 6 here; pieces are as the job cuts, coarser, and whole."""
    chain = trace(build("lenet5", {}), (1, 32, 32))
    side = min(chain.shapes[block.exit][2] for block in chain.blocks)
    for k, fine in ((2, 2), (50, side)):
        found = grids(Job.read(job, [f"code.k={k}"]), chain)
        assert found == ((1, fine), (1, max(1, fine // 2)), (1, 1))
    tiles = ["plan.split=tiles", "plan.tiles=[4,2]", "code.k=8"]
    assert grids(Job.read(job, tiles), chain) == ((4, 2), (2, 1), (1, 1))


def test_auto_and_what_it_needs(job: Path) -> None:
    with pytest.raises(JobError, match=r'\[plan\] stages: "auto" cuts maps'):
        Job.read(job, ["plan.split=batch"])
    with pytest.raises(JobError, match=r"there is no such"):
        Job.read(job).measured()
    job.write_text(JOB.replace('cluster = "cluster.toml"\n', ""))
    with pytest.raises(JobError, match=r"\[plan\] cluster: is missing; stages = .auto. needs"):
        Job.read(job)
