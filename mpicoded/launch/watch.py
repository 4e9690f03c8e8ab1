"""Watch one start: until mpirun ends, or until it must be ended. The results file tells which."""

from __future__ import annotations

import time

from mpicoded.launch.outline import Outline
from mpicoded.launch.process import Start
from mpicoded.launch.progress import Progress, look
from mpicoded.launch.signals import Stopped
from mpicoded.launch.target import Limits

LOOK = 1.0  # s between two looks at the results file
DOES_NOT_END = "the run is complete, but mpirun does not end"


class View:
    """What the results file tells of a start while it runs.

    The file counts only once this start's leader has made it anew, as every start does. Without
    ``here`` the leader's files may not be ours, and one that is never seen means nothing.
    """

    def __init__(self, outline: Outline, limits: Limits, here: bool) -> None:
        self.outline, self.limits, self.here = outline, limits, here
        self.before = look(outline.results)
        self.now: Progress | None = None
        self.moved = time.monotonic()  # when the run last got on

    def look(self) -> bool:
        """Read the results file again; return whether this start has one now for the first time."""
        found = look(self.outline.results)
        if found is None or (self.now is None and found == self.before):
            return False
        first = self.now is None
        if self.now is None or found.steps > self.now.steps or found.finished > self.now.finished:
            self.moved = time.monotonic()
        self.now = found
        return first

    def fault(self, heard: float) -> str:
        """Return why mpirun must be ended; "" while all is well. ``heard``: its last output."""
        if self.now and self.now.finished:
            late = time.monotonic() - max(self.moved, heard) > self.limits.end
            return DOES_NOT_END if late else ""
        quiet = time.monotonic() - self.moved
        begun = 0.0 if self.now else self.outline.start_limit
        if (self.now or self.here) and quiet > self.limits.stall + self.outline.flush + begun:
            return f"no query was answered for {quiet:.0f} s"
        return ""


def watch(start: Start, view: View, limits: Limits, stopped: Stopped) -> tuple[int, str]:
    """Wait for the end of a start, or bring it about; return mpirun's status and why it was ended.

    Nothing of the start is left then.
    """
    why = ""
    with stopped.ending(start):
        while (status := start.wait(LOOK)) is None:
            if view.look():
                start.remember()
            why = stopped.why or view.fault(start.heard)
            if why:
                status = start.end(limits.kill)
                break
    start.clean()
    view.look()
    return status, why


def wait(start: Start, limits: Limits, stopped: Stopped) -> int:
    """Wait for the end of a program of which nothing is known; return its status."""
    with stopped.ending(start):
        while (status := start.wait(LOOK)) is None:
            if stopped.number:
                status = start.end(limits.kill)
                break
    start.clean()
    return status
