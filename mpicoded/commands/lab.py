"""Verbs ``lab …``: a Pi cluster on one machine."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mpicoded.cluster_tools.lab import machine, running, status, units
from mpicoded.cluster_tools.lab.inject import inject
from mpicoded.cluster_tools.lab.spec import Spec, equal, read_spec
from mpicoded.cluster_tools.lab.state import Home
from mpicoded.cluster_tools.lab.up import down as remove_lab
from mpicoded.cluster_tools.lab.up import up as build_lab
from mpicoded.commands.options import JobFile, Overwrite, Resume, Sets, flags
from mpicoded.commands.show import show
from mpicoded.errors import LabError

Name = Annotated[str, typer.Option("--name", help="which lab, where there are several here")]


def up(
    nodes: Annotated[int, typer.Option(min=1, help="how many equal nodes")] = 9,
    cpu: Annotated[float, typer.Option(help="share of a core that each has")] = 0.2,
    rate: Annotated[str, typer.Option(help="of each link, or of the shared medium")] = "50mbit",
    memory: Annotated[str | None, typer.Option(help="of each node, such as 1gb")] = None,
    medium: Annotated[str, typer.Option(help="switched, or shared as WiFi is")] = "switched",
    vectors: Annotated[int, typer.Option(help="SIMD width in bits: 128 (a Pi's), 256, 512")] = 512,
    cluster: Annotated[Path | None, typer.Option(help="FILE.toml of nodes and network")] = None,
    name: Name = "lab",
) -> None:
    """Build the lab; what has been built already stays."""
    if cluster is None:
        size = None if memory is None else units.size(memory)
        spec = equal(nodes, cpu, units.rate(rate), size, medium, vectors)
    else:
        spec = read_spec(cluster)
    done = build_lab(Home(name), spec)
    typer.echo(f"the lab is {'up already' if done == 'unchanged' else done}: {describe(spec)}")


def down(name: Name = "lab") -> None:
    """Take the lab away, with everything that runs in it."""
    typer.echo("the lab is gone" if remove_lab(Home(name)) else "there was no lab")


def run(
    context: typer.Context,
    job: Annotated[Path | None, typer.Argument(metavar="[JOB]", help="a job file")] = None,
    set: Sets = None,
    ranks: Annotated[
        int | None, typer.Option("-n", "--ranks", min=1, help="default: one on every node")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    program: Annotated[Path | None, typer.Option(help="FILE.py instead of a job")] = None,
    limit_start: Annotated[
        bool,
        typer.Option("--limit-start", help="limits hold from the start, without a Group"),
    ] = False,
    name: Name = "lab",
) -> None:
    """Run a job on the nodes, or with --program FILE.py [-- ARGS] a program under MPI."""
    what: Path | list[str]
    if program is not None:
        words = [] if job is None else [str(job)]
        what = [sys.executable, str(program), *words, *context.args]
    elif job is None or context.args:
        raise LabError("name one job file, or a program with --program")
    else:
        what = job
    given = flags(resume, overwrite)
    raise typer.Exit(running.run(Home(name), what, set or [], given, ranks, limit_start))


def profile(
    job: JobFile,
    out: Annotated[Path, typer.Option("--out", help="the cluster file to write")],
    set: Sets = None,
    name: Name = "lab",
) -> None:
    """Measure nodes and links for a job, under their limits, into a file for [plan] cluster."""
    sets = [word for each in set or [] for word in ("--set", each)]
    words = [sys.executable, "-m", "mpicoded", "profile", str(job), "--out", str(out), *sets]
    raise typer.Exit(running.run(Home(name), words))


def fault(
    kind: Annotated[str, typer.Argument(help="reboot, cpu, rate, link, loss, freeze, end")],
    node: Annotated[str, typer.Argument(metavar="NODE", help="its name, number or address")],
    seconds: Annotated[float | None, typer.Option(help="how long; default: until ended")] = None,
    value: Annotated[str | None, typer.Option(help="a share, or a rate as 5mbit")] = None,
    name: Name = "lab",
) -> None:
    """Inject a fault into a node, also while a job runs; `end` ends all that has."""
    typer.echo(inject(Home(name), kind, node, value, seconds))


def report(name: Name = "lab") -> None:
    """Show every node: its limits and their use, its link and its faults."""
    machine.check_tools()
    state, rows = status.measure(Home(name))
    typer.echo(f"{describe(state.spec)}; {status.headline(state)}\n")
    show(status.table(rows), markup=False)


def describe(spec: Spec) -> str:
    """Return a line about nodes and network."""
    shares = sorted({node.cpu for node in spec.nodes})
    share = " to ".join(f"{x:g}" for x in dict.fromkeys((shares[0], shares[-1])))
    if spec.medium == "shared":
        network = f"one medium of {units.show_rate(spec.rate)}"
    else:
        rates = {node.rate for node in spec.nodes}
        shown = units.show_rate(next(iter(rates))) if len(rates) == 1 else "various rates"
        network = f"links of {shown}"
    return f"{len(spec.nodes)} nodes with {share} of a core, {network}"
