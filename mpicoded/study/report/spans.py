"""Spans: the path of every unit to a rank and back, joined from the events of the trace.

leader   |send|                                                        |arrives
worker              |came ... queue ... |started  compute  |stopped
         posted sent                                                   arrived
               '--- out ---'                               '-- back --'
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.results import Loaded
from mpicoded.trace import Action

Array = npt.NDArray[Any]
Events = npt.NDArray[np.void]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
POSTS = (Action.SEND, Action.RESEND)
FATES = (Action.ARRIVE, Action.LATE, Action.EXTRA)
TIMES = ("posted", "sent", "came", "started", "stopped", "arrived")

SPAN = np.dtype(
    [
        ("rank", "i4"),
        ("query", "i8"),
        ("stage", "i2"),
        ("unit", "i2"),
        ("again", "?"),  # posted once more
        ("fate", "u1"),  # ARRIVE, LATE, EXTRA; 0: no answer is known
        *((name, "f8") for name in TIMES),  # seconds since the run began; NaN: not known
        ("bytes_out", "i8"),
        ("bytes_back", "i8"),
    ]
)


def spans(events: Events) -> Events:
    """Return a row of ``SPAN`` for every post of a unit; an answer is of the last before it."""
    posts = events[np.isin(events["action"], POSTS) & (events["query"] >= 0)]
    posts = posts[np.lexsort((posts["start"], keys(posts)))]
    found = np.zeros(len(posts), SPAN)
    for name in ("rank", "query", "stage", "unit"):
        found[name] = posts[name]
    for name in TIMES:
        found[name] = np.nan
    found["again"] = posts["action"] == Action.RESEND
    found["posted"], found["sent"] = posts["start"], posts["stop"]
    found["bytes_out"] = posts["bytes"]
    if len(posts):
        rows, own = _matched(posts, events[events["action"] == Action.QUEUE])
        found["came"][rows], found["started"][rows] = own["start"], own["stop"]
        rows, own = _matched(posts, events[events["action"] == Action.COMPUTE])
        found["started"][rows], found["stopped"][rows] = own["start"], own["stop"]
        rows, own = _matched(posts, events[np.isin(events["action"], FATES)])
        found["arrived"][rows], found["fate"][rows] = own["stop"], own["action"]
        found["bytes_back"][rows] = own["bytes"]
    return found[np.lexsort((found["posted"], found["query"]))]


def keys(events: Events) -> Array:
    """Return one number a (query, stage, unit, rank), (events,) int64, to match events by."""
    parts = (events[name].astype(np.int64) for name in ("query", "stage", "unit", "rank"))
    query, stage, unit, rank = parts
    return ((query * 1024 + stage) * 4096 + unit) * 65536 + rank


def _matched(posts: Events, events: Events) -> tuple[Array, Events]:
    """Return rows of ``posts`` (sorted by key and time) and the events that belong to them."""
    known, theirs = keys(posts), keys(events)
    events, theirs = events[np.isin(theirs, known)], theirs[np.isin(theirs, known)]
    number = np.unique(known, return_inverse=True)[1]  # small: leaves digits for the time
    theirs = np.searchsorted(np.unique(known), theirs)
    span = 1 + max(posts["start"].max(initial=0), events["stop"].max(initial=0))
    at = np.searchsorted(number + posts["start"] / span, theirs + events["stop"] / span, "right")
    rows = np.maximum(at - 1, np.searchsorted(number, theirs))  # clocks may differ a little
    return rows, events


def lanes(times: Iterable[tuple[float, float]]) -> list[int]:
    """Return a lane for each (start, stop), by rising starts, so that none overlap in theirs."""
    busy, free, found = list[tuple[float, int]](), list[int](), list[int]()
    for start, stop in times:  # busy: (until, lane); free: lanes given back
        while busy and busy[0][0] <= start:
            heappush(free, heappop(busy)[1])
        found.append(heappop(free) if free else len(busy))
        heappush(busy, (stop, found[-1]))
    return found


def first_seen(loaded: Loaded) -> Array:
    """Return when the leader began to work on each query, (queries,), NaN where it has not."""
    found = np.full(loaded.layout.queries, np.nan)
    own = loaded.events[np.isin(loaded.events["action"], (Action.ENCODE, Action.HEAD))]
    own = own[own["query"] >= 0]
    np.fmin.at(found, own["query"], own["start"])
    return found
