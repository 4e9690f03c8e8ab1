"""The file of a training's curves: what every epoch was like, beside the weights it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

from mpicoded.results.layout import Variable
from mpicoded.results.record import Form, read, write
from mpicoded.study.training.checkpoint import Course

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


@dataclass(frozen=True)
class Curves:
    """A training as its file has it."""

    path: Path
    attrs: dict[str, Any]
    course: Course


def write_course(path: Path, course: Course, attrs: Mapping[str, Any]) -> None:
    """Write the curves so far; ``attrs`` (such as job, seed, weights) join the root attributes.

    Raises
    ------
    ResultsError
        If the file cannot be written.
    """
    data = {f"epochs/{name}": getattr(course, field) for field, name in FIELDS.items()}
    write(path, TRAINING, {"epoch": course.epochs}, attrs, data)


def read_course(path: Path) -> Curves:
    """Return the curves of a training.

    Raises
    ------
    ResultsError
        If it is missing, damaged or no such file.
    """
    attrs, data = read(path, TRAINING)
    values = {field: data[f"epochs/{name}"].tolist() for field, name in FIELDS.items()}
    return Curves(path, attrs, Course(**values))
