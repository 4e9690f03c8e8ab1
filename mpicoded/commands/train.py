"""Verb ``train``: make the weights that a job's [train] asks for."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mpicoded.commands.options import JobFile, Sets
from mpicoded.job import Job


def train(
    job_file: JobFile,
    set: Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from the checkpoint of this very job")
    ] = False,
) -> None:
    """Train a base model or a learned code; checkpoints every epoch, the best weights are kept."""
    from mpicoded.training import train as trainer

    trained = trainer.train(Job.read(job_file, set or [], training=True), resume)
    course = trained.course
    Console().print(
        f"{trained.file}: {trained.parameters:,} numbers, epoch {course.best + 1} of "
        f"{course.epochs}, validation loss {course.validations[course.best]:.4g}"
    )
