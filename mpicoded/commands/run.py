"""Verb ``run``: serve a job's queries with the group and write the results file."""

from __future__ import annotations

import queue
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from mpicoded.answer import Answer
from mpicoded.cluster import Cluster
from mpicoded.commands.options import JobFile, Sets
from mpicoded.datasets import Data
from mpicoded.deploy import deploy, images
from mpicoded.errors import JobError
from mpicoded.faults import Fault, assign
from mpicoded.job import Job
from mpicoded.plan import Plan
from mpicoded.report.table import render, summary
from mpicoded.results import Layout, Results, load
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.hall import Hall
from mpicoded.runtime.leader import Leader
from mpicoded.runtime.settings import Settings


def run(
    context: typer.Context,
    job_file: JobFile,
    set: Sets = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="answer what the results file does not hold yet")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace the results file if it exists")
    ] = False,
) -> None:
    """Run a job under mpirun: answers, arrivals and times go to its HDF5 file."""
    hall: Hall = context.obj
    signal.signal(signal.SIGTERM, _end)
    job = Job.read(job_file, set or [])
    data = images(job, job.input.split, limit=job.input.limit)
    queries = Queries(job, data)
    deployment = deploy(job, tuple(data.images.shape[1:]))
    deployment.plan.check(Cluster.local(hall.ranks), job.runtime.sharing)
    settings = make_settings(job)
    torch.set_num_threads(settings.threads)
    faults = make_faults(job, len(queries), hall)
    cluster = hall.meet(settings.start_limit)
    results = open_results(job, queries, deployment, cluster, resume, overwrite)
    with results:
        serve(hall, cluster, deployment, settings, faults, queries, results, job.seed)
        if job.results.unsplit:
            compare(deployment, queries, results)
    Console(soft_wrap=True).print(render(summary(load(job.results_path))))


def _end(number: int, frame: FrameType | None) -> None:
    """Let SIGTERM close the results file in good order."""
    raise SystemExit(128 + number)


class Queries:
    """The run's queries in order: query q holds ``batch`` images of the data, ``repeat`` times."""

    def __init__(self, job: Job, data: Data) -> None:
        self.data = data
        self.batch = job.input.batch
        self.once, rest = divmod(len(data.images), self.batch)
        if rest:
            raise JobError(
                f"[input] {len(data.images)} images do not fill queries of batch = {self.batch}: "
                f"set limit = {self.once * self.batch}"
            )
        self.repeat = job.input.repeat
        if job.runtime.wire == "uint8" and data.images.dtype != "uint8":
            raise JobError(
                f'[runtime] wire = "uint8" needs 8-bit images, {data.name} holds '
                f'{data.images.dtype}: use "float32" or "float16"'
            )
        self.as_bytes = job.runtime.wire == "uint8"

    def __len__(self) -> int:
        return self.once * self.repeat

    def rows(self, query: int) -> slice:
        """Rows of the data that query ``query`` holds."""
        first = query % self.once * self.batch
        return slice(first, first + self.batch)

    def all(self, values: npt.NDArray[Any] | None) -> npt.NDArray[Any] | None:
        """Return what is known of each image, (images of the data,), for the images of the run."""
        return None if values is None else np.tile(values, self.repeat)

    def tensor(self, query: int, deployment: Deployment) -> Tensor:
        """Return the images of a query (B, C, H, W): bytes if they travel so, else numbers."""
        x = torch.from_numpy(self.data.images[self.rows(query)])
        return x if self.as_bytes else deployment.numbers(x)


def make_settings(job: Job) -> Settings:
    """Return what [gather] and [runtime] say."""
    deadline = job.gather.deadline
    return Settings(
        deadline=None if deadline == "adaptive" else deadline,
        **job.gather.model_dump(exclude={"deadline"}),
        **job.runtime.model_dump(),
    )


def make_faults(job: Job, queries: int, hall: Hall) -> tuple[Fault, ...]:
    """Return [[faults]], their shares of the run as query numbers, each with its rank."""
    faults = [
        Fault(
            **spec.model_dump(exclude={"start", "stop"}),
            first=round(spec.start * queries),
            last=max(round(spec.stop * queries), round(spec.start * queries) + 1),
        )
        for spec in job.faults
    ]
    return assign(faults, range(1, hall.ranks), job.seed)


def open_results(
    job: Job,
    queries: Queries,
    deployment: Deployment,
    cluster: Cluster,
    resume: bool,
    overwrite: bool,
) -> Results:
    """Create the results file, or open it to go on."""
    plan, path, flush = deployment.plan, job.results_path, job.results.flush
    layout = Layout(
        queries=len(queries),
        stages=len(plan.stages),
        units=plan.n,
        outputs=plan.output_shape,
        ranks=len(cluster.hosts),
        batch=plan.batch,
        has_labels=queries.data.labels is not None,
        owner=owners(plan),
        base=job.results.unsplit,
    )
    if resume:
        return Results.resume(path, layout, job_text=job.text, hosts=cluster.hosts, flush=flush)
    return Results.create(
        path,
        layout,
        job_text=job.text,
        seed=job.seed,
        attrs={"mpi_library": mpi_library(), "commit": commit(), "clock": "mpi"},
        plan=list(placements(plan, cluster)),
        plan_table=plan.table(cluster),
        hosts=cluster.hosts,
        flush=flush,
        labels=queries.all(queries.data.labels),
        held_out=queries.all(queries.data.held_out),
        overwrite=overwrite,
    )


def owners(plan: Plan) -> tuple[int, ...]:
    """Return which unit holds each image of a query; () where every unit has a part of each."""
    parts = [shard.images for shard in plan.stages[0].shards]
    return tuple(i for i, part in enumerate(parts) if part for _ in range(part.size))


def placements(plan: Plan, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Return what the results file tells of every unit of the plan."""
    for stage, unit in plan.units():
        shards = plan.stages[stage].shards
        window = plan.stages[stage].windows[0]
        output, input_ = (shards[unit].writes, shards[unit].reads) if unit < plan.k else (window,) * 2
        yield {
            "stage": stage,
            "unit": unit,
            "rank": plan.home(unit, cluster) if cluster.workers else 0,
            "output": (*output.rows, *output.cols),
            "input": (*input_.rows, *input_.cols),
            "flops": plan.flops(stage, unit),
            "bytes_in": plan.bytes_in(stage, unit),
            "bytes_out": plan.bytes_out(stage, unit),
        }


def mpi_library() -> str:
    """Name and version of the MPI library, the first line of what it says of itself."""
    from mpi4py import MPI

    return MPI.Get_library_version().split("\n")[0].split(", package")[0].strip("\x00 ")


def commit() -> str:
    """Commit of the checkout that the package runs from, if it is one."""
    git = Path(__file__).parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        return (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return "unknown"


def serve(
    hall: Hall,
    cluster: Cluster,
    deployment: Deployment,
    settings: Settings,
    faults: Sequence[Fault],
    queries: Queries,
    results: Results,
    seed: int,
) -> None:
    """Answer all pending queries, at most ``window`` in flight, and record them as they come."""
    pending = [int(q) for q in results.pending]
    faults = [f for f in faults if not (f.kind == "crash" and pending and f.first < pending[0])]
    leader = Leader(hall, cluster, deployment, settings, faults, seed)
    if not cluster.workers:
        print("there is one rank only: the model runs unsplit on this device", file=sys.stderr)
    try:
        with _bar() as bar:
            task = bar.add_task("queries", total=len(queries), completed=len(queries) - len(pending))
            for answer in answers(leader, pending, queries):
                results.add(answer)
                results.add_events(leader.trace.drain())
                bar.advance(task)
    finally:
        leader.close()
        results.add_events(leader.trace.drain())


def answers(leader: Leader, pending: Sequence[int], queries: Queries) -> Iterator[Answer]:
    """Keep ``window`` queries in flight; yield the answers as they come."""
    done: queue.SimpleQueue[Future[Answer]] = queue.SimpleQueue()
    in_flight = 0
    for query in pending:
        if in_flight == leader.settings.window:
            yield done.get().result()
            in_flight -= 1
        x = queries.tensor(query, leader.deployment)
        leader.submit(x, query).add_done_callback(done.put)
        in_flight += 1
    for _ in range(in_flight):
        yield done.get().result()


def compare(deployment: Deployment, queries: Queries, results: Results) -> None:
    """Run every query on the unsplit model too, for the accuracy beside ours."""
    for query in results.base_pending:
        x = queries.tensor(int(query), deployment)
        results.write_base(deployment.alone(x), first=int(query))


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
