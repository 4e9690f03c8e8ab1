"""Verb ``data``: which data sets there are, and how to get one."""

import typer

from mpicoded import datasets


def show() -> None:
    """List the data sets that a job can name, and where they are."""
    for name in datasets.CLASSES:
        typer.echo(f"{name:<15}{_where(name)}")


def fetch(name: str) -> None:
    """Download a public data set into the cache, checked by its checksum."""
    typer.echo(f"{name} is in {datasets.fetch(name)}")


def _where(name: str) -> str:
    if name not in datasets.FILES:
        return "bundled"
    homes = (home for home in datasets.homes(name) if home.is_dir() and any(home.iterdir()))
    home = next(homes, None)
    return f"in {home}" if home else f"not here; python -m mpicoded data fetch {name} gets it"
