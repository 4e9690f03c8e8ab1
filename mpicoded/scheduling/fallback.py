"""The plan or one device: whichever has measured faster. No MPI, no clock.

    seconds of a query by the plan = time with queries in flight / queries that ended

That is the latency where they come one by one, and the period where several are in flight, so that
it compares with the seconds of rank 0 alone. Before the plan is given up one query runs unsplit, as
rank 0 may have become slower too.
"""

from __future__ import annotations

from dataclasses import dataclass

MARGIN = 1.1  # times the seconds of one device: from there on the plan is slower
FIRST, BLOCK = 4, 12  # queries by the plan that are not measured, and that are then
AGAIN = 30.0  # s until the plan is tried anew; each time twice as long


@dataclass
class Fallback:
    """``seconds`` is what a query takes rank 0 alone, ``took`` what it last took by the plan.

    While ``alone`` queries run unsplit, ``until`` the plan is tried anew.
    """

    seconds: float
    alone: bool = False
    took: float = 0.0
    until: float = 0.0
    _wait: float = AGAIN
    _trial: bool = False  # one query is to run unsplit, for the comparison
    _ended: int = 0  # queries by the plan
    _open: int = 0
    _since: float = 0.0  # when the first of the open ones began
    _busy: float = 0.0  # s with open queries, before that
    _began: float = 0.0  # of that, what was before the first one that is measured

    def admit(self, now: float) -> bool:
        """Note that a query begins; return True if it is to run unsplit."""
        if not self._open:
            self._since = now
        self._open += 1
        if self.alone and now >= self.until:
            self.restart()
        trial, self._trial = self._trial, False
        return self.alone or trial

    def end(self, now: float, unsplit: bool) -> None:
        """Note that a query ended."""
        self._open -= 1
        busy = self._busy + now - self._since
        if not self._open:
            self._busy = busy
        if unsplit or self.alone:
            return
        self._ended += 1
        if self._ended == FIRST:
            self._began = busy
        elif self._ended == FIRST + BLOCK:
            self.took = (busy - self._began) / BLOCK
            self._trial = self.took > MARGIN * self.seconds
            self._ended, self._began = FIRST, busy

    def ran(self, seconds: float, now: float) -> bool:
        """Learn what a query took rank 0 alone; return True if the plan is given up for that."""
        self.seconds = seconds
        if self.alone or self.took <= MARGIN * seconds:
            return False
        self.alone, self.until, self._wait = True, now + self._wait, 2 * self._wait
        return True

    def restart(self) -> None:
        """Measure the plan, or another one, from its first query on."""
        self.alone, self._trial, self._ended, self.took = False, False, 0, 0.0
