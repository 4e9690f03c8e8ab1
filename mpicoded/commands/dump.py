"""Make the results file of a run before the first query, or open it again."""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpicoded.answer import Mode
from mpicoded.arrivals import CLOSED
from mpicoded.classes import border
from mpicoded.cluster import Cluster
from mpicoded.commands.queries import Queries
from mpicoded.cost.prediction import Prediction
from mpicoded.errors import ResultsError
from mpicoded.geometry import Box, Range
from mpicoded.job import Job
from mpicoded.outputs import Lock
from mpicoded.plan import Plan
from mpicoded.results import Layout, Loaded, Results, load
from mpicoded.results.file import named
from mpicoded.results.layout import NO_OUTPUT
from mpicoded.results.writer import check_new
from mpicoded.runtime.deployment import Deployment

MENDED = "what is damaged is answered again, damaged events are left out"


def check_path(job: Job, resume: bool, overwrite: bool) -> None:
    """Raise ResultsError if no results file can be made or resumed at the job's path."""
    path = job.results_path
    if resume and overwrite:
        raise ResultsError(
            f"{path}: --resume goes on with it and --overwrite replaces it; give one of them"
        )
    given = job.input
    names = (job.model.weights, job.code.weights, given.data.split(":")[0], given.arrivals)
    if path in [job.file.resolve(), *(job.path(name) for name in names if name)]:
        raise ResultsError(f"{path}: the job reads this file; name another one in [results]")
    with named(path):
        if path.is_dir():
            raise ResultsError(
                f"{path}: is a folder; name a file in [results], such as {path / 'run.h5'}"
            )
        above = next(folder for folder in path.parents if folder.exists())
        if not above.is_dir():
            raise ResultsError(
                f"{path}: {above} is a file, not a folder; name another file in [results]"
            )
        if path.parent.is_dir():
            Lock(path).release()  # nobody writes it now; it is locked again when it is made
        check_new(path, overwrite or resume)


def open_results(
    job: Job,
    queries: Queries,
    deployment: Deployment,
    cluster: Cluster,
    resume: bool,
    overwrite: bool,
    prediction: Prediction | None = None,
) -> Results:
    """Create the results file, or open it to go on; a batch job may say --resume at every start.

    ResultsError if it exists and neither flag is given, is of another job, or cannot be written.
    """
    path, flush = job.results_path, job.results.flush
    sizes = layout(job, queries, deployment, cluster)
    if resume and path.exists():
        old = Results.resume(path, sizes, job_text=job.text, hosts=cluster.hosts, flush=flush)
        if old.damage:
            print(f"r0 | {path}: is damaged ({old.damage}): {MENDED}", file=sys.stderr)
        return old
    return _create(
        job,
        sizes,
        deployment.plan,
        cluster,
        overwrite,
        attrs={"mpi_library": mpi_library()},
        predicted=None if prediction is None else prediction.values(),
        labels=queries.all(queries.data.labels),
        held_out=queries.all(queries.data.held_out),
    )


def open_simulated(
    job: Job,
    plan: Plan,
    cluster: Cluster,
    queries: int,
    overwrite: bool,
    shape: tuple[int, int] | None = None,
) -> Results:
    """Create the results file of a simulated run: no outputs, labels or unsplit model.

    ``shape`` is (stages, n) of all plans of the run.
    """
    ranks = len(cluster.hosts)
    owner = owners(plan)
    shape = shape or plan.shape
    sizes = Layout(queries, *shape, NO_OUTPUT, ranks, plan.batch, owner=owner, base=False)
    attrs = {"clock": "simulated", "mpi_library": "no MPI"}
    return _create(job, sizes, plan, cluster, overwrite, attrs=attrs)


def _create(
    job: Job,
    sizes: Layout,
    plan: Plan,
    cluster: Cluster,
    overwrite: bool,
    attrs: Mapping[str, Any],
    **known: Any,
) -> Results:
    return Results.create(
        job.results_path,
        sizes,
        job_text=job.text,
        seed=job.seed,
        attrs={"commit": commit(), **open_loop(job), **attrs},
        plan=list(placements(plan, cluster)),
        plan_table=plan.table(cluster),
        hosts=[host or f"rank{p}" for p, host in enumerate(cluster.hosts)],
        flush=job.results.flush,
        overwrite=overwrite,
        **known,
    )


def open_loop(job: Job) -> dict[str, Any]:
    """Return what a job says of an open loop; nothing of a closed one."""
    asked = {"arrivals": job.input.arrivals, "rate": job.input.rate, "queue": job.runtime.queue}
    return {} if asked["arrivals"] == CLOSED else {k: v for k, v in asked.items() if v is not None}


def finished(job: Job) -> Loaded:
    """Read the file of a run that came to its end; ResultsError if something is missing in it."""
    loaded = load(job.results_path, outputs=False)
    if not loaded.finished:
        pending = int((loaded.queries["mode"] == Mode.PENDING).sum())
        raise ResultsError(
            f"{job.results_path}: the run is over, and {pending} of {loaded.layout.queries} "
            "queries have no answer there, or no unsplit output; --resume goes on with the rest"
        )
    return loaded


def layout(job: Job, queries: Queries, deployment: Deployment, cluster: Cluster) -> Layout:
    """Return the sizes of everything in the file."""
    plan, labels = deployment.plan, queries.data.labels
    return Layout(
        queries=len(queries),
        stages=deployment.shape[0],
        units=deployment.shape[1],
        outputs=plan.output_shape,
        ranks=len(cluster.hosts),
        batch=plan.batch,
        has_labels=labels is not None,
        owner=owners(plan),
        base=job.results.unsplit,
        above=border(deployment.chain, labels),
    )


def owners(plan: Plan) -> tuple[int, ...]:
    """Return which unit holds each image of a query; () where every unit has a part of each."""
    shards = plan.stages[0].shards if plan.stages and plan.systematic else ()
    parts = [shard.images for shard in shards]
    return tuple(i for i, part in enumerate(parts) if part for _ in range(part.size))


def placements(plan: Plan, cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Yield home, boxes, work and bytes of every unit of the plan, for the results file."""
    for stage, unit in plan.units():
        shards, window = plan.stages[stage].shards, plan.stages[stage].windows[0]
        rows, cols = plan.stages[stage].unit_output
        output, input_ = Box(Range(0, rows), Range(0, cols)), window  # of a coded unit
        if not plan.coded(unit, stage):
            output, input_ = shards[unit].writes, shards[unit].reads
        yield {
            "stage": stage,
            "unit": unit,
            "rank": plan.home(unit, cluster, stage) if cluster.workers else 0,
            "output": (*output.rows, *output.cols),
            "input": (*input_.rows, *input_.cols),
            "flops": plan.flops(stage, unit),
            "bytes_in": plan.bytes_in(stage, unit),
            "bytes_out": plan.bytes_out(stage, unit),
        }


def mpi_library() -> str:
    """Return name and version of the MPI library: the first line of its own words."""
    from mpi4py import MPI

    return MPI.Get_library_version().split("\n")[0].split(", package")[0].strip("\x00 ")


def commit() -> str:
    """Return the commit of the checkout that the package runs from, if it is one."""
    git = Path(__file__).parents[2] / ".git"
    try:
        head = (git / "HEAD").read_text().strip()
        return (git / head[5:]).read_text().strip() if head.startswith("ref: ") else head
    except OSError:
        return "unknown"
