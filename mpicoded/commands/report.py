"""Verb ``report``: the table, and a picture, from a results file alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mpicoded.report.table import render, summary
from mpicoded.results import load


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a results file, .h5")],
    figure: Annotated[
        Path | None, typer.Option("--figure", help="draw the run into this .png or .svg")
    ] = None,
) -> None:
    """Print the table of a run again; with --figure, draw it."""
    loaded = load(file)
    Console(soft_wrap=True).print(render(summary(loaded)))
    if figure is not None:
        from mpicoded.report.figure import draw

        draw(loaded, figure)
        typer.echo(f"drawn: {figure}")
