"""Load of an open loop: what was offered, what came of it, and how busy the ranks were."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpicoded.answer import Mode
from mpicoded.classes import agree
from mpicoded.results import Loaded
from mpicoded.study.report.spans import Array, Bools
from mpicoded.trace import Action

ANSWERED = (Mode.AVAILABLE, Mode.DEGRADED)


@dataclass(frozen=True)
class Load:
    """Queries a second, and shares of the time from the first query to the last answer.

    ``right`` is ``answered`` times the share of right classes, NaN without labels. ``busy`` is the
    share in which each rank computed; of the leader, in which it did anything for a query.
    """

    schedule: str
    offered: float
    answered: float
    right: float
    busy: tuple[float, ...]


def load(loaded: Loaded) -> Load | None:
    """Return the load of an open loop; None of a closed one."""
    if "arrivals" not in loaded.attrs:
        return None
    mode = loaded.queries["mode"]
    over, done = mode != Mode.PENDING, np.isin(mode, ANSWERED)
    answered, time = rate(loaded, done, over), span(loaded, over) or np.nan
    asked = [submitted for submitted, _ in _starts(loaded, over)]
    gaps = sum(len(each) - 1 for each in asked)
    return Load(
        schedule=_schedule(loaded.attrs),
        offered=gaps / (sum(map(np.ptp, asked)) or np.nan),
        answered=answered,
        right=answered * _right(loaded),
        busy=tuple(float(seconds / time) for seconds in _worked(loaded)),
    )


def rate(loaded: Loaded, done: Bools, among: Bools) -> float:
    """Return how many were ``done`` a second, in the time of all ``among`` which they are."""
    return float(done.sum() / (span(loaded, among) or np.nan))


def span(loaded: Loaded, chosen: Bools) -> float:
    """Return the seconds from the first submission to the last answer, summed over the starts."""
    return sum(float(np.ptp([a.min(), b.max()])) for a, b in _starts(loaded, chosen))


def _starts(loaded: Loaded, chosen: Bools) -> Iterator[tuple[Array, Array]]:
    """Yield when the ``chosen`` queries of each start were submitted, and answered."""
    submitted, answered = loaded.queries["submitted"][chosen], loaded.queries["answered"][chosen]
    start = np.searchsorted(loaded.cluster["began"], submitted, side="right")
    for number in np.unique(start):
        yield submitted[start == number], answered[start == number]


def _schedule(attrs: dict[str, Any]) -> str:
    """Name the schedule and its limits in a few words."""
    rate = f", rate {attrs['rate']}" if "rate" in attrs else ""
    queue = f"queue {attrs['queue']}" if "queue" in attrs else "no limit of the queue"
    return f"{Path(str(attrs['arrivals'])).name}{rate}, {queue}"


def _right(loaded: Loaded) -> float:
    """Return the share of answers that are right, NaN of nothing."""
    if not (loaded.layout.scores and "label" in loaded.labels):
        return np.nan
    label = loaded.labels["label"]
    known = np.isin(loaded.predictions["mode"], ANSWERED) & (label >= 0)
    right = agree(loaded.predictions["class"], label)[known]
    return float(right.mean()) if right.size else np.nan


def _worked(loaded: Loaded) -> Iterator[float]:
    """Yield for how many seconds each rank worked."""
    yield float(np.nansum(loaded.queries["own"]))
    computed = loaded.events[loaded.events["action"] == Action.COMPUTE]
    for rank in range(1, loaded.cluster["host"].shape[1]):
        own = computed[computed["rank"] == rank]
        yield float((own["stop"] - own["start"]).sum())
