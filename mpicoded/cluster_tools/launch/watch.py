"""Watch one start by its ranks and results file, until mpirun ends or must be ended."""

import socket
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from mpicoded.cluster_tools.launch.job_header import JobHeader
from mpicoded.cluster_tools.launch.machines import Limits
from mpicoded.cluster_tools.launch.nodes import names_of_this_machine
from mpicoded.cluster_tools.launch.process import Start, Stopped
from mpicoded.cluster_tools.launch.progress import Progress, look
from mpicoded.cluster_tools.launch.restart import LEFT, NOT_READY, REFUSED
from mpicoded.processes import fields, rank, read

DAEMON = b"prted\n"  # Open MPI's, one on every other host
LOOK = 1.0  # s between two looks at the results file
EARLY = 0.5  # s, while the ranks have not met
GONE = 3.0  # s for which a rank is not there before it counts as gone
START_GRACE = 3.0  # s beyond `start_limit`, in which the leader itself may say who did not come
MADE = 3  # changes of the file; making it is seen as one or two
DOES_NOT_END = "the run is complete, but mpirun does not end"


@dataclass
class Roll:
    """The living ranks of a start; ``places`` is the host of each, () if unknown, of ``hosts``.

    ``whole``: all ranks are on this machine, under whatever names. Ranks of other machines are not
    seen here, and nothing is concluded from that.
    """

    ranks: int
    places: Sequence[str] = ()
    hosts: int = 0
    whole: bool = True
    began: float | None = None  # when a rank was seen for the first time
    last: dict[int, float] = field(default_factory=dict)  # when each was seen last
    stopped: Sequence[int] = ()  # by SIGSTOP, when they were seen last

    def call(self, pids: Collection[int], now: float) -> None:
        """Note which ranks are among the living processes of the start."""
        ranks = {pid: number for pid in pids if (number := rank(pid)) is not None}
        alive = set(ranks.values())
        self.stopped = sorted(r for pid, r in ranks.items() if fields(pid)[:1] == ["T"])
        if alive and self.began is None:
            self.began = now
        daemons = sum(read(pid, "comm") == DAEMON for pid in pids)
        self.whole = self.whole or daemons >= self.hosts - 1 > 0
        self.last |= dict.fromkeys(alive, now)

    def gone(self, now: float, grace: float) -> list[int]:
        """Return the ranks that should be here and were not for ``grace`` seconds."""
        if self.began is None:
            return []
        ours = names_of_this_machine()
        known = {rank for rank, host in enumerate(self.places) if host in ours} | self.last.keys()
        known |= set(range(self.ranks)) if self.whole else set()
        return sorted(p for p in known if now - self.last.get(p, self.began) > grace)

    def place(self, rank: int) -> str:
        """Return the host of a rank as far as it is known."""
        return self.places[rank] if self.places else socket.gethostname()


class View:
    """A start while it runs, seen from outside: its results file, and which ranks are there.

    The file counts only once this start's leader has made or touched it, as every start does.
    Unless ``local``, the leader's files may not be ours, and one that is never seen means nothing.
    """

    def __init__(self, header: JobHeader, limits: Limits, local: bool, roll: Roll) -> None:
        self.header, self.limits, self.local, self.roll = header, limits, local, roll
        self.before = look(header.results)
        self.now: Progress | None = None
        self.moved = time.monotonic()  # when the run last got on, or a rank was at work
        self.changes = 0  # of the file that were seen
        self.ready = False  # true once a query was answered, or computed, since the ranks met
        self.lost: tuple[str, ...] = ()  # hosts of ranks that were gone before they met

    def look(self) -> None:
        """Read the results file again."""
        found = look(self.header.results)
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
        """Return why a start cannot go on, or end, without a rank that is gone; "" if it can."""
        gone, refused = self.roll.gone(now, GONE), REFUSED.search(start.text())
        if 0 in gone and (self.now or refused):
            return LEFT
        if not gone or self.now or refused or not (self.local or self.roll.whole):
            return ""
        self.lost = tuple(dict.fromkeys(map(self.roll.place, gone)))
        return f"rank {gone[0]} on {self.lost[0]} was gone before the ranks had met"

    def _quiet(self, now: float) -> str:
        """Return for how long nothing has happened, in words; "" while that is in order."""
        quiet, header = now - self.moved, self.header
        if self.ready:
            limit = max(self.limits.stall, header.end_limit) + header.quiet
        else:
            limit = header.start_limit + START_GRACE
        if quiet <= limit or not (self.now or self.local or self.roll.whole):
            return ""
        if self.ready:
            return f"no query was answered for {quiet:.0f} s, and no rank is at work"
        stopped = [f"; rank {p} on {self.roll.place(p)} is stopped" for p in self.roll.stopped]
        return f"{NOT_READY} after {quiet:.0f} s (start_limit){''.join(stopped[:1])}"


def watch(start: Start, view: View | None, limits: Limits, stopped: Stopped) -> tuple[int, str]:
    """Wait for the end of a start, or bring it about; return its status and why it was ended."""
    why = ""
    with stopped.ending(start):
        while (status := start.wait(EARLY if view and not view.now else LOOK)) is None:
            why = stopped.why
            if view:
                view.look()
                view.roll.call(start.pids(remember=not view.ready), time.monotonic())
                why = why or view.fault(start)
            if why:
                status = start.end(limits.kill)
                break
    start.clean()
    if view:
        view.look()
    return status, why
