"""The trained networks of jobs/lab: their files fit together, and answers are as good as promised.

The data sets are not in the repository: where MPICODED_DATA does not lead to them, only what needs
no image is tested.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mpicoded.deploy import deploy, images
from mpicoded.job import Job
from mpicoded.training import evaluate as evaluation

ROOT = Path(__file__).parent.parent
DATA = os.environ.get("MPICODED_DATA")  # before another test's fixture hides it
COUNT = 500  # images tried
SLACK = 1.0  # points that a mean over so few may be above that over all 10,000


@dataclass(frozen=True)
class Case:
    """A job of the lab, and what all test images give."""

    name: str
    shape: tuple[int, int, int]
    least: float  # accuracy of the unsplit model, %
    drops: tuple[float, float]  # mean with one and with two data units missing, points

    def job(self) -> Job:
        return Job.read(ROOT / f"jobs/lab/{self.name}.toml")

    def training(self, which: str) -> Job:
        return Job.read(ROOT / f"jobs/train-{self.name}{which}.toml", training=True)


CASES = (
    Case("fashion", (1, 32, 32), 90.5, (0.8, 1.7)),
    Case("cifar", (3, 32, 32), 87.0, (2.4, 6.6)),
)
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EACH
def test_plan(case: Case) -> None:
    """Four columns and two parity units, with the code trained for these base weights."""
    deployment = deploy(case.job(), case.shape)  # checks weights, code and plan together
    assert [(code.name, code.k, code.r) for code in deployment.codes] == [("learned", 4, 2)]
    (stage,) = deployment.plan.stages
    assert stage.grid == (1, 4)
    assert sum(shard.writes.cols.size for shard in stage.shards) == stage.output_shape[2]
    assert deployment.chain.output_shape == (10,)


@EACH
def test_trainings_are_of_this_job(case: Case) -> None:
    """What the two trainings make, from what, is what the job of the lab names."""
    job, base, code = case.job(), case.training(""), case.training("-code")
    assert base.train is not None
    assert code.train is not None
    for trained, served in (
        (base.train.out, job.model.weights),
        (code.train.out, job.code.weights),
    ):
        assert served is not None
        assert (ROOT / "jobs" / trained).resolve() == job.path(served)
    assert code.path(code.model.weights or "") == job.path(job.model.weights or "")
    given = {"data", "size", "mean", "std"}
    assert len({str(each.input.model_dump(include=given)) for each in (job, base, code)}) == 1
    assert base.model.name == code.model.name == job.model.name
    assert code.plan == job.plan


@EACH
def test_weights_are_small(case: Case) -> None:
    """The repository stays light: at most 3 MB each."""
    job = case.job()
    for name in (job.model.weights, job.code.weights):
        assert name is not None
        assert 10e3 < job.path(name).stat().st_size <= 3e6


@EACH
def test_answers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test images under every erasure pattern, beside zero-fill."""
    job = case.job()
    if DATA is None or not (Path(DATA) / job.input.data).is_dir():
        pytest.skip(f"needs MPICODED_DATA with {job.input.data}/")
    monkeypatch.setenv("MPICODED_DATA", DATA)
    monkeypatch.setattr(evaluation, "images", lambda job, split: images(job, split, COUNT))
    found = evaluation.evaluate(job)
    assert found.queries == COUNT
    assert found.same_bits
    assert found.same_predictions
    error = 100 * np.sqrt(case.least / 100 * (1 - case.least / 100) / COUNT)  # of one share, points
    assert 100 * found.available > case.least - 3 * error
    for missing, drop in zip((1, 2), case.drops, strict=True):
        drops = found.drops("learned", missing)
        assert drops.mean() <= drop + SLACK
        assert drops.mean() < found.drops("zero-fill", missing).mean() / 2
