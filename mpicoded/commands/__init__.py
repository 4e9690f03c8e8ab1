"""The verbs of the command line, one file each; one line here."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import typer

from mpicoded.commands import data, evaluate, plan, report, run, train
from mpicoded.errors import MpicodedError, RemoteError

app = typer.Typer(
    name="mpicoded",
    help="Coded distributed inference of convolutional networks under MPI.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _verb(command: Callable[..., None]) -> Callable[..., None]:
    """Print an error that the user can mend once, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except MpicodedError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except RemoteError as error:
            print(f"error: a worker failed: {error}", file=sys.stderr)
            raise typer.Exit(1) from None

    return guarded


for verb in (run.run, plan.plan, report.report, train.train, evaluate.evaluate):
    app.command()(_verb(verb))

sets = typer.Typer(help="Data sets by name: which there are, how to get them.", no_args_is_help=True)
sets.command("list")(_verb(data.show))
sets.command("fetch")(_verb(data.fetch))
app.add_typer(sets, name="data")
