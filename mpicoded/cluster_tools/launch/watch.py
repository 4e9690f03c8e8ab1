"""Watch one start: until mpirun ends, or until it must be ended. The results file tells which."""

from __future__ import annotations

import time

from mpicoded.cluster_tools.launch.judge import LEFT, NOT_READY, REFUSED
from mpicoded.cluster_tools.launch.outline import Outline
from mpicoded.cluster_tools.launch.process import Start
from mpicoded.cluster_tools.launch.progress import Progress, look
from mpicoded.cluster_tools.launch.roll import Roll
from mpicoded.cluster_tools.launch.signals import Stopped
from mpicoded.cluster_tools.launch.target import Limits

LOOK = 1.0  # s between two looks at the results file
EARLY = 0.5  # s, while the ranks have not met
GONE = 3.0  # s for which a rank is not there before it counts as gone
START_GRACE = 3.0  # s beyond `start_limit`, in which the leader itself may say who did not come
MADE = 3  # changes of the file; making it is seen as one or two
DOES_NOT_END = "the run is complete, but mpirun does not end"


class View:
    """What is seen of a start while it runs: its results file, and which ranks are there.

    The file counts only once this start's leader has made or touched it, as every start does.
    Without ``here`` the leader's files may not be ours, and one that is never seen means nothing.
    """

    def __init__(self, outline: Outline, limits: Limits, here: bool, roll: Roll) -> None:
        self.outline, self.limits, self.here, self.roll = outline, limits, here, roll
        self.before = look(outline.results)
        self.now: Progress | None = None
        self.moved = time.monotonic()  # when the run last got on, or a rank was at work
        self.changes = 0  # of the file that were seen
        self.ready = False  # whether anything was answered, or computed, since the ranks met
        self.lost: tuple[str, ...] = ()  # hosts of ranks that were gone before they met

    def look(self) -> None:
        """Read the results file again."""
        found = look(self.outline.results)
        if found is None or found == (self.now or self.before):
            return
        self.changes += 1
        answered = self.now is not None and found.steps > self.now.steps
        self.ready = self.ready or answered or self.changes >= MADE
        self.moved = time.monotonic()
        self.now = found

    def fault(self, start: Start) -> str:
        """Return why mpirun must be ended; "" while all is well."""
        now = time.monotonic()
        if self.now and self.now.finished:
            late = now - max(self.moved, start.heard) > self.limits.end
            return DOES_NOT_END if late else ""
        return self._gone(start, now) or self._quiet(now)

    def _gone(self, start: Start, now: float) -> str:
        """Tell of a rank that has left a start which cannot go on, or end, without it."""
        gone, refused = self.roll.gone(now, GONE), REFUSED.search(start.text())
        if 0 in gone and (self.now or refused):
            return LEFT
        if not gone or self.now or refused or not (self.here or self.roll.whole):
            return ""
        self.lost = tuple(dict.fromkeys(map(self.roll.place, gone)))
        return f"rank {gone[0]} on {self.lost[0]} was gone before the ranks had met"

    def _quiet(self, now: float) -> str:
        """Tell of a start in which nothing happens any more."""
        quiet, outline = now - self.moved, self.outline
        if self.ready:
            limit = max(self.limits.stall, outline.end_limit) + outline.quiet
        else:
            limit = outline.start_limit + START_GRACE
        if quiet <= limit or not (self.now or self.here or self.roll.whole):
            return ""
        if self.ready:
            return f"no query was answered for {quiet:.0f} s, and no rank is at work"
        stopped = [f"; rank {p} on {self.roll.place(p)} is stopped" for p in self.roll.stopped]
        return f"{NOT_READY} after {quiet:.0f} s (start_limit){''.join(stopped[:1])}"


def watch(start: Start, view: View, limits: Limits, stopped: Stopped) -> tuple[int, str]:
    """Wait for the end of a start, or bring it about; return mpirun's status and why it was ended.

    Nothing of the start is left then.
    """
    why = ""
    with stopped.ending(start):
        while (status := start.wait(LOOK if view.now else EARLY)) is None:
            view.look()
            view.roll.call(start.pids(remember=not view.ready), time.monotonic())
            why = stopped.why or view.fault(start)
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
