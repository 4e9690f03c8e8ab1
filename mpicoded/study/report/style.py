"""What all pictures share: colours that colour-blind readers tell apart, fonts, and the file.

Colours are those of Okabe and Ito; shapes differ as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mpicoded.errors import ResultsError
from mpicoded.outputs import whole

BLUE, ORANGE, RED, GREEN, GREY = "#0072B2", "#E69F00", "#D55E00", "#009E73", "#8A8A8A"
SKY, PURPLE, INK = "#56B4E9", "#CC79A7", "#333333"
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


@contextmanager
def styled() -> Iterator[None]:
    """Draw in this style inside the block."""
    with matplotlib.rc_context(STYLE):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a picture; the extension (.png, .svg, .pdf) says how.

    Raises
    ------
    ResultsError
        If it cannot be written so, or there.
    """
    try:
        with whole(path) as part:
            figure.savefig(part, dpi=DPI, format=path.suffix[1:] or None)
    except ValueError as error:  # an extension that matplotlib does not know
        raise ResultsError(f"{path}: {error}") from None
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None


def milliseconds_text(value: float) -> str:
    """Return a tick in ms: 0.5, 10, 1,000."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def three_digits(value: float) -> str:
    """Return a number with at least three digits that count, never with an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
