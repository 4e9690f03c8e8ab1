"""Training learns, repeats itself, goes on exactly where it stopped; the committed weights hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mpicoded import units
from mpicoded.codes import CodeRequest
from mpicoded.codes.learned import build
from mpicoded.deploy import deploy, fingerprint, images, read_weights
from mpicoded.errors import DataError, JobError, ModelError, PlanError
from mpicoded.geometry import Range
from mpicoded.job import Job
from mpicoded.models import build as build_model
from mpicoded.network.graph import trace
from mpicoded.network.ops import Pixels
from mpicoded.partition import PARTITIONS, Request
from mpicoded.runtime.deployment import Deployment
from mpicoded.training import train as training
from mpicoded.training.evaluate import Evaluation, evaluate
from mpicoded.training.lessons import CodeLesson, Images, Jitter

ROOT = Path(__file__).parent.parent
BASE, CODE = ROOT / "jobs/train-lenet5-digits.toml", ROOT / "jobs/train-code-digits.toml"
WEIGHTS = ROOT / "data/learned-digits-k6r2.safetensors"
SMALL = {
    BASE: ("input.limit=512", "train.batch=32", "train.epochs=8"),
    CODE: ("input.limit=256", "train.batch=32", "train.epochs=8"),
}
BOTH = pytest.mark.parametrize("file", [BASE, CODE], ids=["base", "code"])


def small(file: Path, out: Path, *more: str) -> Job:
    """Return the committed job, much shorter."""
    return Job.read(file, [*SMALL[file], f'train.out="{out}"', *more], training=True)


@BOTH
def test_learns(file: Path, tmp_path: Path) -> None:
    """In eight short epochs the loss falls to half of the first's, on validation to 0.6."""
    job = small(file, tmp_path / "w.safetensors")
    trained = training.train(job)
    course = trained.course
    assert course.losses[-1] < 0.5 * course.losses[0]
    assert course.validations[course.best] < 0.6 * course.validations[0]
    assert not (tmp_path / "w.checkpoint").exists()


@BOTH
def test_learns_in_bfloat16(file: Path, tmp_path: Path) -> None:
    """Nearly as well as in float32, and the weights are float32."""
    courses = []
    for precision in ("float32", "bfloat16"):
        sets = (f"train.precision={precision}", "train.epochs=3")
        trained = training.train(small(file, tmp_path / "w.safetensors", *sets))
        courses.append(trained.course.validations)
        assert {t.dtype for t in load_file(trained.file).values()} == {torch.float32}
    assert courses[0] != courses[1]
    assert courses[1][-1] < 0.9 * courses[1][0]
    assert courses[1][-1] == pytest.approx(courses[0][-1], rel=0.1)


@BOTH
def test_same_seed_same_weights(file: Path, tmp_path: Path) -> None:
    """Twice the same bits; another seed, others."""
    jobs = [
        small(file, tmp_path / "one.safetensors", "train.epochs=1"),
        small(file, tmp_path / "two.safetensors", "train.epochs=1"),
        small(file, tmp_path / "six.safetensors", "train.epochs=1", "seed=6"),
    ]
    one, two, six = (fingerprint(load_file(training.train(job).file)) for job in jobs)
    assert one == two != six


@BOTH
def test_resume_equals_uninterrupted(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the second epoch and resumed: the same weights and the same course."""
    whole = training.train(small(file, tmp_path / "whole.safetensors", "train.epochs=4"))
    job = small(file, tmp_path / "part.safetensors", "train.epochs=4")
    write = training.State.write

    def write_and_die(state: Any, path: Path) -> None:
        write(state, path)
        if state.course.epochs == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.State, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            training.train(job)
    assert not (tmp_path / "part.safetensors").exists()
    part = training.train(job, resume=True)
    assert part.course == whole.course
    assert fingerprint(load_file(part.file)) == fingerprint(load_file(whole.file))


def test_resume_of_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint goes on with its own job only."""
    out = tmp_path / "w.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(training.State, "note", stop)
        with pytest.raises(KeyboardInterrupt):
            training.train(small(BASE, out, "train.epochs=2"))
    with pytest.raises(DataError, match=r"there is no checkpoint .*train without --resume"):
        training.train(small(BASE, out), resume=True)
    state = training.State(torch.nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1)]), {"seed": 1})
    state.write(tmp_path / "w.checkpoint")
    with pytest.raises(DataError, match="seed = 1 there and 7 in the job"):
        training.train(small(BASE, out), resume=True)


def stop(*_: Any) -> None:
    """End a training in its first epoch."""
    raise KeyboardInterrupt


def test_divergence_is_told(tmp_path: Path) -> None:
    """Not-a-number is no weight."""
    with pytest.raises(JobError, match=r"diverged in epoch 1 .*lower rate"):
        training.train(small(BASE, tmp_path / "w.safetensors", "train.rate=1e30"))


def test_validation_is_held_back() -> None:
    """Validation images are a fixed tenth of the training part, and disjoint from the rest."""
    job = Job.read(BASE, training=True)
    assert job.train is not None
    one, two = (training._images(job, job.train) for _ in range(2))
    assert torch.equal(one.held_back, two.held_back)
    assert len(one.held_back) == round(0.1 * 1437)
    both = torch.cat((one.rows, one.held_back))
    assert torch.equal(both.sort().values, torch.arange(1437))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (('code.name="replication"',), 'trains the code "learned"'),
        (('code.weights="x.safetensors"',), "leave weights out"),
        (('plan.stages=["pool1", "pool2"]',), "trained for one stage"),
        (('plan.split="batch"', "input.batch=6", "plan.stages=[]"), "works on shards"),
        (("train.batch=2000",), "lower batch"),
    ],
)
def test_what_cannot_be_trained(tmp_path: Path, changes: tuple[str, ...], message: str) -> None:
    """Each is one error that says what to do."""
    with pytest.raises((JobError, PlanError, DataError), match=message):
        training.train(small(CODE, tmp_path / "w.safetensors", *changes))


def test_too_few_classes(tmp_path: Path) -> None:
    """Ten digits need ten outputs."""
    with pytest.raises(ModelError, match=r"gives \(4,\) numbers .* has 10 classes"):
        training.train(small(BASE, tmp_path / "w.safetensors", "model.args={classes=4}"))


def test_code_of_other_base_weights(tmp_path: Path) -> None:
    """A code fills holes of the very weights it was trained with."""
    other = tmp_path / "other.safetensors"
    save_file(
        {k: v + 1 for k, v in load_file(ROOT / "data/lenet5-digits.safetensors").items()}, other
    )
    job = Job.read(CODE, [f'code.weights="{WEIGHTS}"', f'model.weights="{other}"'])
    with pytest.raises(
        DataError, match=r"trained for weights \w+ of lenet5, and the job's model has"
    ):
        deploy(job, (1, 32, 32))


def test_code_of_another_plan() -> None:
    """k = 3 needs other weights than k = 6."""
    job = Job.read(CODE, [f'code.weights="{WEIGHTS}"', "code.k=3"])
    with pytest.raises(DataError, match="k = 6 where the job needs 3"):
        deploy(job, (1, 32, 32))


def test_loss_counts_own_positions_only() -> None:
    """Whatever is filled in beyond a smaller shard's own size costs nothing."""
    lesson, y = make_lesson()
    here = lesson.patterns[:1].expand(y.shape[1], -1)
    perfect = y[:4] + 100 * (1 - lesson.owned)
    lesson.code.decoder.forward = lambda *_: perfect  # type: ignore[method-assign]
    assert float(lesson._loss(y, here)) == pytest.approx(0, abs=1e-6)
    lesson.code.decoder.forward = lambda *_: perfect + lesson.owned  # type: ignore[method-assign]
    assert float(lesson._loss(y, here)) > 0.1


def test_patterns_in_training() -> None:
    """All with at most r lost and a data unit among them; parity units are lost too."""
    lesson, _ = make_lesson()
    lost = {tuple(np.flatnonzero(row == 0).tolist()) for row in lesson.patterns.numpy()}
    data = {(i,) for i in range(4)}
    mixed = {(i, j) for i in range(4) for j in range(i + 1, 6)}
    assert lost == data | mixed


def test_gradients_reach_the_encoder_only() -> None:
    """The base model is frozen and both networks of the code learn."""
    lesson, _ = make_lesson()
    lesson.loss(torch.arange(8), torch.Generator().manual_seed(1)).backward()
    for name, parameter in lesson.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def make_lesson() -> tuple[CodeLesson, Tensor]:
    """LeNet-5 with random weights in 4 unequal strips, and its unit outputs for 8 images."""
    torch.manual_seed(2)
    chain = trace(build_model("lenet5", {}).requires_grad_(False), (1, 32, 32))
    plan = PARTITIONS["width"](Request(chain, 4, 2, ("pool2",)))
    assert [s.writes.cols for s in plan.stages[0].shards][-1] == Range(5, 6)
    code = build(CodeRequest(4, 2, plan.stages[0]))
    pictures = torch.rand(8, 1, 32, 32)
    none = torch.arange(8)
    data = Images(pictures, none % 3, none, none, Pixels.of((0.0,), (1.0,)))
    lesson = CodeLesson(Deployment(chain, plan, (code,)), code, data, Jitter(0.1, 5.0, 0.1))
    with torch.no_grad():
        return lesson, lesson.outputs(pictures)


def test_jitter_of_nothing_is_nothing() -> None:
    """Zero shift, turn and scale leave the image."""
    x = torch.rand(3, 2, 9, 11)
    same = Jitter(0.0, 0.0, 0.0)(x, torch.Generator())
    assert torch.allclose(same, x, atol=1e-5)


def test_jitter_moves_by_its_share() -> None:
    """A shift of up to a quarter: a dot in the middle stays within a quarter of it."""
    x = torch.zeros(64, 1, 33, 33)
    x[:, :, 16, 16] = 1
    moved = Jitter(0.25, 0.0, 0.0)(x, torch.Generator().manual_seed(1))
    where = moved.flatten(1).argmax(1)
    away = torch.stack((where // 33 - 16, where % 33 - 16)).abs()
    assert 6 <= int(away.max()) <= 9


def test_jitter_that_only_moves_keeps_pixels() -> None:
    """Moved by whole pixels: every pixel's value is one that was there before."""
    x = torch.arange(5 * 7.0).view(1, 1, 5, 7).expand(32, -1, -1, -1)
    moved = Jitter(0.3, 0.0, 0.0)(x, torch.Generator().manual_seed(1))
    assert torch.allclose(moved, moved.round(), atol=1e-3)
    assert len({tuple(image.round().flatten().tolist()) for image in moved}) > 8


def test_jitter_mirrors_half() -> None:
    """With ``flip`` an image stays as it is or is mirrored, and which is drawn from the seed."""
    x = torch.rand(200, 2, 6, 8)
    first, again = (
        Jitter(0.0, 0.0, 0.0, flip=True)(x, torch.Generator().manual_seed(4)) for _ in range(2)
    )
    assert torch.equal(first, again)
    same, mirrored = (
        torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(first, y, strict=True)])
        for y in (x, x.flip(3))
    )
    assert bool((same ^ mirrored).all())
    assert 70 <= int(mirrored.sum()) <= 130


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """The committed weights on the held-out digits."""
    return evaluate(Job.read(CODE, [f'code.weights="{WEIGHTS}"']))


def test_committed_base(evaluation: Evaluation) -> None:
    """At least 98 % of the 360 held-out digits."""
    assert evaluation.queries == 360
    assert evaluation.available >= 0.98


def test_committed_code_without_loss(evaluation: Evaluation) -> None:
    """With every data unit here nothing changes."""
    assert evaluation.same_bits
    assert evaluation.same_predictions


@pytest.mark.parametrize(("missing", "patterns", "drop"), [(1, 18, 0.5), (2, 15, 1.0)])
def test_committed_code(evaluation: Evaluation, missing: int, patterns: int, drop: float) -> None:
    """The mean drop over all patterns is within what is asked, and below zero-fill's."""
    drops = evaluation.drops("learned", missing)
    assert len(drops) == patterns
    assert drops.mean() <= drop
    assert drops.mean() < evaluation.drops("zero-fill", missing).mean()
    assert drops.mean() < evaluation.drops("mean", missing).mean()
    assert evaluation.recovery("learned", missing) > 0.99


def test_committed_code_is_cheap(evaluation: Evaluation) -> None:
    """Encoder and decoder together cost at most one data unit."""
    assert 0 < evaluation.encoder.flops + evaluation.decoder.flops <= evaluation.unit_flops
    assert evaluation.encoder.parameters + evaluation.decoder.parameters < 5000


def test_evaluation_by_hand(evaluation: Evaluation) -> None:
    """One pattern, recomputed on the whole map: zero the columns that are missing."""
    job = Job.read(CODE, [f'code.weights="{WEIGHTS}"'])
    deployment = deploy(job, (1, 32, 32))
    data = images(job, "test")
    with torch.inference_mode():
        x = torch.from_numpy(data.images)
        outputs = [
            run(u)
            for run, u in zip(
                deployment.programs()[0][:6],
                units.cut(x / 255, deployment.plan.stages[0]),
                strict=True,
            )
        ]
        feature_map = units.stitch(outputs, deployment.plan.stages[0])
        feature_map[..., [1, 4]] = 0
        assert deployment.head is not None
        right = deployment.head(feature_map).argmax(1).numpy() == data.labels
    (outcome,) = (
        o for o in evaluation.outcomes
        if o.way == "zero-fill" and np.flatnonzero(~o.arrived).tolist() == [1, 4]
    )  # fmt: skip
    assert outcome.accuracy == pytest.approx(right.mean(), abs=1 / 360)


OTHERS = {
    "uncoded": ('code.name="uncoded"', "code.r=0"),
    "replication": ('code.name="replication"', "code.k=3", "code.r=3"),
    "two stages": (
        'code.name="replication"', "code.k=2", "code.r=2", 'plan.stages=["pool1", "pool2"]',
    ),
    "images": (
        'code.name="replication"', "code.k=2", "code.r=2", "plan.stages=[]", 'plan.split="batch"',
        "input.batch=4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_exact_codes_lose_nothing(changes: tuple[str, ...]) -> None:
    """Whatever replication can decode is the unsplit model's own answer."""
    result = evaluate(Job.read(CODE, changes))
    assert result.same_bits
    assert result.same_predictions
    exact = [o for o in result.outcomes if o.way == "replication"]
    assert bool(exact) == ('code.name="replication"' in changes)
    assert all(o.recovery == 1 and o.accuracy == result.available for o in exact)


def test_tables(evaluation: Evaluation) -> None:
    """A row for every way and number of missing units, and one each for encoder and decoder."""
    accuracy, costs = evaluation.tables()
    assert accuracy.row_count == 6
    assert costs.row_count == 2


def test_metadata_of_committed_weights() -> None:
    """The file says which base weights it belongs to."""
    _, about = read_weights(WEIGHTS)
    base = fingerprint(load_file(ROOT / "data/lenet5-digits.safetensors"))
    assert about["base"] == "lenet5"
    assert about["base_weights"] == base
    assert (about["k"], about["r"], about["grid"]) == ("6", "2", "1 6")
