"""Training: one loop for base models and learned codes, with checkpoints that go on exactly.

    mpicoded train jobs/train-lenet5-digits.toml [--resume]

Every epoch draws all its chance from a generator seeded with (seed, epoch), so that a checkpoint
needs no state of any generator: weights, optimiser and epoch are all there is. The weights kept are
those of the epoch with the least validation loss (the first, if several are equal); validation
images are a seeded share of the training part and are never trained on.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from safetensors.torch import save
from torch import Tensor, nn

from mpicoded.codes import CodeRequest
from mpicoded.codes.learned import Learned, build
from mpicoded.deploy import fingerprint, images, network, pixels, plan, read_weights
from mpicoded.errors import DataError, JobError, PlanError
from mpicoded.graph import trace
from mpicoded.lessons import BaseLesson, CodeLesson, Images, Jitter, Lesson
from mpicoded.runtime.deployment import Deployment

if TYPE_CHECKING:
    from mpicoded.job import Job, TrainSpec

WARM_UP = 50  # steps over which the rate rises to its full height
EPOCH_SEEDS = 1_000_003  # more than any number of epochs: seeds of two jobs do not meet


@dataclass
class Course:
    """How a training went: the loss of each epoch and the best validation so far."""

    losses: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.losses)

    @property
    def best(self) -> int:
        """The epoch with the least validation loss, counted from 0."""
        return min(range(self.epochs), key=self.validations.__getitem__)


@dataclass(frozen=True)
class Trained:
    """Where the weights are, how many numbers they hold, and how the training went."""

    file: Path
    parameters: int
    course: Course


def train(job: Job, resume: bool = False) -> Trained:
    """Train what the job's [train] asks for and write its weights.

    Raises
    ------
    JobError, DataError, ModelError, PlanError
        If the job does not fit together, or there is no checkpoint of this very job to resume.
    """
    spec = _spec(job)
    out = job.path(spec.out)
    threads = torch.get_num_threads()
    torch.set_num_threads(job.runtime.threads)  # sums in one order: the same weights again
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            lesson, about = _lesson(job, spec)
        course = _fit(lesson, job, spec, out, resume)
    finally:
        torch.set_num_threads(threads)
    about |= {
        "data": job.input.data,
        "seed": str(job.seed),
        "epoch": f"{course.best + 1} of {course.epochs}",
        "validation_loss": f"{course.validations[course.best]:.6g}",
    }
    weights = _contiguous(lesson.network.state_dict())
    _write(out, weights, about)
    _checkpoint(out).unlink(missing_ok=True)
    return Trained(out, sum(p.numel() for p in lesson.network.parameters()), course)


def _spec(job: Job) -> TrainSpec:
    if job.train is None:
        raise JobError(f'{job.file}: there is no [train]; give kind = "base" or "code", and out')
    return job.train


def _lesson(job: Job, spec: TrainSpec) -> tuple[Lesson, dict[str, str]]:
    """Return what is to be learned, and the metadata of its weights."""
    data = _images(job, spec)
    jitter = Jitter(spec.shift, spec.rotate, spec.scale)
    if spec.kind == "base":
        model = network(job)
        about = {"model": job.model.name, "args": json.dumps(job.model.args)}
        return BaseLesson(model, data, jitter, spec.smoothing), about
    deployment, code = _untrained(job, spec, tuple(data.pixels.shape[1:]))
    base = fingerprint(network(job).state_dict())
    about = code.about(job.model.name) | {"base_weights": base}
    return CodeLesson(deployment, code, data, jitter), about


def _untrained(job: Job, spec: TrainSpec, shape: tuple[int, ...]) -> tuple[Deployment, Learned]:
    """Return the job's deployment with a fresh code, which alone can learn."""
    if job.code.name != Learned.name or job.code.weights is not None:
        raise JobError(
            f'{job.file}: kind = "code" trains the code "{Learned.name}" from the start, and [code] '
            f"has name = {job.code.name!r}, weights = {job.code.weights!r}: leave weights out"
        )
    chain = trace(network(job).requires_grad_(False), shape)
    its_plan = plan(job, chain)
    if len(its_plan.stages) > 1:
        raise PlanError(
            f"stages = {list(job.plan.stages)}: a learned code is trained for one stage; name one "
            "block in [plan] stages"
        )
    about = {"hidden": " ".join(map(str, spec.hidden)), "seed": str(job.seed)}
    (stage,) = its_plan.stages
    code = build(CodeRequest(its_plan.k, its_plan.r, stage, about=about))
    return Deployment(chain, its_plan, (code,), pixels(job)), code


def _images(job: Job, spec: TrainSpec) -> Images:
    data = images(job, "train", job.input.limit)
    if data.labels is None:
        raise DataError(f"{job.input.data!r} has no labels, and training needs them")
    order = torch.randperm(len(data.images), generator=_generator(job.seed, -1))
    held_back = max(1, round(spec.validation * len(order)))
    if len(order) - held_back < spec.batch:
        raise DataError(
            f"{job.input.data!r} has {len(order)} training images; less {held_back} for validation "
            f"they do not fill a batch of {spec.batch}: lower batch or validation in [train]"
        )
    return Images(
        torch.from_numpy(data.images),
        torch.from_numpy(data.labels),
        rows=order[held_back:],
        held_back=order[:held_back],
        numbers=pixels(job),
    )


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * EPOCH_SEEDS + epoch + 1)


def _fit(lesson: Lesson, job: Job, spec: TrainSpec, out: Path, resume: bool) -> Course:
    """Run the epochs that are left; leave the best weights in the lesson's network."""
    rows = lesson.images.rows
    parameters = [p for p in lesson.network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec.rate, weight_decay=spec.weight_decay)
    state = _State(lesson.network, optimizer, _identity(job))
    if resume:
        state.read(_checkpoint(out))
    with _bar() as bar:
        task = bar.add_task(out.stem, total=spec.epochs, completed=state.course.epochs, said="")
        for epoch in range(state.course.epochs, spec.epochs):
            loss = _epoch(lesson, optimizer, spec, rows, _generator(job.seed, epoch), epoch)
            state.note(loss, lesson.validate())
            state.write(_checkpoint(out))
            bar.update(task, advance=1, said=_said(state.course))
    lesson.network.load_state_dict(state.best)
    return state.course


def _epoch(
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    spec: TrainSpec,
    rows: Tensor,
    rng: torch.Generator,
    epoch: int,
) -> float:
    """Go once through ``rows`` in a drawn order; return the mean loss."""
    batches = torch.split(rows[torch.randperm(len(rows), generator=rng)], spec.batch)
    batches = batches[: len(rows) // spec.batch]  # a last short batch would weigh too much
    total = 0.0
    for i, batch in enumerate(batches):
        step = epoch * len(batches) + i
        for group in optimizer.param_groups:
            group["lr"] = spec.rate * _share(step, spec.epochs * len(batches))
        loss = lesson.loss(batch, rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def _share(step: int, steps: int) -> float:
    """Rate of a step as a share of the full one: a short rise, then half a cosine down to 0."""
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


class _State:
    """All that goes on from one epoch to the next, and its file."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
    ) -> None:
        self.network, self.optimizer, self.identity = network, optimizer, identity
        self.course = Course()
        self.best = _copy(network.state_dict())

    def note(self, loss: float, validation: float) -> None:
        """Take down an epoch, and its weights if they are the best so far."""
        if not math.isfinite(loss) or not math.isfinite(validation):
            raise JobError(
                f"training diverged in epoch {self.course.epochs + 1} (loss {loss}, validation "
                f"{validation}): lower rate in [train]"
            )
        self.course.losses.append(loss)
        self.course.validations.append(validation)
        if self.course.best == self.course.epochs - 1:
            self.best = _copy(self.network.state_dict())

    def write(self, path: Path) -> None:
        """Write the checkpoint: tensors, and the rest as JSON in the metadata."""
        tensors = {f"now.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value for key, value in values.items()}
        about = {"job": json.dumps(self.identity), "course": json.dumps(asdict(self.course))}
        _write(path, _contiguous(tensors), about)

    def read(self, path: Path) -> None:
        """Go on from a checkpoint; DataError if there is none or it is of another job."""
        if not path.is_file():
            raise DataError(f"there is no checkpoint {path} to resume; train without --resume")
        tensors, about = read_weights(path)
        self._check(path, json.loads(about.get("job", "{}")))
        self.course = Course(**json.loads(about["course"]))
        self.network.load_state_dict(_below("now.", tensors))
        self.best = _below("best.", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer.", tensors).items():
            number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _check(self, path: Path, theirs: dict[str, Any]) -> None:
        wrong = [
            f"{key} = {theirs.get(key)} there and {value} in the job"
            for key, value in self.identity.items()
            if theirs.get(key) != value
        ]
        if wrong:
            raise DataError(
                f"checkpoint {path} is of another training: {'; '.join(wrong[:3])}. Put the job "
                "back as it was, or train without --resume"
            )


def _identity(job: Job) -> dict[str, Any]:
    """Return what a training depends on, as ``section.key`` and plain values."""
    parts = job.model_dump(mode="json", include={"model", "input", "plan", "code", "train"})
    flat = {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}
    return {"seed": job.seed, "threads": job.runtime.threads} | flat


def _checkpoint(out: Path) -> Path:
    return out.with_suffix(".checkpoint")


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in tensors.items()}


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().contiguous() for key, value in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _write(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    """Write a safetensors file in one go: there is the old one or the new one, never a part."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(save(tensors, about))
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; mend out in [train]") from error


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
    )


def _said(course: Course) -> str:
    loss, validation = course.losses[-1], course.validations[-1]
    return f"loss {loss:.4f}  validation {validation:.4f}  (best in epoch {course.best + 1})"
