"""Training: one loop for base models, learned codes and parity models; it goes on exactly.

    mpicoded train jobs/train-lenet5-digits.toml [--resume]

Every epoch draws all its chance from a generator seeded with (seed, epoch), so that a checkpoint
needs no state of any generator: weights, optimiser and epoch are all there is. The weights kept are
those of the epoch with the least validation loss (the first, if several are equal); validation
images are a seeded share of the training part and are never trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mpicoded.errors import DataError, JobError
from mpicoded.runtime.threads import use_threads
from mpicoded.study.training.checkpoint import Course, State, alone, write_weights
from mpicoded.study.training.curriculum import device_of, lesson
from mpicoded.study.training.lessons import Lesson
from mpicoded.study.training.schedule import SCHEDULES

if TYPE_CHECKING:
    from mpicoded.job import Job, TrainSpec

EPOCH_SEEDS = 1_000_003  # more than any number of epochs: seeds of two jobs do not meet


@dataclass(frozen=True)
class Trained:
    """Where the weights are, how many numbers they hold, and how the training went."""

    file: Path
    parameters: int
    course: Course


def train(job: Job, resume: bool = False, tell: Callable[[Course], None] | None = None) -> Trained:
    """Train what the job's [train] asks for and write its weights; ``tell`` is told every epoch.

    Raises
    ------
    JobError, DataError, ModelError, PlanError
        If the job does not fit together, or there is no checkpoint of this very job to resume.
    """
    spec = _spec(job)
    out = job.output(spec.out)
    if out.is_dir():
        raise DataError(f"[train] out = {out} is a folder; name a file in it")
    with alone(out):
        return _train(job, spec, out, resume, tell)


def _train(
    job: Job, spec: TrainSpec, out: Path, resume: bool, tell: Callable[[Course], None] | None
) -> Trained:
    """Train, write the weights and remove the checkpoint."""
    threads = torch.get_num_threads()
    use_threads(job.runtime.threads)  # sums in one order: the same weights again
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            subject, about = lesson(job, spec, device_of(job, spec))
            state = State(subject.network, _optimizer(subject, spec), _identity(job) | about)
            if resume:
                state.read(checkpoint(out))
            _Loop(subject, job, spec, state).run(checkpoint(out), tell)
    finally:
        torch.set_num_threads(threads)
    course = state.course
    about |= {
        "data": job.input.data,
        "seed": str(job.seed),
        "held_back": f"{len(subject.images.held_back)} of {_count(subject)}",
        "epoch": f"{course.best + 1} of {course.epochs}",
        "validation_loss": f"{course.validations[course.best]:.6g}",
    }
    write_weights(out, state.best, about)
    checkpoint(out).unlink(missing_ok=True)
    return Trained(out, sum(p.numel() for p in subject.network.parameters()), course)


def checkpoint(out: Path) -> Path:
    """Return the checkpoint beside the weights ``out``."""
    return out.with_suffix(".checkpoint")


def _count(subject: Lesson) -> int:
    return len(subject.images.rows) + len(subject.images.held_back)


def _spec(job: Job) -> TrainSpec:
    if job.train is None:
        raise JobError(f'{job.file}: there is no [train]; give kind = "base" or "code", and out')
    return job.train


def _optimizer(subject: Lesson, spec: TrainSpec) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        subject.network.parameters(), lr=spec.rate, weight_decay=spec.weight_decay
    )


class _Loop:
    """The epochs of one training, those that are left."""

    def __init__(self, subject: Lesson, job: Job, spec: TrainSpec, state: State) -> None:
        self.lesson, self.seed, self.spec, self.state = subject, job.seed, spec, state
        self.batches = len(subject.images.rows) // spec.batch  # a short one would weigh too much
        self.share = SCHEDULES[spec.schedule]

    def run(self, checkpoint: Path, tell: Callable[[Course], None] | None) -> None:
        """Train until the last epoch, or until ``patience`` epochs brought nothing better."""
        course = self.state.course
        with _bar() as bar:
            task = bar.add_task(
                checkpoint.stem, total=self.spec.epochs, completed=course.epochs, said=""
            )
            while course.epochs < self.spec.epochs and not course.stale(self.spec.patience):
                self._epoch(course.epochs)
                self.state.write(checkpoint)
                bar.update(task, advance=1, said=_said(course))
                if tell is not None:
                    tell(course)

    def _epoch(self, epoch: int) -> None:
        """Go once through the images in a drawn order; take down how it went."""
        began = time.perf_counter()
        rng = torch.Generator().manual_seed(self.seed * EPOCH_SEEDS + epoch + 1)
        torch.manual_seed(rng.initial_seed())  # for layers that draw by themselves: dropout
        rows = self.lesson.images.rows
        drawn = torch.split(rows[torch.randperm(len(rows), generator=rng)], self.spec.batch)
        losses = [
            self._step(batch, rng, epoch * self.batches + i)
            for i, batch in enumerate(drawn[: self.batches])
        ]
        validation = self.lesson.validate()
        rate = self.state.optimizer.param_groups[0]["lr"]
        mean = sum(losses) / len(losses)
        self.state.note(mean, validation, rate, time.perf_counter() - began)

    def _step(self, batch: torch.Tensor, rng: torch.Generator, step: int) -> float:
        optimizer, spec = self.state.optimizer, self.spec
        for group in optimizer.param_groups:
            group["lr"] = spec.rate * self.share(step, spec.epochs * self.batches)
        device, half = self.lesson.images.device.type, spec.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = self.lesson.loss(batch, rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()


def _identity(job: Job) -> dict[str, Any]:
    """Return what a training depends on, as ``section.key`` and plain values."""
    parts = job.model_dump(mode="json", include={"model", "input", "plan", "code", "train"})
    flat = {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}
    return {"seed": job.seed, "threads": job.runtime.threads} | flat


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
