"""Trainings as their files have them: one line each, and their curves in one picture.

    loss                          solid: validation; thin and dashed: training
    | \\_  `--.___                 ring: the epoch whose weights were kept
    |   `--o------
    +--------------- epoch
    rate, under it

Each training has one colour, and its name stands beside it in the legend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from rich.table import Table

from mpicoded.errors import ResultsError
from mpicoded.study.course import Curves
from mpicoded.study.report.style import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    save,
    styled,
)
from mpicoded.study.report.table import new_table, number

COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, "black")
LOG = 8.0  # losses that span more than this factor stand on a log axis


def render_courses(runs: Sequence[Curves], labels: Sequence[str] = ()) -> Table:
    """Return a line a training: epochs, the best of them, its losses, and how long it took."""
    names = ("epochs", "best", "loss", "validation", "last validation", "s an epoch", "minutes")
    table = new_table("training", *names)
    for run, name in zip(runs, _names(runs, labels), strict=True):
        course = run.course
        seconds = np.array(course.seconds)
        table.add_row(
            name,
            f"{course.epochs}",
            f"{course.best + 1}",
            f"{course.losses[course.best]:.4g}",
            f"{course.validations[course.best]:.4g}",
            f"{course.validations[-1]:.4g}",
            number(float(np.median(seconds))),
            number(float(seconds.sum()) / 60),
        )
    return table


def draw_courses(runs: Sequence[Curves], path: Path, labels: Sequence[str] = ()) -> None:
    """Draw the curves of all trainings into ``path``.

    Raises
    ------
    ResultsError
        If there are more trainings than colours, or ``path`` cannot be written.
    """
    if len(runs) > len(COLOURS):
        raise ResultsError(
            f"{len(runs)} trainings are too many for one picture: at most {len(COLOURS)}"
        )
    with styled():
        save(_figure(runs, _names(runs, labels)), path)


def _names(runs: Sequence[Curves], labels: Sequence[str]) -> list[str]:
    """Name trainings after their weights, and those of one name after their folders too."""
    if labels and len(labels) != len(runs):
        raise ResultsError(
            f"{len(labels)} labels for {len(runs)} files: give one --label a file, in order"
        )
    if labels:
        return list(labels)
    stems = [run.path.name.removesuffix(".h5").removesuffix(".training") for run in runs]
    count = Counter(stems)
    folders = [run.path.absolute().parent.name for run in runs]
    return [
        f"{folder}/{s}" if count[s] > 1 else s for s, folder in zip(stems, folders, strict=True)
    ]


def _figure(runs: Sequence[Curves], names: Sequence[str]) -> Figure:
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    for run, name, colour in zip(runs, names, COLOURS, strict=False):
        _curves(loss, rate, run, name, colour)
    loss.set_title("loss of every epoch", pad=20)
    words = "solid: validation, dashed: training; a ring: the epoch whose weights were kept"
    loss.text(0, 1.02, words, transform=loss.transAxes, fontsize=8, color=INK)
    _loss_axis(loss, runs)
    loss.legend(loc="upper right", fontsize=8)
    rate.set_title("learning rate at the end of the epoch")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _curves(loss: Axes, rate: Axes, run: Curves, name: str, colour: str) -> None:
    course = run.course
    epochs = np.arange(1, course.epochs + 1)
    dots = "." if course.epochs <= 60 else ""
    best = course.best
    label = f"{name}: {course.validations[best]:.4g} in epoch {best + 1}"
    loss.plot(epochs, course.losses, color=colour, linewidth=1, linestyle=(0, (4, 2)), alpha=0.75)
    loss.plot(epochs, course.validations, color=colour, linewidth=1.7, marker=dots, label=label)
    loss.plot(
        best + 1, course.validations[best], "o", color=colour, markersize=9,
        markerfacecolor="none", markeredgewidth=1.5, zorder=4,
    )  # fmt: skip
    rate.plot(epochs, course.rates, color=colour, linewidth=1.5, marker=dots)


def _loss_axis(axes: Axes, runs: Sequence[Curves]) -> None:
    values = np.concatenate([(*run.course.losses, *run.course.validations) for run in runs])
    if values.min() > 0 and values.max() > LOG * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif values.min() >= 0:
        axes.set_ylim(bottom=0)
