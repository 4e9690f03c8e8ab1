"""Verb ``evaluate``: the accuracy of jobs' codes under every erasure pattern."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpicoded.commands.options import Sets
from mpicoded.commands.show import show
from mpicoded.errors import JobError
from mpicoded.job import Job

Jobs = Annotated[list[Path], typer.Argument(metavar="JOB...", help="job files, for one table")]
Out = Annotated[Path | None, typer.Option("--out", help="keep all numbers in this .h5, for report")]
Shares = Annotated[
    list[float] | None,
    typer.Option("--f", metavar="F", help="share that is late, for A_o; may be given again"),
]
Lost = Annotated[int | None, typer.Option("--lost", help="most units missing; default: r")]


def evaluate(
    jobs: Jobs,
    set: Sets = None,
    out: Out = None,
    f: Shares = None,
    lost: Lost = None,
) -> None:
    """Measure codes on the whole test part: drops by what is missing, beside doing without.

    Several jobs must have the same base model and input; --set is for all of them.
    """
    from mpicoded.study.evaluate import SHARES
    from mpicoded.study.evaluate import evaluate as measure
    from mpicoded.study.report.evaluation import render_evaluation

    _check(f, lost, out)
    read = [Job.read(file, set or []) for file in jobs]
    found = measure(*read, shares=f or SHARES, lost=lost, quiet=False)
    if out is not None:
        from mpicoded.study.evaluation import write_evaluation

        texts = "\n\n".join(f"# {job.file.name}\n{job.text}" for job in read)
        about = {"job": texts, "command": shlex.join(["mpicoded", *sys.argv[1:]])}
        write_evaluation(out, found, about)
    show(render_evaluation(found))
    if out is not None:
        typer.echo(f"written: {out}; draw it with report {out} --figure codes.png")


def _check(shares: list[float] | None, lost: int | None, out: Path | None) -> None:
    for share in shares or ():
        if not 0 <= share <= 1:
            raise JobError(f"--f {share:g}: is a share, from 0 to 1")
    if lost is not None and lost < 1:
        raise JobError(f"--lost {lost}: is a number of units, from 1")
    if out is not None and out.suffix != ".h5":
        raise JobError(f"--out {out}: is no results file: let it end in .h5")
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        why = "is a folder" if out.is_dir() else f"{out.parent} is no folder"
        raise JobError(f"--out {out}: {why}; name a file in a folder that there is")
