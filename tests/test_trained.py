"""The trained networks of jobs/lab: their files fit together, and answers are as good as promised.

The data sets are not in the repository: where MPICODED_DATA does not lead to them, only what needs
no image is tested.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mpicoded.codes.erasures import erasures
from mpicoded.deploy import deploy, images, read_weights
from mpicoded.job import Job
from mpicoded.study import evaluate as evaluation
from outcomes import drops, intact

ROOT = Path(__file__).parent.parent
DATA = os.environ.get("MPICODED_DATA")  # before another test's fixture hides it
COUNT = 500  # images tried, if a case names no other number
SLACK = 1.0  # points that a mean over so few may be above that over all 10,000


@dataclass(frozen=True)
class Case:
    """A trained code and what all test images give: k = 4 in a job of the lab, k = 6 as trained."""

    name: str
    code: str  # what the training's name ends with
    grid: tuple[int, int]
    shape: tuple[int, int, int]
    least: float  # accuracy of the unsplit model, %
    drops: tuple[float, float]  # mean with one and with two data units missing, points
    count: int = COUNT  # more where zero-fill loses so little that few images cannot tell

    @property
    def k(self) -> int:
        return self.grid[0] * self.grid[1]

    def job(self) -> Job:
        if self.code == "-code":
            return Job.read(ROOT / f"jobs/lab/{self.name}.toml")
        train = self.training(self.code).train
        assert train is not None
        return Job.read(
            ROOT / f"jobs/train-{self.name}{self.code}.toml", [f'code.weights="{train.out}"']
        )

    def training(self, which: str) -> Job:
        return Job.read(ROOT / f"jobs/train-{self.name}{which}.toml", training=True)


CASES = (
    Case("fashion", "-code", (1, 4), (1, 32, 32), 90.5, (0.3, 0.5)),
    Case("fashion", "-code-k6", (1, 6), (1, 32, 32), 90.5, (0.3, 0.5)),
    Case("cifar", "-code", (1, 4), (3, 32, 32), 87.0, (0.1, 0.5)),
    Case("cifar", "-code-k6", (2, 3), (3, 32, 32), 87.0, (0.1, 0.5), 2000),
    Case("cifar", "-code-early", (1, 6), (3, 32, 32), 87.0, (0.7, 1.6)),
)
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}{case.code}")


@EACH
def test_plan(case: Case) -> None:
    """Two parity units that cost no more than one of data, trained for these base weights."""
    deployment = deploy(case.job(), case.shape)  # checks weights, code and plan together
    (code,), (stage,) = deployment.codes, deployment.plan.stages
    assert (code.name, code.k, code.r) == ("learned", case.k, 2)
    assert stage.grid == case.grid
    assert stage.parity_flops == code.unit_flops(case.k) <= max(s.flops for s in stage.shards)
    sizes = [shard.writes.rows.size * shard.writes.cols.size for shard in stage.shards]
    assert sum(sizes) == stage.output_shape[1] * stage.output_shape[2]
    assert deployment.chain.output_shape == (10,)


@EACH
def test_trainings_are_of_this_job(case: Case) -> None:
    """What the two trainings make, from what, is what the job of the lab names."""
    code = case.training(case.code)
    job, base = case.job(), case.training("")
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
    """The repository stays light: 3 MB for a base model, 6 for a code, 2 of them for a decoder."""
    job = case.job()
    for name in (job.model.weights, job.code.weights):
        assert name is not None
        assert 10e3 < job.path(name).stat().st_size <= (6e6 if name == job.code.weights else 3e6)
    weights, _ = read_weights(job.path(job.code.weights or ""))
    decoder = [tensor for key, tensor in weights.items() if key.startswith("decoder.")]
    assert 0 < sum(4 * tensor.numel() for tensor in decoder) <= 2e6


@EACH
def test_coders_are_cheap(case: Case) -> None:
    """Encoder and decoder: a quarter of a data unit for VGG-9, one for LeNet-5; any two missing."""
    deployment = deploy(case.job(), case.shape)
    (code,), (stage,) = deployment.codes, deployment.plan.stages
    y = torch.zeros(code.n, 1, *stage.unit_shape)
    encoder = flops(lambda: deployment.parity(0, torch.zeros(1, *case.shape)))
    missing = [arrived for arrived in erasures(code.n, 2) if not arrived[: code.k].all()]
    decoder = max(flops(partial(code.decode, y, arrived)) for arrived in missing)
    unit = max(shard.flops for shard in stage.shards)
    assert 0 < encoder + decoder <= unit * (0.25 if case.name == "cifar" else 1)
    assert flops(lambda: code.decode(y, np.ones(code.n, bool))) == 0


def flops(action: Callable[[], object]) -> int:
    action()  # what a pattern alone tells is worked out once
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())


@EACH
def test_answers(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first test images under every erasure pattern, beside zero-fill."""
    job = case.job()
    if DATA is None or not (Path(DATA) / job.input.data).is_dir():
        pytest.skip(f"needs MPICODED_DATA with {job.input.data}/")
    monkeypatch.setenv("MPICODED_DATA", DATA)
    monkeypatch.setattr(evaluation, "images", lambda job, split: images(job, split, case.count))
    found = evaluation.evaluate(job)
    assert found.queries == case.count
    assert intact(found)
    error = 100 * np.sqrt(
        case.least / 100 * (1 - case.least / 100) / case.count
    )  # of one share, points
    assert 100 * found.available > case.least - 3 * error
    for missing, drop in zip((1, 2), case.drops, strict=True):
        lost = drops(found, "learned", missing)
        assert lost.mean() <= drop + SLACK
        assert lost.mean() < drops(found, "zero-fill", missing).mean() / 2
