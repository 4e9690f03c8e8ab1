"""The history of a training, epoch by epoch, and its file beside the weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import nan
from pathlib import Path
from typing import Any

from mpicoded.results.layout import Variable
from mpicoded.results.record import Form, read, write

EPOCH = ("epoch",)
TRAINING = Form(
    "mpicoded training 1",
    (
        Variable("epochs/loss", EPOCH, "f8", nan, "1", "mean loss on the training images"),
        Variable("epochs/validation", EPOCH, "f8", nan, "1", "loss on the validation images"),
        Variable("epochs/rate", EPOCH, "f8", nan, "1", "learning rate at the end of the epoch"),
        Variable("epochs/seconds", EPOCH, "f8", nan, "s", "time that the epoch took"),
    ),
)
FIELDS = {"losses": "loss", "validations": "validation", "rates": "rate", "seconds": "seconds"}


@dataclass
class History:
    """Losses, learning rate and seconds of every epoch; equal histories may differ in seconds."""

    losses: list[float] = field(default_factory=list)
    validations: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, compare=False)

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.losses)

    @property
    def best(self) -> int:
        """The epoch with the least validation loss, counted from 0."""
        return min(range(self.epochs), key=self.validations.__getitem__)

    def stale(self, patience: int | None) -> bool:
        """True if the last ``patience`` epochs brought no better validation; None: never."""
        return patience is not None and self.epochs > 0 and self.epochs - 1 - self.best >= patience


@dataclass(frozen=True)
class Curves:
    """The file of a training: its path, root attributes and history."""

    path: Path
    attrs: dict[str, Any]
    history: History


def write_history(path: Path, history: History, attrs: Mapping[str, Any]) -> None:
    """Write the curves so far; ``attrs`` join the root attributes; ResultsError."""
    data = {f"epochs/{name}": getattr(history, field) for field, name in FIELDS.items()}
    write(path, TRAINING, {"epoch": history.epochs}, attrs, data)


def read_history(path: Path) -> Curves:
    """Read the curves of a training; ResultsError if it is missing, damaged or no such file."""
    attrs, data = read(path, TRAINING)
    values = {field: data[f"epochs/{name}"].tolist() for field, name in FIELDS.items()}
    return Curves(path, attrs, History(**values))
