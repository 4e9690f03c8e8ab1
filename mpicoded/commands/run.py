"""Verb ``run``: serve a job's queries with the group and write the results file."""

from __future__ import annotations

import os
import queue
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import islice
from math import inf

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mpicoded.answer import Answer
from mpicoded.arrivals import Seconds
from mpicoded.cluster import Cluster
from mpicoded.cluster_tools.launch.start_command import STAND_INS, STARTS
from mpicoded.commands.dump import check_path, finished, open_results
from mpicoded.commands.options import JobFile, Overwrite, Resume, Sets
from mpicoded.commands.queries import Queries
from mpicoded.deploy import deploy, images, predict, replanner, switch
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

Done = queue.SimpleQueue[Future[Answer]]

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
    job = Job.read(job_file, set or []).on(stand_ins(pool.ranks)[1])
    check_path(job, resume, overwrite)
    data = images(job, job.input.split, limit=job.input.limit)
    queries = Queries(job, data)
    seconds = job.schedule(len(queries))
    first = torch.from_numpy(data.images[queries.rows(0)])
    deployment = deploy(job, tuple(data.images.shape[1:]), first)
    deployment.plan.check(Cluster.local(pool.ranks), job.runtime.sharing)
    prediction = predict(job, deployment)
    if prediction is not None and prediction.speedup <= 1 and pool.ranks > 1:
        print(f"r0 | {prediction.verdict}", file=sys.stderr)
    settings = job.settings
    use_threads(settings.threads)
    faults = make_faults(job, len(queries), pool.ranks)
    cluster = pool.connect(settings.start_limit).timed(job.measured())
    with open_results(job, queries, deployment, cluster, resume, overwrite, prediction) as results:
        to_come = ahead(faults, results, settings.window)
        leader = Leader(
            pool,
            cluster,
            deployment,
            settings,
            to_come,
            job.seed,
            job.plan.falls_back,
            replanner(job, deployment),
            switch(job, deployment),
        )
        between = seconds is not None  # two queries of an open loop there may be nothing to do
        with beating(results.path, lambda: leader.at_work or (between and leader.idle)):
            serve(leader, queries, results, seconds)
        if job.results.unsplit:
            with beating(results.path, lambda: True):
                compare(deployment, queries, results)
    with beating(results.path, lambda: True):  # a launcher waits for the end of ranks only
        table = render(summary(finished(job)))
    Console(soft_wrap=True).print(table)


def make_faults(job: Job, queries: int, ranks: int) -> tuple[Fault, ...]:
    """Return [[faults]] by query number; ranks may be fewer than when the run began.

    Raises JobError if a fault is the lab's and this job does not run in it.
    """
    for spec in job.faults:
        if KINDS[spec.kind].by_lab and LAB_LINE not in os.environ:
            raise JobError(
                f'[[faults]] kind = "{spec.kind}" is done to a node of the lab: run the job with '
                "mpicoded lab run, or leave that fault out: --set 'faults=[]'"
            )
    return job.injected(queries, *stand_ins(ranks))


def stand_ins(ranks: int) -> tuple[int, Sequence[int]]:
    """Return how many ranks the run began with, and which of them each rank was then."""
    total, _, numbers = os.environ.get(STAND_INS, "").partition(":")
    before = [int(number) for number in numbers.split(",") if number]
    return (int(total), before) if len(before) == ranks else (ranks, range(ranks))


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


def serve(leader: Leader, queries: Queries, results: Results, seconds: Seconds | None) -> None:
    """Answer all pending queries, as the open loop asks them in ``seconds``; record the answers.

    A refused query is not pending: its refusal was the answer to the load at that time.
    """
    pending = [int(q) for q in results.pending]
    if seconds is None:
        its_answers = closed_loop(leader, pending, queries, results.flush)
    else:
        its_answers = open_loop(leader, pending, seconds, queries, results.flush)
    try:
        with _bar() as bar:
            task = bar.add_task(
                "queries", total=len(queries), completed=len(queries) - len(pending)
            )
            for answer in its_answers:
                results.add_events(leader.trace.drain())  # an answer has its events
                results.add(answer)
                bar.advance(task)
    finally:
        leader.close()
        results.add_events(leader.trace.drain())


def closed_loop(
    leader: Leader, pending: Sequence[int], queries: Queries, meanwhile: Callable[[], None]
) -> Iterator[Answer]:
    """Keep ``window`` queries in flight; yield the answers as they come."""
    done: Done = queue.SimpleQueue()
    come = _come(leader, done, meanwhile)
    for number, query in enumerate(pending):
        if number >= leader.settings.window:
            yield next(come)
        x = queries.tensor(query, leader.deployment)
        leader.submit(x, query).add_done_callback(done.put)
    yield from islice(come, min(len(pending), leader.settings.window))


def open_loop(
    leader: Leader,
    pending: Sequence[int],
    seconds: Seconds,
    queries: Queries,
    meanwhile: Callable[[], None],
) -> Iterator[Answer]:
    """Ask every query in its second, whatever is in flight; yield the answers as they come.

    A resumed run goes on in the schedule where it was: its first pending query is asked at once.
    """
    done: Done = queue.SimpleQueue()
    over = 0
    skipped = seconds[pending[0]] if pending and pending[0] else 0.0
    began = leader.now() - skipped
    for query in pending:
        second = began + float(seconds[query])
        x = queries.tensor(query, leader.deployment)
        for answer in _come(leader, done, meanwhile, second):
            yield answer
            over += 1
        # however late it is by now, latency counts from the second of the schedule
        leader.submit(x, query, since=second).add_done_callback(done.put)
    yield from islice(_come(leader, done, meanwhile), len(pending) - over)


def _come(
    leader: Leader, done: Done, meanwhile: Callable[[], None], until: float = inf
) -> Iterator[Answer]:
    """Yield answers as they come ``until`` a second of the run, at least those there already.

    What is kept in memory must not wait with it: ``meanwhile`` is called every now and then.
    """
    while True:
        left = max(until - leader.now(), 0.0)
        try:
            future = done.get(timeout=min(left, LOOK))
        except queue.Empty:
            if not left:
                return
            meanwhile()
        else:
            yield future.result()


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
