"""Verb ``plan``: who would compute what, without running it."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich.console import Console

from mpicoded.cluster import Cluster
from mpicoded.commands.choose import choose
from mpicoded.commands.options import JobFile, Sets
from mpicoded.deploy import deploy, images, predict
from mpicoded.job import Job
from mpicoded.moves import check, schedule
from mpicoded.steps import draw


def plan(
    job_file: JobFile,
    set: Sets = None,
    ranks: Annotated[
        int | None, typer.Option("-n", "--ranks", min=1, help="ranks, the leader's included")
    ] = None,
    steps: Annotated[
        bool, typer.Option("--steps", help="show what every rank receives, runs and sends instead")
    ] = False,
    choose_k: Annotated[
        bool,
        typer.Option("--choose-k", help="simulate every k of the job's k + r units instead"),
    ] = False,
    straggling: Annotated[
        float,
        typer.Option(
            "--straggling",
            min=0.0,
            help="for --choose-k: mean random delay of computations and messages, as a share",
        ),
    ] = 0.5,
) -> None:
    """Show the plan of a job: rank x stage, FLOPs, bytes; seconds too if it names a cluster."""
    job = Job.read(job_file, set or [])
    job = job if ranks is None else job.on(range(ranks))
    data = images(job, job.input.split, limit=1)
    if choose_k:
        typer.echo(choose(job, tuple(data.images.shape[1:]), straggling).table())
        return
    deployment = deploy(job, tuple(data.images.shape[1:]), torch.from_numpy(data.images))
    its_plan, prediction = deployment.plan, predict(job, deployment)
    cluster = Cluster.local(ranks or its_plan.ranks)
    its_plan.check(cluster, job.runtime.sharing)
    if not cluster.workers:
        typer.echo("one rank runs the model unsplit; with more of them:\n")
        cluster = Cluster.local(its_plan.ranks)
    if steps:
        its_plan = its_plan.placed(cluster)
        lines = schedule(its_plan)
        check(lines, its_plan)
        typer.echo(draw(lines))
        return
    text = its_plan.table(cluster)
    if prediction is not None:
        text += f"\n\n{prediction.table()}"
    Console(soft_wrap=True).print(text, highlight=False, markup=False)
