"""Verb ``profile``: measure ranks and links for a job, under mpirun, and write a cluster file."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mpicoded import clusterfile
from mpicoded.cluster_tools.profiling.profile import Profiler
from mpicoded.commands.options import JobFile, Sets
from mpicoded.deploy import codes, images, network, plan
from mpicoded.errors import JobError, PlanError
from mpicoded.job import Job
from mpicoded.network.graph import Chain, trace
from mpicoded.outputs import check_place, write_whole
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.setup import check_packs
from mpicoded.runtime.threads import use_threads


def profile(
    context: typer.Context,
    job_file: JobFile,
    set: Sets = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="the cluster file; without it the job's [plan] cluster"),
    ] = None,
) -> None:
    """Measure the cost of each block of the job's model on every rank, and all links."""
    pool: WorkerPool = context.obj
    job = Job.read(job_file, set or [])
    path = _path(job, out)
    if pool.ranks < 2:
        raise JobError("one rank has no links to measure: start more, mpirun -n 9 python -m …")
    data = images(job, job.input.split, limit=1)
    chain = trace(network(job).requires_grad_(False), tuple(data.images.shape[1:]))
    planned = pool.ranks - 1 if job.plan.planner else None
    cut = [_deployment(job, chain, grid) for grid in grids(job, chain, planned)]
    use_threads(job.runtime.threads)
    cluster = pool.connect(job.runtime.start_limit)
    profiler = Profiler(pool, cluster.hosts, cut, job.runtime)
    measured = profiler.measure(lambda text: print(f"r0 | {text}", file=sys.stderr))
    about = f"measured by: mpicoded profile {job_file.name}, model {job.model.name}"
    try:
        write_whole(path, clusterfile.write(measured, about).encode())
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}; give another --out") from error
    typer.echo(f"{path}: {len(measured.hosts)} ranks")


def _path(job: Job, out: Path | None) -> Path:
    """Return where the file goes; an error if it cannot go there."""
    if out is None and job.plan.cluster is None:
        raise JobError("give --out cluster.toml, or name the file in the job: [plan] cluster")
    path = out or job.output(str(job.plan.cluster))
    check_place(path)
    return path


def grids(job: Job, chain: Chain, workers: int | None = None) -> tuple[tuple[int, int], ...]:
    """Return the grids of pieces to measure: as the job cuts, coarser, and the whole map.

    A planner will cut for all ``workers``.
    """
    if not chain.blocks:
        raise PlanError(f"no block of this model can be cut: {chain.limit}: nothing to plan")
    maps = [chain.shapes[block.exit] for block in chain.blocks]
    rows, cols = min(shape[1] for shape in maps), min(shape[2] for shape in maps)
    k = workers or job.code.k
    wanted = {"height": (k, 1), "width": (1, k), "tiles": job.plan.tiles}
    grid = wanted.get(job.plan.split) or (1, 1)  # the others take whole maps
    fine = min(grid[0], rows), min(grid[1], cols)
    return fine, (max(1, fine[0] // 2), max(1, fine[1] // 2)), (1, 1)


def _deployment(job: Job, chain: Chain, grid: tuple[int, int]) -> Deployment:
    """Return every block as a stage of its own, in the pieces of ``grid``."""
    k = grid[0] * grid[1]
    names = tuple(block.name for block in chain.blocks)
    its = Job.given(k=k, split="tiles", stages=names, tiles=grid, batch=job.input.batch)
    its_plan = plan(its, chain)
    deployment = Deployment(chain, its_plan, codes(its, its_plan, chain))
    check_packs(deployment.programs())
    return deployment
