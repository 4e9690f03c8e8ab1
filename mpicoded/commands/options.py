"""Arguments that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

JobFile = Annotated[Path, typer.Argument(metavar="JOB", help="a job file, as jobs/quickstart.toml")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a key: --set gather.deadline=0.1"),
]
Resume = Annotated[bool, typer.Option("--resume", help="answer what the results file lacks")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the results file")]

Agent = Annotated[str | None, typer.Option(help="AGENT HOST WORDS…; default: ssh")]
Interface = Annotated[str | None, typer.Option(help="for MPI's messages, such as eth0")]
Mpirun = Annotated[str | None, typer.Option(help="default: of this environment")]


def flags(resume: bool, overwrite: bool) -> list[str]:
    """Return them as words of a command line."""
    return ["--resume"] * resume + ["--overwrite"] * overwrite
