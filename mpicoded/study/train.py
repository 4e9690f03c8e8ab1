"""Train base models, learned codes and parity models in one loop, which goes on exactly.

Every epoch draws all its chance from a generator seeded with (seed, epoch), so that a checkpoint
needs no state of any generator. The weights kept are those of the epoch with the least validation
loss; validation images are a seeded share of the training part and are never trained on.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mpicoded.errors import DataError, JobError
from mpicoded.job import Job, TrainSpec
from mpicoded.study.checkpoint import State, lock, write_weights
from mpicoded.study.history import History
from mpicoded.study.objectives import Objective
from mpicoded.study.setup import device_of, objective, threads

EPOCH_SEEDS = 1_000_003  # more than any number of epochs: seeds of two jobs do not meet
WARM_UP = 0.05  # share of the steps over which the learning rate rises to its full height
Notify = Callable[[History], None]


@dataclass(frozen=True)
class Trained:
    """The file of the weights, how many numbers they hold, and the history of the training."""

    file: Path
    parameters: int
    history: History


def train(job: Job, resume: bool = False, notify: Notify | None = None) -> Trained:
    """Train the subject of the job's [train] and write its weights; ``notify`` after every epoch.

    Raises JobError, DataError, ModelError, PlanError if the job does not fit together, or there
    is no checkpoint of this very job to resume.
    """
    if job.train is None:
        raise JobError(f'{job.file}: there is no [train]; give kind = "base" or "code", and out')
    out = job.output(job.train.out)
    if out.is_dir():
        raise DataError(f"[train] out = {out} is a folder; name a file in it")
    with lock(out):
        return _train(job, job.train, out, resume, notify)


def _train(job: Job, spec: TrainSpec, out: Path, resume: bool, notify: Notify | None) -> Trained:
    """Train, write the weights and remove the checkpoint."""
    with threads(job), torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        subject, about = objective(job, spec, device_of(job, spec))
        optimizer = torch.optim.AdamW(
            subject.network.parameters(), lr=spec.rate, weight_decay=spec.weight_decay
        )
        state = State(subject.network, optimizer, _identity(job) | about)
        if resume:
            state.read(checkpoint(out))
        _Loop(subject, job, spec, state).run(checkpoint(out), notify)
    history, images = state.history, subject.images
    about |= {
        "data": job.input.data,
        "seed": str(job.seed),
        "held_back": f"{len(images.held_back)} of {len(images.rows) + len(images.held_back)}",
        "epoch": f"{history.best + 1} of {history.epochs}",
        "validation_loss": f"{history.validations[history.best]:.6g}",
    }
    write_weights(out, state.best, about)
    checkpoint(out).unlink(missing_ok=True)
    return Trained(out, sum(p.numel() for p in subject.network.parameters()), history)


def checkpoint(out: Path) -> Path:
    """Return the checkpoint beside the weights ``out``."""
    return out.with_suffix(".checkpoint")


class _Loop:
    """The remaining epochs of one training."""

    def __init__(self, subject: Objective, job: Job, spec: TrainSpec, state: State) -> None:
        self.objective, self.seed, self.spec, self.state = subject, job.seed, spec, state
        self.batches = len(subject.images.rows) // spec.batch  # a short one would weigh too much
        self.share = SCHEDULES[spec.schedule]

    def run(self, file: Path, notify: Notify | None) -> None:
        """Train until the last epoch, or until ``patience`` epochs brought nothing better."""
        history, spec = self.state.history, self.spec
        with _bar() as bar:
            task = bar.add_task(file.stem, total=spec.epochs, completed=history.epochs, status="")
            while history.epochs < spec.epochs and not history.stale(spec.patience):
                self._epoch(history.epochs)
                self.state.write(file)
                loss, validation = history.losses[-1], history.validations[-1]
                status = f"loss {loss:.4f}  validation {validation:.4f}"
                status += f"  (best in epoch {history.best + 1})"
                bar.update(task, advance=1, status=status)
                if notify is not None:
                    notify(history)

    def _epoch(self, epoch: int) -> None:
        """Go once through the images in a drawn order, and record both losses."""
        began = time.perf_counter()
        rng = torch.Generator().manual_seed(self.seed * EPOCH_SEEDS + epoch + 1)
        torch.manual_seed(rng.initial_seed())  # for layers that draw by themselves: dropout
        rows = self.objective.images.rows
        drawn = torch.split(rows[torch.randperm(len(rows), generator=rng)], self.spec.batch)
        losses = [
            self._step(batch, rng, epoch * self.batches + i)
            for i, batch in enumerate(drawn[: self.batches])
        ]
        validation = self.objective.validate()
        rate = self.state.optimizer.param_groups[0]["lr"]
        mean = sum(losses) / len(losses)
        self.state.note(mean, validation, rate, time.perf_counter() - began)

    def _step(self, batch: torch.Tensor, rng: torch.Generator, step: int) -> float:
        optimizer, spec = self.state.optimizer, self.spec
        for group in optimizer.param_groups:
            group["lr"] = spec.rate * self.share(step, spec.epochs * self.batches)
        device, half = self.objective.images.device.type, spec.precision == "bfloat16"
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = self.objective.loss(batch, rng)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()


def _identity(job: Job) -> dict[str, Any]:
    """Return all that a training depends on, as ``section.key`` and plain values."""
    parts = job.model_dump(mode="json", include={"model", "input", "plan", "code", "train"})
    flat = {f"{part}.{key}": value for part, keys in parts.items() for key, value in keys.items()}
    return {"seed": job.seed, "threads": job.runtime.threads} | flat


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )


# The learning rate over a training, as a share of the full rate:
#
# share
#   1   .--.____              cosine: a short rise, then half a cosine down to 0
#     /         ---.__        step: a short rise, then 1, 0.1, 0.01
#   0 ----------------- step  constant: 1, as the published learned codes and parity models


def cosine(step: int, steps: int) -> float:
    """Rise, then fall to 0 (Loshchilov and Hutter, arXiv 1608.03983, one period)."""
    return _rise(step, steps) * (1 + math.cos(math.pi * step / steps)) / 2


def stepped(step: int, steps: int) -> float:
    """Rise, then a tenth from half of the training on, a hundredth from three quarters on."""
    return _rise(step, steps) * 0.1 ** sum(step >= share * steps for share in (0.5, 0.75))


def _rise(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / (WARM_UP * steps))


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": cosine,
    "step": stepped,
    "constant": lambda step, steps: 1.0,
}
