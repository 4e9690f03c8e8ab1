"""Verb ``run``: serve a job's queries with the group and write the results file."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.cluster_tools.launch.start_command import STAND_INS, STARTS
from mpicoded.commands.dump import check_path, finished, open_results
from mpicoded.commands.options import JobFile, Overwrite, Resume, Sets
from mpicoded.commands.queries import Queries
from mpicoded.deploy import deploy, images, predict
from mpicoded.errors import JobError
from mpicoded.faults import KINDS, Fault
from mpicoded.job import Job
from mpicoded.results import Results
from mpicoded.results.beat import beating
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.lab_line import LAB_LINE
from mpicoded.runtime.leader import Leader
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.threads import use_threads
from mpicoded.study.report.table import render, summary

LOOK = 0.5  # s between two looks at what is to be flushed


def run(
    context: typer.Context,
    job_file: JobFile,
    set: Sets = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Run a job under mpirun: answers, arrivals and times go to its HDF5 file."""
    pool: WorkerPool = context.obj
    job = Job.read(job_file, set or [])
    check_path(job, resume, overwrite)
    data = images(job, job.input.split, limit=job.input.limit)
    queries = Queries(job, data)
    first = torch.from_numpy(data.images[queries.rows(0)])
    deployment = deploy(job, tuple(data.images.shape[1:]), first)
    deployment.plan.check(Cluster.local(pool.ranks), job.runtime.sharing)
    prediction = predict(job, deployment)
    if prediction is not None and prediction.speedup <= 1 and pool.ranks > 1:
        print(f"r0 | {prediction.verdict}", file=sys.stderr)
    settings = job.settings
    use_threads(settings.threads)
    faults = make_faults(job, len(queries), pool.ranks)
    cluster = pool.connect(settings.start_limit)
    with open_results(job, queries, deployment, cluster, resume, overwrite, prediction) as results:
        to_come = ahead(faults, results, settings.window)
        leader = Leader(pool, cluster, deployment, settings, to_come, job.seed)
        with beating(results.path, lambda: leader.at_work):
            serve(leader, queries, results)
        if job.results.unsplit:
            with beating(results.path, lambda: True):
                compare(deployment, queries, results)
    with beating(results.path, lambda: True):  # a launcher waits for the end of ranks only
        table = render(summary(finished(job)))
    Console(soft_wrap=True).print(table)


def make_faults(job: Job, queries: int, ranks: int) -> tuple[Fault, ...]:
    """Return [[faults]] by query number; ranks may be fewer than when the run began.

    Raises
    ------
    JobError
        If a fault is the lab's and this job does not run in it.
    """
    for spec in job.faults:
        if KINDS[spec.kind].by_lab and LAB_LINE not in os.environ:
            raise JobError(
                f'[[faults]] kind = "{spec.kind}" is done to a node of the lab: run the job with '
                "mpicoded lab run, or leave that fault out: --set 'faults=[]'"
            )
    total, _, numbers = os.environ.get(STAND_INS, "").partition(":")
    before = [int(number) for number in numbers.split(",") if number]
    if len(before) == ranks:
        return job.injected(queries, int(total), before)
    return job.injected(queries, ranks, range(ranks))


def ahead(faults: Sequence[Fault], results: Results, window: int) -> list[Fault]:
    """Leave out what has happened once and for all before a run that is resumed.

    A node that went away may have ended the run in the midst of the query in which it did.
    """
    first = int(min(results.pending, default=0))
    seen = first + window if first or int(os.environ.get(STARTS, "0")) else 0
    return [f for f in faults if not (f.once and f.first < (seen if _deadly(f) else first))]


def _deadly(fault: Fault) -> bool:
    """Whether it may have ended the run before what was answered was on disk."""
    return fault.by_lab or fault.kind == "crash"


def serve(leader: Leader, queries: Queries, results: Results) -> None:
    """Answer all pending queries, at most ``window`` in flight, and record them as they come."""
    pending = [int(q) for q in results.pending]
    try:
        with _bar() as bar:
            task = bar.add_task(
                "queries", total=len(queries), completed=len(queries) - len(pending)
            )
            for answer in answers(leader, pending, queries, results.flush):
                results.add_events(leader.trace.drain())  # an answer has its events
                results.add(answer)
                bar.advance(task)
    finally:
        leader.close()
        results.add_events(leader.trace.drain())


def answers(
    leader: Leader, pending: Sequence[int], queries: Queries, meanwhile: Callable[[], None]
) -> Iterator[Answer]:
    """Keep ``window`` queries in flight; yield the answers as they come."""
    done: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
    in_flight = 0
    for query in pending:
        if in_flight == leader.settings.window:
            yield _next(done, meanwhile)
            in_flight -= 1
        x = queries.tensor(query, leader.deployment)
        leader.submit(x, query).add_done_callback(done.put)
        in_flight += 1
    for _ in range(in_flight):
        yield _next(done, meanwhile)


def _next(done: queue.SimpleQueue[Future[Answer]], meanwhile: Callable[[], None]) -> Answer:
    """Wait for the next answer; what is kept in memory must not wait with it."""
    while True:
        with suppress(queue.Empty):
            return done.get(timeout=LOOK).result()
        meanwhile()


def compare(deployment: Deployment, queries: Queries, results: Results) -> None:
    """Run every query on the model itself too, for the accuracy beside ours."""
    for query in results.base_pending:
        x = queries.tensor(int(query), deployment)
        results.write_base(deployment.base(x), first=int(query))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=not sys.stdout.isatty()),  # mpirun gives ranks no tty but stdout
    )
