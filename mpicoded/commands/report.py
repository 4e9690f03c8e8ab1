"""Verb ``report``: tables, pictures and traces of results files, which say what they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from mpicoded.commands.show import show
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded, load
from mpicoded.results.record import format_of
from mpicoded.study.report.table import render, summary

Files = Annotated[list[Path], typer.Argument(metavar="FILE...", help="results files (.h5)")]
Figure = Annotated[
    Path | None,
    typer.Option("--figure", help="draw into this .png or .svg: the run, or all runs' latencies"),
]
Query = Annotated[int | None, typer.Option("--query", metavar="Q", help="draw this query alone")]
Breakdown = Annotated[bool, typer.Option("--breakdown", help="where the latency goes")]
Trace = Annotated[
    Path | None, typer.Option("--trace", help=".json or .json.gz for ui.perfetto.dev")
]
Label = Annotated[
    list[str] | None, typer.Option("--label", help="names of runs; one a file, in order")
]


def report(
    files: Files,
    figure: Figure = None,
    query: Query = None,
    breakdown: Breakdown = False,
    trace: Trace = None,
    label: Label = None,
) -> None:
    """Print the table of a run again, draw it, or take it apart; compare several runs.

    Of a training (*.training.h5) and of an evaluation it prints and draws the curves and drops.
    """
    one = {"--query": query is not None, "--breakdown": breakdown, "--trace": trace is not None}
    given = [option for option, there in one.items() if there]  # these are about one run
    _check(files, figure, query, given, label)
    form = _form(files)
    if form in OTHERS and given:
        raise ResultsError(f"{given[0]} is about a run, and {files[0]} is none")
    with _sensible(files):
        if form in OTHERS:
            OTHERS[form](files, figure, label or ())
        elif len(files) > 1:
            _compare(files, figure, label or ())
        else:
            _run(files[0], figure, query, breakdown, trace)


@contextmanager
def _sensible(files: Sequence[Path]) -> Iterator[None]:
    """Turn errors over numbers that no run leaves into one that names the files."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        names = ", ".join(map(str, files))
        raise ResultsError(
            f"{names}: cannot be reported, its numbers make no sense ({why})"
        ) from error


def _run(
    file: Path, figure: Path | None, query: int | None, breakdown: bool, trace: Path | None
) -> None:
    run = load(file, outputs=False)
    if breakdown:
        from mpicoded.study.report import breakdown as phases

        show(phases.render_breakdown(phases.breakdown(run)))
    else:
        show(render(summary(run)))
    if figure is not None:
        _draw(run, query, figure)
    if trace is not None:
        from mpicoded.study.report.trace_events import write_trace

        count = write_trace(run, trace)
        typer.echo(f"written: {trace} ({count:,} events; open it in ui.perfetto.dev)")


def _check(
    files: Sequence[Path],
    figure: Path | None,
    query: int | None,
    given: Sequence[str],
    label: Sequence[str] | None,
) -> None:
    """Raise ResultsError for options that do not go together."""
    if query is not None and figure is None:
        raise ResultsError(f"--query {query} is about a picture: give --figure out.png too")
    if given and len(files) > 1:
        raise ResultsError(f"{given[0]} is about one run, and {len(files)} files are given")
    if label and len(files) == 1:
        raise ResultsError("--label names runs of a comparison, and one file is given")


def _form(files: Sequence[Path]) -> str:
    """Return the form of all files; ResultsError if they are not of one kind."""
    forms = {file: format_of(file) for file in files}
    (first, form), *others = forms.items()
    for file, other in others:
        if other != form:
            raise ResultsError(
                f"{first} is {form!r} and {file} is {other!r}: report them one kind at a time"
            )
    return form


def _trainings(files: Sequence[Path], figure: Path | None, labels: Sequence[str]) -> None:
    from mpicoded.study.history import read_history
    from mpicoded.study.report.history import draw_histories, render_histories

    runs = [read_history(file) for file in files]
    show(render_histories(runs, labels))
    if figure is not None:
        draw_histories(runs, figure, labels)
        typer.echo(f"drawn: {figure}")


def _evaluations(files: Sequence[Path], figure: Path | None, labels: Sequence[str]) -> None:
    from mpicoded.study.evaluation import read_evaluation
    from mpicoded.study.report.evaluation import draw_evaluation, render_evaluation

    if len(files) > 1 or labels:
        raise ResultsError(
            f"{files[0]} is an evaluation, and they are reported one at a time: codes are compared "
            "by one evaluation of all of them, evaluate JOB JOB ..."
        )
    found = read_evaluation(files[0]).evaluation
    show(render_evaluation(found))
    if figure is not None:
        draw_evaluation(found, figure)
        typer.echo(f"drawn: {figure}")


OTHERS = {"mpicoded training 1": _trainings, "mpicoded evaluation 2": _evaluations}


def _compare(files: Sequence[Path], figure: Path | None, labels: Sequence[str]) -> None:
    from mpicoded.study.report.compare import compare, draw_comparison, render_comparison

    runs = compare([load(file, outputs=False) for file in files], labels)
    show(render_comparison(runs))
    if figure is not None:
        draw_comparison(runs, figure)
        typer.echo(f"drawn: {figure}")


def _draw(run: Loaded, query: int | None, figure: Path) -> None:
    if query is None:
        from mpicoded.study.report.figure import draw

        draw(run, figure)
    else:
        from mpicoded.study.report.timeline import draw_query

        draw_query(run, query, figure)
    typer.echo(f"drawn: {figure}")
