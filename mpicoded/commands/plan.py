"""Verb ``plan``: who would compute what, without running it."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from mpicoded.cluster import Cluster
from mpicoded.commands.options import JobFile, Sets
from mpicoded.deploy import deploy, images
from mpicoded.job import Job


def plan(
    job_file: JobFile,
    set: Sets = None,
    ranks: Annotated[
        int | None, typer.Option("-n", "--ranks", min=1, help="ranks, the leader's included")
    ] = None,
) -> None:
    """Show the plan of a job: rank x stage, with predicted FLOPs, bytes and redundancy."""
    job = Job.read(job_file, set or [])
    data = images(job, job.input.split, limit=1)
    its_plan = deploy(job, tuple(data.images.shape[1:])).plan
    cluster = Cluster.local(ranks or its_plan.n + 1)
    its_plan.check(cluster, job.runtime.sharing)
    if not cluster.workers:
        typer.echo("one rank runs the model unsplit; with more of them:\n")
        cluster = Cluster.local(its_plan.n + 1)
    Console(soft_wrap=True).print(its_plan.table(cluster), highlight=False, markup=False)
