"""Verb ``launch``: start a job under mpirun in the right way, and see it through."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mpicoded.cluster_tools.launch import Limits, Machines, hostfile, supervise
from mpicoded.cluster_tools.launch.job_header import JobHeader
from mpicoded.cluster_tools.launch.mpi import find
from mpicoded.cluster_tools.launch.start_command import check
from mpicoded.cluster_tools.launch.supervisor import Supervisor
from mpicoded.commands.options import (
    Agent,
    Interface,
    JobFile,
    Mpirun,
    Overwrite,
    Resume,
    Sets,
    flags,
)
from mpicoded.errors import JobError

DEFAULT = Limits()
INSIDE = "OMPI_COMM_WORLD_RANK"


def launch(
    job_file: JobFile,
    set: Sets = None,
    ranks: Annotated[
        int | None,
        typer.Option("-n", "--ranks", min=1, help="the leader's included; default: k + r + 1"),
    ] = None,
    hosts: Annotated[
        Path | None,
        typer.Option("--hostfile", help="`NAME slots=COUNT`, one a line; rank 0 on the first"),
    ] = None,
    agent: Agent = None,
    interface: Interface = None,
    mpirun: Mpirun = None,
    restarts: Annotated[int, typer.Option(min=0, help="starts again, at most")] = DEFAULT.restarts,
    stall: Annotated[
        float,
        typer.Option(min=1, help="start again after so many seconds without an answer or work"),
    ] = DEFAULT.stall,
    end: Annotated[
        float, typer.Option("--end-limit", min=0.1, help="seconds for mpirun to end after the run")
    ] = DEFAULT.end,
    resume: Resume = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only print the command")] = False,
) -> None:
    """Start a job under mpirun, and again without the nodes that died, until it is done."""
    if INSIDE in os.environ:
        raise JobError("launch starts mpirun itself: leave out the mpirun before it")
    header = JobHeader.read(job_file, set or [])
    machines = Machines(
        ranks=ranks or header.units + 1,
        hosts=hostfile.read(hosts) if hosts else (),
        agent=agent,
        interface=interface,
        mpirun=mpirun,
    )
    check(machines)
    given = flags(resume, overwrite)
    limits = Limits(restarts=restarts, stall=stall, end=end)
    if dry_run:
        one = Supervisor(job_file, machines, set or [], find(mpirun), limits)
        typer.echo(one.command(given, machines.hosts))
        return
    raise typer.Exit(supervise(job_file, machines, set or [], given, limits))
