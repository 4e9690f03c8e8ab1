"""Training learns, repeats itself, goes on exactly where it stopped; the committed weights hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from PIL import Image
from safetensors.torch import load_file, save_file

from mpicoded.codes import CodeRequest, Trainable
from mpicoded.codes.learned import build
from mpicoded.deploy import deploy, fingerprint, read_weights
from mpicoded.errors import DataError, JobError, ModelError, PlanError, ResultsError
from mpicoded.geometry import Range
from mpicoded.job import Job, TrainSpec
from mpicoded.models import build as build_model
from mpicoded.network.graph import trace
from mpicoded.network.ops import Normalize
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS, Request
from mpicoded.study import train as training
from mpicoded.study.code_objective import CodeObjective, Seen
from mpicoded.study.history import History, read_history, write_history
from mpicoded.study.objectives import LOSSES, BaseObjective, Images, Jitter
from mpicoded.study.report.history import draw_histories, render_histories
from mpicoded.study.setup import device_of, objective, training_images
from mpicoded.study.train import SCHEDULES

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
    history = trained.history
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert history.validations[history.best] < 0.6 * history.validations[0]
    assert not (tmp_path / "w.checkpoint").exists()


@BOTH
def test_learns_in_bfloat16(file: Path, tmp_path: Path) -> None:
    """Nearly as well as in float32, and the weights are float32."""
    histories = []
    for precision in ("float32", "bfloat16"):
        sets = (f"train.precision={precision}", "train.epochs=3")
        trained = training.train(small(file, tmp_path / "w.safetensors", *sets))
        histories.append(trained.history.validations)
        tensors = load_file(trained.file).values()
        assert {t.dtype for t in tensors if t.is_floating_point()} == {torch.float32}
    assert histories[0] != histories[1]
    assert histories[1][-1] < 0.9 * histories[1][0]
    assert histories[1][-1] == pytest.approx(histories[0][-1], rel=0.1)


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


STILL = ("train.shift=0.0", "train.rotate=0.0", "train.scale=0.0", "train.flip=true")


@pytest.mark.parametrize(
    ("file", "how"), [(BASE, ()), (CODE, ()), (CODE, STILL)], ids=["base", "code", "known"]
)
def test_resume_equals_uninterrupted(
    file: Path, how: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the second epoch and resumed: the same weights and the same history.

    Also where the base model's answers are kept ("known"), which a resumed training has lost.
    """
    whole = training.train(small(file, tmp_path / "whole.safetensors", "train.epochs=4", *how))
    job = small(file, tmp_path / "part.safetensors", "train.epochs=4", *how)
    write = training.State.write

    def write_and_die(state: Any, path: Path) -> None:
        write(state, path)
        if state.history.epochs == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training.State, "write", write_and_die)
        with pytest.raises(KeyboardInterrupt):
            training.train(job)
    assert not (tmp_path / "part.safetensors").exists()
    part = training.train(job, resume=True)
    assert part.history == whole.history
    assert fingerprint(load_file(part.file)) == fingerprint(load_file(whole.file))


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """A parity model for groups of k = 2 digits, as small as they come."""
    text = CODE.read_text().replace('"../data', f'"{ROOT}/data')
    head, _, rest = text.partition("[plan]")
    batch = '[plan]\nsplit = "batch"\n\n[code]\nname = "parity"\nk = 2\nr = 1\n\n[train]'
    file = tmp_path / "groups.toml"
    file.write_text(
        head.replace("[input]", "[input]\nbatch = 2") + batch + rest.split("[train]")[1]
    )
    return file


def test_images_resume_equals_uninterrupted(groups: Path, tmp_path: Path) -> None:
    """The training of a parity model goes on with the same bits and the same history."""

    def job(name: str) -> Job:
        sets = ("input.limit=301", "train.batch=32", "train.epochs=4", "train.validation=0.1")
        out = f'train.out="{tmp_path / name}.safetensors"'
        return Job.read(groups, [*sets, out, "train.rotate=0"], training=True)

    def stop_after_two(history: History) -> None:
        if history.epochs == 2:
            raise KeyboardInterrupt

    whole = training.train(job("whole"))
    with pytest.raises(KeyboardInterrupt):
        training.train(job("part"), notify=stop_after_two)
    part = training.train(job("part"), resume=True)
    assert part.history == whole.history
    assert fingerprint(load_file(part.file)) == fingerprint(load_file(whole.file))


def test_groups_are_whole(groups: Path, tmp_path: Path) -> None:
    """Batches and the validation part have whole groups of k images, or it is an error."""
    sets = [f'train.out="{tmp_path}/w.safetensors"', "input.limit=301"]
    subject, _ = objective(*both(Job.read(groups, sets, training=True)))
    images = subject.images
    assert (len(images.held_back), len(images.rows)) == (30, 271)
    sets += ["code.k=4", "input.batch=4"]
    subject, _ = objective(*both(Job.read(groups, sets, training=True)))
    images = subject.images
    assert (len(images.held_back), len(images.rows)) == (32, 269)  # 30 rounded up
    assert not set(images.held_back.tolist()) & set(images.rows.tolist())
    with pytest.raises(DataError, match=r"batch = 63 in \[train\] is no multiple of k = 4.*= 64"):
        objective(*both(Job.read(groups, [*sets, "train.batch=63"], training=True)))


def both(job: Job) -> tuple[Job, TrainSpec, torch.device]:
    """A job and its [train], on the CPU."""
    assert job.train is not None
    return job, job.train, torch.device("cpu")


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


def test_ends_when_nothing_better_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs behind the best one it is over, also when it was resumed in between."""
    scores = [3.0, 1.0, 2.0, 1.0, 0.5, 0.4, 0.3, 0.2]  # equal is not better
    monkeypatch.setattr(BaseObjective, "validate", lambda _: scores[len(told)])
    told: list[History] = []

    def tell(history: History) -> None:
        told.append(history)
        if len(told) == interrupt:
            raise KeyboardInterrupt

    interrupt = 0
    job = small(BASE, tmp_path / "whole.safetensors", "train.patience=2")
    whole = training.train(job, notify=tell)
    assert whole.history.validations == scores[:4]
    assert whole.history.best == 1
    told, interrupt = [], 4  # after the last epoch: resuming has nothing left to do but to write
    job = small(BASE, tmp_path / "part.safetensors", "train.patience=2")
    with pytest.raises(KeyboardInterrupt):
        training.train(job, notify=tell)
    part = training.train(job, resume=True, notify=tell)
    assert len(told) == 4
    assert part.history == whole.history
    assert fingerprint(load_file(part.file)) == fingerprint(load_file(whole.file))


def test_early_end_is_that_epoch(tmp_path: Path) -> None:
    """Weights of an early end are those of the best epoch, and the file says which it was."""
    job = small(BASE, tmp_path / "w.safetensors", "train.patience=1", "train.rate=0.1")
    history = training.train(job).history
    assert history.epochs < 8
    _, about = read_weights(tmp_path / "w.safetensors")
    assert about["epoch"] == f"{history.best + 1} of {history.epochs}"


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("step", [1 / 5, 1, 1, 0.1, 0.01]),
        ("cosine", [1 / 5, 0.854, 0.5, 0.146, 0.0]),
    ],
)
def test_schedules(name: str, shares: list[float]) -> None:
    """At the start, at a quarter, right before half of the way, at three quarters, at the end."""
    steps = 100
    found = [SCHEDULES[name](step, steps) for step in (0, 25, 49, 74, 99)]
    if name == "step":
        found = [SCHEDULES[name](step, steps) for step in (0, 25, 49, 50, 75)]
    assert found == pytest.approx(shares, abs=0.02)


@BOTH
def test_rates_are_those_of_the_schedule(file: Path, tmp_path: Path) -> None:
    """What the history says of the rate at the end of each epoch."""
    sets = ("train.epochs=4", "train.schedule=step", "train.rate=1e-3")
    history = training.train(small(file, tmp_path / "w.safetensors", *sets)).history
    assert history.rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-5])
    assert len(history.seconds) == 4


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_learns(name: str, tmp_path: Path) -> None:
    """Every loss that a job may name falls, and each is another one."""
    job = small(CODE, tmp_path / "w.safetensors", f"train.loss={name}", "train.epochs=6")
    history = training.train(job).history
    assert history.losses[-1] < 0.8 * history.losses[0]
    assert history.validations[history.best] < 0.9 * history.validations[0]


def test_losses_by_hand() -> None:
    """Two rows of three classes: sums over classes, means over rows (reference, section 6)."""
    filled = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    base = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 2.0]])
    labels = torch.tensor([2, 0])
    assert LOSSES["mse-base"](filled, base, labels).item() == pytest.approx((4 + 5) / 2)
    p, q = base.softmax(1), filled.softmax(1)
    divergence = (p * (p.log() - q.log())).sum(1).mean().item()
    assert LOSSES["kl-base"](filled, base, labels).item() == pytest.approx(divergence)
    entropy = -(q[0, 2].log() + q[1, 0].log()).item() / 2
    assert LOSSES["xent-label"](filled, base, labels).item() == pytest.approx(entropy)


def test_loss_of_a_base_model() -> None:
    """Only codes have a choice of losses."""
    with pytest.raises(JobError, match=r"kl-base\" is for kind = \"code\""):
        Job.read(BASE, ["train.loss=kl-base"], training=True)


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA where there is any, unless the job says otherwise; no CUDA, no training on it."""
    job = {name: Job.read(BASE, [f"train.device={name}"]) for name in ("auto", "cpu", "cuda")}
    for there, expected in ((True, "cuda cpu cuda"), (False, "cpu cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        for name, kind in zip(job, expected.split(), strict=False):
            spec = job[name].train
            assert spec is not None
            assert device_of(job[name], spec).type == kind
    spec = job["cuda"].train
    assert spec is not None
    with pytest.raises(JobError, match=r'finds no CUDA device here: set device = "auto"'):
        device_of(job["cuda"], spec)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@BOTH
def test_learns_on_cuda(file: Path, tmp_path: Path) -> None:
    """As on the CPU, but for rounding; the weights file is the same kind."""
    job = small(file, tmp_path / "w.safetensors", "train.device=cuda")
    history = training.train(job).history
    assert history.validations[history.best] < 0.6 * history.validations[0]


def test_all_lies_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a training moves goes where the job says: shown with torch's device without numbers."""
    job = Job.read(BASE, training=True)
    assert job.train is not None
    data = training_images(job, job.train, torch.device("meta"))
    assert data.device.type == "meta"
    assert {t.device.type for t in (data.pixels, data.labels, data.normalize.scale)} == {"meta"}
    assert data.batch(data.rows[:3]).shape == (3, 1, 32, 32)
    assert Jitter(0.1, 5.0, 0.1, True)(data.batch(data.rows[:3]), torch.Generator()).is_meta


def test_curves_file(tmp_path: Path) -> None:
    """Every epoch stands in a file beside the weights, and comes back as it was."""
    about = {"job": "text", "seed": 7, "weights": "w.safetensors"}
    path = tmp_path / "w.training.h5"
    counts: list[int] = []

    def tell(history: History) -> None:
        write_history(path, history, about)
        counts.append(read_history(path).history.epochs)

    job = small(BASE, tmp_path / "w.safetensors", "train.epochs=3")
    trained = training.train(job, notify=tell)
    assert counts == [1, 2, 3]
    curves = read_history(path)
    assert curves.history == trained.history
    assert curves.history.seconds == trained.history.seconds
    assert curves.attrs["seed"] == 7
    assert "clock" not in curves.attrs
    with xarray.open_dataset(path, engine="h5netcdf", group="epochs") as dataset:
        assert dataset["loss"].values.tolist() == trained.history.losses
        assert dataset["seconds"].attrs["units"] == "s"


def test_curves_are_drawn(tmp_path: Path) -> None:
    """One picture of several trainings, and a line each; too many are refused."""
    runs = []
    for name, scale in (("a", 1.0), ("b", 30.0)):
        history = History([3 * scale, 2 * scale], [2.0, 1.0], [1e-3, 0.0], [1.0, 1.0])
        write_history(tmp_path / f"{name}.training.h5", history, {})
        runs.append(read_history(tmp_path / f"{name}.training.h5"))
    draw_histories(runs, tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").size[0] == 1800
    table = render_histories(runs)
    assert list(table.columns[0].cells) == ["a", "b"]
    with pytest.raises(ResultsError, match="8 trainings are too many for one picture"):
        draw_histories(runs * 4, tmp_path / "c.png")
    with pytest.raises(ResultsError, match="1 labels for 2 results files"):
        render_histories(runs, ["one"])


def test_divergence_is_told(tmp_path: Path) -> None:
    """Not-a-number is no weight."""
    with pytest.raises(JobError, match=r"diverged in epoch 1 .*lower rate"):
        training.train(small(BASE, tmp_path / "w.safetensors", "train.rate=1e6"))


def test_validation_is_held_back() -> None:
    """Validation images are a fixed tenth of the training part, and disjoint from the rest."""
    job = Job.read(BASE, training=True)
    assert job.train is not None
    one, two = (training_images(job, job.train, torch.device("cpu")) for _ in range(2))
    assert torch.equal(one.held_back, two.held_back)
    assert len(one.held_back) == round(0.1 * 1437)
    both = torch.cat((one.rows, one.held_back))
    assert torch.equal(both.sort().values, torch.arange(1437))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (('code.name="replication"',), "trains a code with weights"),
        (('train.device="cuda"',), "finds no CUDA device here"),
        (('code.weights="x.safetensors"',), "leave them out"),
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


def test_code_without_weights() -> None:
    """It is refused before anything starts, unless only its times are asked for."""
    with pytest.raises(
        JobError, match=r'weights is missing; make the weights of the code "learned"'
    ):
        deploy(Job.read(CODE), (1, 32, 32))
    assert deploy(Job.read(CODE, ["code.untrained=true"]), (1, 32, 32)).codes[0].name == "learned"
    with pytest.raises(JobError, match=r'untrained: the code "replication" has nothing to train'):
        deploy(Job.read(CODE, ["code.untrained=true", "code.name=replication"]), (1, 32, 32))


def test_several_stages(tmp_path: Path) -> None:
    """One training makes the codes of all stages, one file has them, and it fits no other plan."""
    stages = 'plan.stages=["pool1", "pool2"]'
    sets = (stages, "code.k=3", "train.epochs=3")
    trained = training.train(small(CODE, tmp_path / "w.safetensors", *sets))
    history = trained.history
    assert history.validations[history.best] < 0.9 * history.validations[0]
    weights = f'code.weights="{trained.file}"'
    codes = deploy(Job.read(CODE, [stages, "code.k=3", weights]), (1, 32, 32)).codes
    shapes = [code.stage.input_shape for code in codes]  # type: ignore[attr-defined]
    assert shapes == [(1, 32, 32), (6, 16, 16)]
    tensors = load_file(trained.file)
    for s, code in enumerate(codes):
        assert isinstance(code, Trainable)
        for key, value in code.networks.state_dict().items():
            assert torch.equal(value, tensors[f"{s}.{key}"])
    with pytest.raises(DataError, match="weights are of 2 stages, and the plan has 1"):
        deploy(Job.read(CODE, ["code.k=3", weights]), (1, 32, 32))
    with pytest.raises(DataError, match="weights are of 1 stages, and the plan has 2"):
        deploy(Job.read(CODE, [stages, f'code.weights="{WEIGHTS}"']), (1, 32, 32))


def test_code_of_another_plan() -> None:
    """k = 3 needs other weights than k = 6."""
    job = Job.read(CODE, [f'code.weights="{WEIGHTS}"', "code.k=3"])
    with pytest.raises(DataError, match="window = 1 32 16 where the job needs 1 32 20"):
        deploy(job, (1, 32, 32))


def test_begins_with_weights_of_another_base_model(tmp_path: Path) -> None:
    """Of Fashion-MNIST's code, as the two read maps of one size; other codes are refused."""
    changes = ["train.precision=bfloat16", "input.size=[32, 32]"]
    start = 'train.start="../data/learned-fashion-k6r2.safetensors"'
    job = Job.read(CODE, [*changes, start], training=True)
    assert job.train is not None
    subject, _ = objective(job, job.train, torch.device("cpu"))
    tensors, _ = read_weights(ROOT / "data/learned-fashion-k6r2.safetensors")
    own = subject.network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in tensors.items())
    assert all(p.requires_grad for p in subject.network.parameters())
    for name, says in (
        ("parity-digits", "code = parity where the job needs learned. Name weights of a code"),
        ("lenet5-digits", "these are no weights of a code. Name weights of a code"),
    ):
        job = Job.read(CODE, [*changes, f'train.start="../data/{name}.safetensors"'], training=True)
        assert job.train is not None
        with pytest.raises(DataError, match=says):
            objective(job, job.train, torch.device("cpu"))


def test_loss_counts_own_positions_only() -> None:
    """Whatever is filled in beyond a smaller shard's own size costs nothing."""
    objective, seen = make_objective()
    here, labels = objective.patterns[:1].expand(8, -1), objective.images.labels
    perfect = objective.outputs(seen)[:4] + 100 * (1 - objective.owned)
    objective.code.decoder.forward = lambda *_: perfect  # type: ignore[method-assign]
    y = objective.outputs(seen)
    assert float(objective._loss(seen, y, here, labels).detach()) == pytest.approx(0, abs=1e-6)
    objective.code.decoder.forward = lambda *_: perfect + objective.owned  # type: ignore[method-assign]
    assert float(objective._loss(seen, y, here, labels).detach()) > 0.1


def test_patterns_in_training() -> None:
    """All with at most r lost and a data unit among them; parity units are lost too.

    And some with more data missing than the code is made for, while all parity is here.
    """
    objective, _ = make_objective()
    lost = {tuple(np.flatnonzero(row == 0).tolist()) for row in objective.patterns.numpy()}
    assert len(lost) == len(objective.patterns)
    data = {(i,) for i in range(4)}
    mixed = {(i, j) for i in range(4) for j in range(i + 1, 6)}
    deep = {(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3), (0, 1, 2, 3)}
    assert lost == data | mixed | deep
    beyond = (1 - objective.patterns).sum(1) > 2
    assert float(objective.weights.sum()) == pytest.approx(1)
    assert float(objective.weights[beyond].sum()) == pytest.approx(0.1)


def test_base_model_answers_once() -> None:
    """Images that are only mirrored are looked up; the answers are what it would say again."""
    objective, seen = make_objective(Jitter(0.0, 0.0, 0.0, flip=True))
    assert objective.base.known
    rows, rng = torch.arange(8), torch.Generator().manual_seed(5)
    first, again = (objective.base.jittered(rows, rng) for _ in range(2))
    assert not torch.equal(first.images, again.images)
    assert 0 in objective.base.filled  # the block of these rows
    for found in (first, again):
        fresh = objective.base._see(found.images)
        assert torch.allclose(found.features, fresh.features, rtol=1e-3, atol=1e-3)
        assert torch.allclose(found.logits, fresh.logits, atol=1e-5)
        assert torch.equal(found.features, found.features.half().float())


def test_gradients_reach_the_encoder() -> None:
    """The base model is frozen and all networks of the code learn."""
    objective, _ = make_objective()
    objective.loss(torch.arange(8), torch.Generator().manual_seed(1)).backward()
    for name, parameter in objective.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_answers_from_one_parity_unit_alone() -> None:
    """They count beside those of the drawn patterns, all data missing in each."""
    objective, _ = make_objective()
    rows, labels = torch.arange(8), objective.images.labels
    plain = objective.loss(rows, torch.Generator().manual_seed(1))
    objective.alone = 0.5
    more = objective.loss(rows, torch.Generator().manual_seed(1))
    seen = objective.base.jittered(rows, torch.Generator().manual_seed(1))
    y = objective.outputs(seen)
    ones = torch.tensor([[0.0, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 1]])
    first, second = (objective._loss(seen, y, one.expand(8, -1), labels) for one in ones)
    assert float(first.detach()) != pytest.approx(float(second.detach()))
    assert torch.allclose(more - plain, (first + second) / 4, atol=1e-5)


MOVED = Jitter(0.1, 5.0, 0.1)


def make_objective(jitter: Jitter = MOVED) -> tuple[CodeObjective, Seen]:
    """LeNet-5 with random weights in 4 unequal strips, and 8 images as it sees them."""
    torch.manual_seed(2)
    chain = trace(build_model("lenet5", {}).requires_grad_(False), (1, 32, 32))
    plan = SPLITS["width"].plan(Request(chain, 4, 2, ("pool2",)))
    assert [s.writes.cols for s in plan.stages[0].shards][-1] == Range(5, 6)
    code = build(CodeRequest(4, 2, plan.stages[0]))
    pictures = torch.rand(8, 1, 32, 32)
    none = torch.arange(8)
    data = Images(pictures, none % 3, none, none, Normalize.of((0.0,), (1.0,)))
    objective = CodeObjective(Deployment(chain, plan, (code,)), code, data, jitter)
    return objective, objective.base.plain(none)


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


def test_metadata_of_committed_weights() -> None:
    """The file says which base weights it belongs to."""
    _, about = read_weights(WEIGHTS)
    base = fingerprint(load_file(ROOT / "data/lenet5-digits.safetensors"))
    assert about["base"] == "lenet5"
    assert about["base_weights"] == base
    assert (about["code"], about["r"], about["window"]) == ("learned", "2", "1 32 16")
