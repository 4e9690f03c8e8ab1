"""Fault intervals: the injected faults of a run, each from its begin to its end."""

from dataclasses import dataclass

import numpy as np

from mpicoded.faults import KINDS
from mpicoded.results import Loaded
from mpicoded.study.report.spans import Events
from mpicoded.trace import Action

WORDS = {kind.action: kind.word for kind in KINDS.values()}
MOMENTS = [kind.action for kind in KINDS.values() if kind.moment]
NEAR = 0.5  # s by which the two events of one fault may differ in their begin


@dataclass(frozen=True)
class FaultInterval:
    """One fault of ``rank``, in seconds since the run began; ``start`` = ``stop``: a moment."""

    action: Action
    rank: int
    start: float
    stop: float

    @property
    def word(self) -> str:
        """Its name in a picture."""
        return WORDS[self.action] or self.action.name.lower()


def fault_intervals(loaded: Loaded) -> list[FaultInterval]:
    """Return the faults by their begin; one without end lasts until the next start."""
    events, found = loaded.events, list[FaultInterval]()
    for action in WORDS:
        chosen = events[events["action"] == action]
        for rank in np.unique(chosen["rank"]):
            found += _of_rank(loaded, action, int(rank), chosen[chosen["rank"] == rank])
    return sorted(found, key=lambda e: (e.start, e.rank))


def _of_rank(loaded: Loaded, action: Action, rank: int, events: Events) -> list[FaultInterval]:
    begun = [float(e["start"]) for e in events if e["start"] == e["stop"]]
    if action in MOMENTS:
        return [FaultInterval(action, rank, at, at) for at in begun]
    found = []
    for event in events[events["start"] < events["stop"]]:
        start, stop = float(event["start"]), float(event["stop"])
        its = [at for at in begun if abs(at - start) < NEAR]
        if its:
            begun.remove(its[0])
        found.append(FaultInterval(action, rank, min([start, *its[:1]]), stop))
    return found + [FaultInterval(action, rank, at, next_end(loaded, at)) for at in begun]


def last_time(loaded: Loaded) -> float:
    """Return the last second that the file knows of."""
    answered = loaded.queries["answered"]
    return max(float(np.nanmax(answered, initial=0)), float(loaded.events["stop"].max(initial=0)))


def next_end(loaded: Loaded, time: float) -> float:
    """Return the end of the start of the run that ``time`` is in."""
    last = last_time(loaded)
    starts = np.append(loaded.cluster["began"], last)
    return float(starts[starts > time].min(initial=last))
