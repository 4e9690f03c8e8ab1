"""Arrivals: the scheduled second of every query of an open loop, drawn from the job's seed.

Latency counts from these seconds: a query that had to wait is late, also if nobody could ask it.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from mpicoded.errors import JobError, near, short
from mpicoded.paths import check_regular, read_text

Seconds = npt.NDArray[np.float64]  # (queries,), rising

CLOSED, POISSON, CONSTANT = NAMES = ("closed", "poisson", "constant")
STREAM = 0xA11  # of the generator: faults are drawn from the same seed
MOST = 1 << 28  # bytes of a file


def schedule(kind: str, rate: float | None, queries: int, seed: int, file: Path) -> Seconds:
    """Return the seconds at which ``queries`` are asked, from the first moment of the run on.

    ``rate`` is in queries a second; ``file`` is read where ``kind`` is none of the names. Raises
    JobError if the file cannot be read, has fewer seconds than queries, or they do not rise.
    """
    if rate is None:
        return _checked(_read(file, kind, queries), queries, file)
    if kind == CONSTANT:
        return np.arange(queries) / rate
    gaps = np.random.default_rng((seed, STREAM)).exponential(1 / rate, queries)
    return np.cumsum(gaps)


def _read(path: Path, name: str, queries: int) -> Seconds:
    """Return the first ``queries`` seconds of a file; JobError if it has something else."""
    try:
        if check_regular(path) > MOST:
            raise JobError(f"{path}: has more than the {MOST:,} bytes that are read; shorten it")
        if path.suffix == ".npy":
            return _array(path, queries)
        lines = read_text(path, MOST).rstrip("\n").split("\n", queries)[:queries]
    except FileNotFoundError:
        raise JobError(
            f"[input] arrivals = {short(name)}: there is no such file{near(name, NAMES)}; name "
            f"one, or one of {', '.join(NAMES)}"
        ) from None
    except OSError as error:
        raise JobError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise JobError(f"{path}: is not text in UTF-8; give a second a line, or .npy") from None
    return np.array([_second(path, number, line) for number, line in enumerate(lines, 1)])


def _second(path: Path, number: int, line: str) -> float:
    try:
        return float(line)
    except ValueError:
        raise JobError(f"{path}: line {number} is {short(line)}: should be a second") from None


def _array(path: Path, queries: int) -> Seconds:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # never a pickle
    except Exception as error:  # numpy raises many kinds
        raise JobError(f"{path}: is not a whole .npy array of numbers ({error})") from None
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise JobError(
            f"{path}: has shape {array.shape} of {array.dtype}: give one number a query, (N,)"
        )
    return np.array(array[:queries], np.float64)


def _checked(seconds: Seconds, queries: int, path: Path) -> Seconds:
    if len(seconds) < queries:
        raise JobError(
            f"{path}: has {len(seconds)} seconds, and {queries} queries are asked: add some, or "
            "lower limit or repeat in [input]"
        )
    wrong = np.flatnonzero(~np.isfinite(seconds) | (seconds < 0))
    if len(wrong):
        raise JobError(
            f"{path}: line {wrong[0] + 1} is {seconds[wrong[0]]:g}: give finite seconds from 0 on"
        )
    falls = np.flatnonzero(np.diff(seconds) < 0)
    if len(falls):
        before, after = seconds[falls[0]], seconds[falls[0] + 1]
        raise JobError(
            f"{path}: line {falls[0] + 2} is {after:g}, before {before:g} above it: sort the lines"
        )
    return seconds
