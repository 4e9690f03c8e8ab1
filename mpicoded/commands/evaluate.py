"""Verb ``evaluate``: the accuracy of a job's code under every erasure pattern."""

from __future__ import annotations

from rich.console import Console

from mpicoded.commands.options import JobFile, Sets
from mpicoded.job import Job


def evaluate(job_file: JobFile, set: Sets = None) -> None:
    """Measure the code on the whole test part: drops by what is missing, beside zero-fill."""
    from mpicoded.training import evaluate as evaluation

    console = Console()
    for table in evaluation.evaluate(Job.read(job_file, set or [])).tables():
        console.print(table)
