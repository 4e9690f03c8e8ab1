"""Verb ``plan``: who would compute what, without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from mpicoded.cluster import Cluster
from mpicoded.commands import compare as comparison
from mpicoded.commands.choose import choose
from mpicoded.commands.options import JobFile, Sets
from mpicoded.deploy import deploy, images, predict, problem
from mpicoded.errors import JobError
from mpicoded.job import Job
from mpicoded.moves import check, schedule
from mpicoded.planners.auto import Candidate
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
    compare: Annotated[
        bool, typer.Option("--compare", help="predict the plans of all planners instead")
    ] = False,
    figure: Annotated[
        Path | None,
        typer.Option("--figure", help="draw the plan, or with --compare all, into this .png, .svg"),
    ] = None,
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
    if sum((steps, compare, choose_k)) > 1 or (figure and (steps or choose_k)):
        raise JobError("--compare, --steps and --choose-k show one thing each, and the first two "
                       "alone may go with --figure: leave one of them out")  # fmt: skip
    job = Job.read(job_file, set or [])
    job = job if ranks is None else job.on(range(ranks))
    data = images(job, job.input.split, limit=1)
    shape = tuple(data.images.shape[1:])
    if compare:
        _compare(job, shape, figure)
    elif choose_k:
        typer.echo(choose(job, shape, straggling).table())
    else:
        _show(job, torch.from_numpy(data.images), ranks, steps, figure)


def _compare(job: Job, shape: tuple[int, ...], figure: Path | None) -> None:
    """Show the plans of all planners."""
    found, refused = comparison.compare(job, shape)
    typer.echo(comparison.table(found, refused))
    if figure:
        from mpicoded.study.report import plan_figure  # matplotlib takes its time

        plan_figure.draw_all(found, figure)


def _show(job: Job, query: Tensor, ranks: int | None, steps: bool, figure: Path | None) -> None:
    """Show the job's own plan, or its steps."""
    deployment = deploy(job, tuple(query.shape[1:]), query)
    its_plan, prediction = deployment.plan, predict(job, deployment)
    if figure:
        from mpicoded.study.report import plan_figure  # matplotlib takes its time

        its_problem = problem(job, deployment.chain)
        name = job.plan.planner or "the job's plan"
        placed = its_plan.placed(its_problem.cluster)
        plan_figure.draw(Candidate(name, placed, its_problem), figure)
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
    typer.echo(text)
