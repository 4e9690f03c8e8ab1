"""Verb ``calibrate``: measure the expected accuracy for every set of units that may arrive."""

from typing import Annotated

import typer

from mpicoded.commands.options import JobFile, Sets
from mpicoded.commands.show import show
from mpicoded.job import Job


def calibrate(
    job_file: JobFile,
    set: Sets = None,
    held_back: Annotated[
        int | None, typer.Option("--held-back", min=1, help="images held back, if weights lack it")
    ] = None,
) -> None:
    """Measure the code on images held back from training, and keep the table with the code.

    [gather] min_accuracy needs it; with it every answer says how good it is expected to be.
    """
    from mpicoded.study.calibrate import calibrate as measure

    done = measure(Job.read(job_file, set or []), held_back)
    show(done.render())
    typer.echo(f"written: {done.file}")
