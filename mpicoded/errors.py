"""Errors, in the few kinds that a user can tell apart."""

from collections.abc import Iterable
from difflib import get_close_matches


class MpicodedError(Exception):
    """Something its reader can mend: the message names the thing, both numbers and the way out."""


class JobError(MpicodedError):
    """The job file, or a value in it, is not usable."""


class DataError(MpicodedError):
    """An input, a data set or a weights file is missing or does not fit."""


class ModelError(MpicodedError):
    """A network cannot be cut in the way that was asked for."""


class PlanError(MpicodedError):
    """Plan, code and cluster do not fit one another."""


class ResultsError(MpicodedError):
    """A results file cannot be written, read or resumed."""


class OutputError(ResultsError):
    """A file cannot be written under its name: that is a link, or another process is at it."""


class LabError(MpicodedError):
    """The lab cannot be built here, is not there, or cannot do what was asked."""


class RemoteError(Exception):
    """A worker raised an exception; the message holds its rank, host and traceback (status 1)."""


SHOWN = 80  # characters of a value in an error


def short(value: object) -> str:
    """Return the repr of a value, the end left out if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def near(word: str, known: Iterable[str]) -> str:
    """Return a hint at the name of ``known`` that ``word`` may have meant, or nothing."""
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Say that ``name`` is none of ``known``, and which is the nearest."""
    known = list(known)
    return f"{short(name)} is not one of {', '.join(known)}{near(name, known)}"
