"""Style of all pictures: colours that colour-blind readers tell apart, fonts, axes, and the file.

Colours are those of Okabe and Ito; shapes differ as well. The axis of a distribution has plain
shares, or for a long tail the nines, equally far apart:

    share      0        0.9       0.99      0.999
    place      0         1          2         3        = -log10(1 - share)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from mpicoded.errors import ResultsError
from mpicoded.outputs import whole
from mpicoded.study.report.spans import Array

BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#8A8A8A"
SKY, PURPLE, INK = "#56B4E9", "#CC79A7", "#333333"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, "black")  # of lines, one after the other
SHADE, SHADE_INK = "#F7F1B0", "#6B6400"  # an injected fault, and its name
PALE = "#9CC7E3"  # answers that were one too many
HALO = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.6}  # behind words
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "hatch.linewidth": 0.6,
}
WIDTH, DPI = 9.0, 200  # inches; 1,800 pixels, sharp when shown at 900
ENOUGH = 100  # answers for a tail to mean anything
LONG = 2.5  # p99 / p50 from which on the tail is looked at


def save(path: Path, height: float, draw: Callable[[Figure], None]) -> None:
    """Draw on a figure and write it as its extension says (.png, .svg, .pdf); ResultsError."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        try:
            with whole(path) as part:
                figure.savefig(part, dpi=DPI, format=path.suffix[1:] or None)
        except ValueError as error:  # an extension that matplotlib does not know
            raise ResultsError(f"{path}: {error}") from None
        except OSError as error:
            raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None


def headline(figure: Figure, words: str) -> None:
    """Write a line over all of a picture."""
    figure.suptitle(words, x=0.01, ha="left", fontsize=9.5, color=INK)


def title(axes: Axes, words: str, explained: str) -> None:
    """Write a title over axes, and under it in small letters how to read them."""
    axes.set_title(words, pad=20)
    axes.text(0, 1.02, explained, transform=axes.transAxes, fontsize=8, color=INK)


def set_log_axis(axis: Axis, text: Callable[[float], str]) -> None:
    """Give an axis a log scale with ticks at 1, 2 and 5."""
    (axis.axes.set_xscale if isinstance(axis, XAxis) else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    axis.set_minor_formatter(NullFormatter())


def milliseconds_text(value: float) -> str:
    """Return a tick in ms: 0.5, 10, 1,000."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def three_digits(value: float) -> str:
    """Return a number with at least three digits that count, never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def has_long_tail(latency: Array) -> bool:
    """True if the distribution of ``latency`` (answers,) is worth the axis of nines."""
    if latency.size < ENOUGH:
        return False
    p50, p99 = np.percentile(latency, (50, 99))
    return bool(p99 > LONG * p50)


def share_at(share: Array, tail: bool) -> Array:
    """Return the places on the axis of shares in [0, 1)."""
    return -np.log10(1 - share) if tail else share


def set_share_axis(axis: Axis, tail: bool, answers: int) -> None:
    """Give an axis its limits and ticks; with ``tail`` up to the nines that ``answers`` allow."""
    set_limits = axis.axes.set_xlim if isinstance(axis, XAxis) else axis.axes.set_ylim
    if not tail:
        set_limits(0, 1)
        axis.set_ticks([0, 0.5, 1], ["0%", "50%", "100%"])
        return
    most = float(np.log10(max(answers, 2)))
    set_limits(0, most * 1.02)
    shares = np.array([0.5, *(1 - 0.1**n for n in range(1, int(most) + 1))])
    texts = [f"{100 * share:.10g}%" for share in shares.tolist()]
    axis.set_ticks(share_at(shares, tail).tolist(), texts)
