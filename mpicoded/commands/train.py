"""Verb ``train``: make the weights that a job's [train] asks for."""

from typing import Annotated

import typer

from mpicoded.commands.options import JobFile, Sets
from mpicoded.job import Job


def train(
    job_file: JobFile,
    set: Sets = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the checkpoint")] = False,
) -> None:
    """Train a model, a code or its parity models; keep the best weights, checkpoint and curves."""
    from mpicoded.study import train as trainer
    from mpicoded.study.history import write_history

    job = Job.read(job_file, set or [], training=True)
    assert job.train is not None, "a job to train with has [train]"
    weights = job.output(job.train.out)
    curves = weights.with_suffix(".training.h5")
    about = {"job": job.text, "seed": job.seed, "weights": weights.name}
    trained = trainer.train(job, resume, lambda history: write_history(curves, history, about))
    history = trained.history
    ended = "" if history.epochs == job.train.epochs else " (nothing better came)"
    typer.echo(
        f"{trained.file}: {trained.parameters:,} numbers, epoch {history.best + 1} of "
        f"{history.epochs}{ended}, validation loss {history.validations[history.best]:.4g}\n"
        f"{curves}: the curves; draw them with report {curves.name} --figure curves.png"
    )
