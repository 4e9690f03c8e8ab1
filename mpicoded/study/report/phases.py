"""Phases: the latency of every query, cut along its critical path without a gap.

The critical unit of a stage is the last to arrive of those that it was decoded from. Its span and
the leader's own work lead from submission to answer:

    submitted |admit| encode |gap| send | out | queue | compute | back |gap| decode |gap| head |

In a gap the leader was ``busy`` with other queries or ``idle`` (a thread woke up); after the last
arrival of a stage that lacks data units it is ``wait``, for them until the deadline.
"""

import numpy as np

from mpicoded.results import Loaded
from mpicoded.study.report.labels import labels
from mpicoded.study.report.spans import FATES, Array, Bools, Floats, Ints
from mpicoded.trace import Action

PHASES = {
    "admit": "before it: no place yet",
    "encode": "encode",
    "send": "send (leader)",
    "out": "wire out",
    "queue": "queue at the worker",
    "compute": "compute",
    "back": "wire back",
    "wait": "wait for what is missing",
    "busy": "leader busy with others",
    "idle": "leader idle",
    "decode": "decode",
    "head": "head",
}
ORDER = {name: number for number, name in enumerate(PHASES)}
OWN = (Action.ENCODE, Action.SEND, Action.RESEND, Action.DECODE, Action.HEAD)
ENDS = {"out": "came", "queue": "started", "compute": "stopped", "back": "arrived"}  # until when


class CriticalPath:
    """The critical path of every query; times are (queries, stages), NaN where not known."""

    def __init__(self, loaded: Loaded, units: Array) -> None:
        self.loaded = loaded
        self.shape = (loaded.layout.queries, loaded.layout.stages)
        self.units = units  # their spans
        self.encode = self._own(Action.ENCODE)
        self.decode = self._own(Action.DECODE)
        self.head = self._own(Action.HEAD)
        self.first = np.full(self.shape, np.nan)
        np.fmin.at(self.first, self._places(units), units["posted"])
        self.last = self._critical_rows()
        self._busy = _Busy(loaded.events)

    def _places(self, rows: Array) -> tuple[Array, Array]:
        return rows["query"], rows["stage"]

    def _own(self, action: Action) -> tuple[Floats, Floats]:
        """Return start and stop of the last such action for each stage; a head belongs to one."""
        begin, end = np.full(self.shape, np.nan), np.full(self.shape, np.nan)
        events = self.loaded.events
        mine = (events["action"] == action) & (events["query"] >= 0)
        mine &= events["unit"] < 0  # parity units are encoded while others are on their way
        events = np.sort(events[mine], order="start")
        place = self._places(events)
        begin[place], end[place] = events["start"], events["stop"]
        return begin, end

    def _critical_rows(self) -> Array:
        """Return the row of ``units`` whose arrival ended the stage, -1 for none."""
        rows = np.full(self.shape, -1)
        units, used = self.units, self.loaded.queries["arrived"].astype(bool)
        came = np.isin(units["fate"], FATES) & used[units["query"], units["stage"], units["unit"]]
        came &= units["arrived"] <= self.decode[0][self._places(units)]
        chosen = np.flatnonzero(came)
        chosen = chosen[np.argsort(units["arrived"][chosen], kind="stable")]
        rows[self._places(units[chosen])] = chosen  # the last one stays
        return rows

    def critical(self, name: str) -> Ints:
        """Return a column of the critical spans, (queries, stages), -1 for none."""
        return self._column(name, -1).astype(np.int64)

    def _column(self, name: str, none: float = np.nan) -> Floats:
        found = np.full(self.shape, none)
        known = self.last >= 0
        found[known] = self.units[name][self.last[known]]
        return found

    def phases(self) -> Floats:
        """Return (queries, stages, phases) in seconds."""
        found = np.zeros((*self.shape, len(PHASES)))
        now = self.loaded.queries["submitted"].copy()  # (queries,)
        end = self.loaded.queries["answered"]
        missing = ~self.loaded.queries["arrived"].astype(bool)
        its = labels(self.loaded)
        data = its.k if its.r and its.k else missing.shape[2]
        if (sizes := self.loaded.plan.get("bytes_out")) is not None and sizes.any():
            missing &= sizes > 0  # a stage may have fewer units than others
        for stage in range(self.shape[1]):
            late = np.asarray(missing[:, stage, :data].any(1), bool)
            for phase, until in self._steps(stage):
                then = np.clip(np.where(np.isnan(until), now, until), now, end)
                self._spend(found[:, stage], phase, now, then, late)
                now = then
        self._spend(found[:, -1], "gap", now, end, np.zeros(len(end), bool))
        return found

    def _steps(self, s: int) -> list[tuple[str, Floats]]:
        """Return the phases of a stage in their order, each with the time at which it ended."""
        posted, again = self._column("posted")[:, s], self.critical("again")[:, s] > 0
        steps = [("admit" if s == 0 else "gap", self.encode[0][:, s])]
        steps += [("encode", self.encode[1][:, s]), ("gap", self.first[:, s])]
        steps += [("wait", np.where(again, posted, np.nan)), ("send", self._column("sent")[:, s])]
        steps += [(phase, self._column(name)[:, s]) for phase, name in ENDS.items()]
        steps += [("late", self.decode[0][:, s]), ("decode", self.decode[1][:, s])]
        return [*steps, ("gap", self.head[0][:, s]), ("head", self.head[1][:, s])]

    def _spend(self, found: Floats, phase: str, now: Floats, then: Floats, late: Bools) -> None:
        """Add what passed to a phase; of a gap, the part in which the leader did other work."""
        took = np.nan_to_num(then - now)
        if phase in ORDER:
            found[:, ORDER[phase]] += took
            return
        other = np.minimum(np.nan_to_num(self._busy(then) - self._busy(now)), took)
        waits = late if phase == "late" else np.zeros(len(took), bool)
        found[:, ORDER["wait"]] += np.where(waits, took, 0)
        found[:, ORDER["busy"]] += np.where(waits, 0, other)
        found[:, ORDER["idle"]] += np.where(waits, 0, took - other)


class _Busy:
    """Seconds that the leader had worked, in any thread, until a time: piecewise linear."""

    def __init__(self, events: Array) -> None:
        own = np.sort(events[np.isin(events["action"], OWN)], order="start")
        if not len(own):
            self.times, self.worked = np.zeros(1), np.zeros(1)
            return
        stop = np.maximum.accumulate(own["stop"])
        start = np.maximum(own["start"], np.r_[-np.inf, stop[:-1]])
        took = np.maximum(stop - start, 0)
        self.times = np.c_[np.minimum(start, stop), stop].ravel()
        self.worked = np.c_[np.cumsum(took) - took, np.cumsum(took)].ravel()

    def __call__(self, time: Floats) -> Floats:
        return np.interp(time, self.times, self.worked)
