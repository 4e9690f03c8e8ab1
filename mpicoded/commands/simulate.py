"""Verb ``simulate``: a job's run on a virtual clock, on a cluster as a file describes it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mpicoded import clusterfile
from mpicoded.answer import Answer
from mpicoded.commands.dump import check_path, finished, open_simulated
from mpicoded.commands.options import JobFile, Overwrite, Sets
from mpicoded.commands.queries import Queries
from mpicoded.deploy import cost_model, deploy, images, replanner, switch
from mpicoded.job import Job
from mpicoded.simulate import simulate as run
from mpicoded.study.report.table import render, summary
from mpicoded.trace import Trace


def simulate(
    job_file: JobFile,
    cluster: Annotated[
        Path, typer.Option("--cluster", help="how fast ranks and links are, as profile writes it")
    ],
    set: Sets = None,
    overwrite: Overwrite = False,
    jitter: Annotated[
        float | None,
        typer.Option(
            "--jitter",
            min=0.0,
            help="deviation of computations, as a share (default: they vary as profile has seen)",
        ),
    ] = None,
    straggling: Annotated[
        float, typer.Option("--straggling", min=0.0, help="mean exponential delay, as a share")
    ] = 0.0,
) -> None:
    """Run a job on a virtual clock, faults included: times and arrivals go to its HDF5 file."""
    job = Job.read(job_file, set or [])
    check_path(job, resume=False, overwrite=overwrite)
    its = clusterfile.read(cluster)
    data = images(job, job.input.split, limit=job.input.limit)
    queries = len(Queries(job, data))
    deployment = deploy(job, tuple(data.images.shape[1:]))
    deployment.plan.check(its, job.runtime.sharing)
    model, offers = cost_model(job, deployment.chain, its), job.schedule(queries)
    assert model is not None, "there is a cluster"
    faults = job.injected(queries, len(its.hosts), range(len(its.hosts)))
    shape = deployment.shape
    with open_simulated(job, deployment.plan, its, queries, overwrite, shape) as results:

        def done(answer: Answer, trace: Trace) -> None:
            results.add_events(trace.drain())  # an answer has its events
            results.add(answer)

        trace = run(
            deployment,
            model,
            job.settings,
            queries,
            offers=None if offers is None else list(offers),
            faults=faults,
            seed=job.seed,
            jitter=jitter,
            straggling=straggling,
            fallback=job.plan.falls_back,
            replanner=replanner(job, deployment),
            switch=switch(job, deployment),
            done=done,
        )[1]
        results.add_events(trace.drain())
    Console(soft_wrap=True).print(render(summary(finished(job))))
