"""Plans one after the other in a run: their stages are numbered on, so that no task is of two."""

from __future__ import annotations

from bisect import bisect_right
from typing import Generic, TypeVar

T = TypeVar("T")


class ByStage(Generic[T]):
    """What belongs to each plan, found by the number of a stage of it."""

    def __init__(self, first: T) -> None:
        self._starts, self._things = [0], [first]

    def add(self, start: int, thing: T) -> None:
        """Add the next plan's, whose first stage has this number."""
        self._things.append(thing)
        self._starts.append(start)  # last: another thread may look meanwhile

    def of(self, stage: int) -> tuple[T, int]:
        """Return what belongs to the plan of a stage, and the stage's number in that plan."""
        i = bisect_right(self._starts, stage) - 1
        return self._things[i], stage - self._starts[i]
