"""Verb ``doctor``: examine the hosts that a job is to run on."""

import socket
from pathlib import Path
from typing import Annotated

import typer

from mpicoded.cluster_tools.doctor import tables
from mpicoded.cluster_tools.doctor.doctor import examine
from mpicoded.cluster_tools.doctor.doctor import hostfile as made
from mpicoded.cluster_tools.doctor.probe import cores
from mpicoded.cluster_tools.launch import Host, Machines, hostfile
from mpicoded.cluster_tools.launch.mpi import find
from mpicoded.cluster_tools.launch.start_command import check
from mpicoded.commands.options import Agent, Interface, Mpirun
from mpicoded.commands.show import show
from mpicoded.errors import JobError
from mpicoded.outputs import check_place, write_whole


def doctor(
    hosts: Annotated[
        Path | None, typer.Argument(metavar="[HOSTFILE]", help="default: this machine alone")
    ] = None,
    agent: Agent = None,
    interface: Interface = None,
    mpirun: Mpirun = None,
    limit: Annotated[
        float, typer.Option(min=1, help="seconds for the imports of a host, and for mpirun")
    ] = 60.0,
    write: Annotated[
        Path | None, typer.Option(help="a hostfile for launch, made from what was found")
    ] = None,
) -> None:
    """Examine hosts, software, links, clocks and mpirun; status 1 if a run would fail."""
    known = hostfile.read(hosts) if hosts else (Host(socket.gethostname(), cores()),)
    machines = Machines(len(known), known, agent, interface)
    check(machines)
    if write:
        check_place(write)
    found = examine(machines, find(mpirun), limit)
    for table in (tables.hosts(found), tables.links(found)):
        if table.row_count:
            show(table, markup=False)
            typer.echo()
    for finding in sorted(found.findings, key=lambda each: not each.stops):
        typer.echo(str(finding))
    if write:
        try:
            write_whole(write, made(found, write).encode())
        except OSError as error:
            raise JobError(f"{write} cannot be written: {error.strerror}; name another") from None
    stops = sum(each.stops for each in found.findings)
    others = len(found.findings) - stops
    typer.echo(
        f"{len(found.facts)} of {len(known)} hosts answer; {stops} errors, {others} warnings"
    )
    raise typer.Exit(int(stops > 0))
