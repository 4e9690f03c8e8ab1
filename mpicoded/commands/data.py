"""Verb ``data``: which data sets there are, and how to get one."""

from __future__ import annotations

import typer

from mpicoded import datasets


def show() -> None:
    """List the data sets that a job can name."""
    typer.echo("digits: bundled")
    for name in datasets.FILES:
        typer.echo(f"{name}: python -m mpicoded data fetch {name}")


def fetch(name: str) -> None:
    """Download a public data set into the cache, checked by its checksum."""
    typer.echo(f"{name} is in {datasets.fetch(name)}")
