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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from mpicoded.codes import CodeRequest
from mpicoded.codes.learned import Learned, build
from mpicoded.deploy import fingerprint, images, network, pixels, plan
from mpicoded.errors import DataError, JobError, ModelError, PlanError
from mpicoded.network.graph import Chain, trace
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.threads import use_threads
from mpicoded.training.checkpoint import Course, State, write_weights
from mpicoded.training.lessons import BaseLesson, CodeLesson, Images, Jitter, Lesson

if TYPE_CHECKING:
    from mpicoded.job import Job, TrainSpec

WARM_UP = 0.05  # share of the steps over which the rate rises to its full height
EPOCH_SEEDS = 1_000_003  # more than any number of epochs: seeds of two jobs do not meet


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
    if out.is_dir():
        raise DataError(f"[train] out = {out} is a folder; name a file in it")
    threads = torch.get_num_threads()
    use_threads(job.runtime.threads)  # sums in one order: the same weights again
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            lesson, about = _lesson(job, spec)
            state = State(lesson.network, _optimizer(lesson, spec), _identity(job) | about)
            if resume:
                state.read(_checkpoint(out))
            _fit(lesson, job, spec, state, _checkpoint(out))
    finally:
        torch.set_num_threads(threads)
    course = state.course
    about |= {
        "data": job.input.data,
        "seed": str(job.seed),
        "epoch": f"{course.best + 1} of {course.epochs}",
        "validation_loss": f"{course.validations[course.best]:.6g}",
    }
    write_weights(out, state.best, about)
    _checkpoint(out).unlink(missing_ok=True)
    return Trained(out, sum(p.numel() for p in lesson.network.parameters()), course)


def _spec(job: Job) -> TrainSpec:
    if job.train is None:
        raise JobError(f'{job.file}: there is no [train]; give kind = "base" or "code", and out')
    return job.train


def _lesson(job: Job, spec: TrainSpec) -> tuple[Lesson, dict[str, str]]:
    """Return what is to be learned, and the metadata of its weights."""
    data = _images(job, spec)
    shape = tuple(data.pixels.shape[1:])
    jitter = Jitter(spec.shift, spec.rotate, spec.scale, spec.flip)
    if spec.kind == "base":
        model = _laid(network(job), spec)
        _check_classes(job, trace(model, shape), data)
        about = {"model": job.model.name, "args": json.dumps(job.model.args)}
        return BaseLesson(model, data, jitter, spec.smoothing), about
    deployment, code = _untrained(job, spec, shape)
    base = fingerprint(network(job).state_dict())
    about = code.about(job.model.name) | {"base_weights": base}
    return CodeLesson(deployment, code, data, jitter, spec.features), about


def _laid(model: nn.Module, spec: TrainSpec) -> nn.Module:
    """Lay channels last for bfloat16: its fast kernels want them so."""
    if spec.precision == "bfloat16":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _check_classes(job: Job, chain: Chain, data: Images) -> None:
    classes = int(data.labels.max()) + 1
    if len(chain.output_shape) != 1 or chain.output_shape[0] < classes:
        raise ModelError(
            f"model {job.model.name!r} gives {chain.output_shape} numbers an image, and "
            f"{job.input.data!r} has {classes} classes: set the number of classes in [model] args"
        )


def _untrained(job: Job, spec: TrainSpec, shape: tuple[int, ...]) -> tuple[Deployment, Learned]:
    """Return the job's deployment with a fresh code, which alone can learn."""
    if job.code.name != Learned.name or job.code.weights is not None:
        raise JobError(
            f'{job.file}: kind = "code" trains the code "{Learned.name}" from nothing; [code] has '
            f"name = {job.code.name!r} and weights = {job.code.weights!r}: leave weights out"
        )
    chain = trace(_laid(network(job).requires_grad_(False), spec), shape)
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


def _optimizer(lesson: Lesson, spec: TrainSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        lesson.network.parameters(), lr=spec.rate, weight_decay=spec.weight_decay
    )


def _fit(lesson: Lesson, job: Job, spec: TrainSpec, state: State, checkpoint: Path) -> None:
    """Run the epochs that are left."""
    done = state.course.epochs
    with _bar() as bar:
        task = bar.add_task(checkpoint.stem, total=spec.epochs, completed=done, said="")
        for epoch in range(done, spec.epochs):
            rng = _generator(job.seed, epoch)
            torch.manual_seed(rng.initial_seed())  # for layers that draw by themselves: dropout
            state.note(_epoch(lesson, state.optimizer, spec, rng, epoch), lesson.validate())
            state.write(checkpoint)
            bar.update(task, advance=1, said=_said(state.course))


def _epoch(
    lesson: Lesson,
    optimizer: torch.optim.Optimizer,
    spec: TrainSpec,
    rng: torch.Generator,
    epoch: int,
) -> float:
    """Go once through the images in a drawn order; return the mean loss."""
    rows = lesson.images.rows
    batches = torch.split(rows[torch.randperm(len(rows), generator=rng)], spec.batch)
    batches = batches[: len(rows) // spec.batch]  # a last short batch would weigh too much
    total = 0.0
    for i, batch in enumerate(batches):
        step = epoch * len(batches) + i
        for group in optimizer.param_groups:
            group["lr"] = spec.rate * _share(step, spec.epochs * len(batches))
        with torch.autocast("cpu", torch.bfloat16, enabled=spec.precision == "bfloat16"):
            loss = lesson.loss(batch, rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
    return total / len(batches)


def _share(step: int, steps: int) -> float:
    """Rate of a step as a share of the full one: a short rise, then half a cosine down to 0."""
    rise = min(1.0, (step + 1) / (WARM_UP * steps))
    return rise * (1 + math.cos(math.pi * step / steps)) / 2


def _identity(job: Job) -> dict[str, Any]:
    """Return what a training depends on, as ``section.key`` and plain values."""
    parts = job.model_dump(mode="json", include={"model", "input", "plan", "code", "train"})
    flat = {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}
    return {"seed": job.seed, "threads": job.runtime.threads} | flat


def _checkpoint(out: Path) -> Path:
    return out.with_suffix(".checkpoint")


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


def _said(course: Course) -> str:
    loss, validation = course.losses[-1], course.validations[-1]
    return f"loss {loss:.4f}  validation {validation:.4f}  (best in epoch {course.best + 1})"
