"""Render trainings from their files: a line each, and their curves in one picture."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table

from mpicoded.errors import ResultsError
from mpicoded.study.history import Curves
from mpicoded.study.report import style
from mpicoded.study.report.labels import names
from mpicoded.study.report.table import new_table, number

LOG = 8.0  # losses that span more than this factor stand on a log axis


def render_histories(runs: Sequence[Curves], labels: Sequence[str] = ()) -> Table:
    """Return a line a training: epochs, the best of them, its losses, and its duration."""
    columns = ("epochs", "best", "loss", "validation", "last validation", "s an epoch", "minutes")
    table = new_table("training", *columns)
    for run, name in zip(runs, _names(runs, labels), strict=True):
        history, best = run.history, run.history.best
        losses = (history.losses[best], history.validations[best], history.validations[-1])
        seconds = np.array(history.seconds)
        times = (float(np.median(seconds)), float(seconds.sum()) / 60)
        numbers = (*(f"{loss:.4g}" for loss in losses), *map(number, times))
        table.add_row(name, f"{history.epochs}", f"{best + 1}", *numbers)
    return table


def draw_histories(runs: Sequence[Curves], path: Path, labels: Sequence[str] = ()) -> None:
    """Draw the curves of all trainings into ``path``; ResultsError if it cannot be drawn."""
    if len(runs) > len(style.COLOURS):
        raise ResultsError(
            f"{len(runs)} trainings are too many for one picture: at most {len(style.COLOURS)}"
        )
    shown = _names(runs, labels)
    style.save(path, 5.2, lambda figure: _draw(figure, runs, shown))


def _names(runs: Sequence[Curves], labels: Sequence[str]) -> Sequence[str]:
    """Name trainings after their weights, and those of one name after their folders too."""
    stems = [run.path.name.removesuffix(".h5").removesuffix(".training") for run in runs]
    folders = [run.path.absolute().parent.name for run in runs]
    return names(labels, stems, [f"{f}/{s}" for f, s in zip(folders, stems, strict=True)])


def _draw(figure: Figure, runs: Sequence[Curves], shown: Sequence[str]) -> None:
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    for run, name, colour in zip(runs, shown, style.COLOURS, strict=False):
        _curves(loss, rate, run, name, colour)
    explained = "solid: validation, dashed: training; a ring: the epoch whose weights were kept"
    style.title(loss, "loss of every epoch", explained)
    _loss_axis(loss, runs)
    loss.legend(loc="upper right", fontsize=8)
    rate.set_title("learning rate at the end of the epoch")
    rate.set_ylim(bottom=0)
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curves(loss: Axes, rate: Axes, run: Curves, name: str, colour: str) -> None:
    history, best = run.history, run.history.best
    epochs = np.arange(1, history.epochs + 1)
    dots = "." if history.epochs <= 60 else ""
    least = history.validations[best]
    label = f"{name}: {least:.4g} in epoch {best + 1}"
    loss.plot(epochs, history.losses, color=colour, linewidth=1, linestyle=(0, (4, 2)), alpha=0.75)
    loss.plot(epochs, history.validations, color=colour, linewidth=1.7, marker=dots, label=label)
    loss.plot(best + 1, least, "o", color=colour, markersize=9, markerfacecolor="none",
              markeredgewidth=1.5, zorder=4)  # fmt: skip
    rate.plot(epochs, history.rates, color=colour, linewidth=1.5, marker=dots)


def _loss_axis(axes: Axes, runs: Sequence[Curves]) -> None:
    values = np.concatenate([(*run.history.losses, *run.history.validations) for run in runs])
    if values.min() > 0 and values.max() > LOG * values.min():
        style.set_log_axis(axes.yaxis, "{:g}".format)
    elif values.min() >= 0:
        axes.set_ylim(bottom=0)
