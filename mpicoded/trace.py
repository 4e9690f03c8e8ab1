"""Trace of a run as one structured array: who did what to which unit, from when to when."""

from collections import deque
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Action(IntEnum):
    """Kinds of events. Times of a worker's events are on the leader's clock."""

    ENCODE = 1  # leader: cut the input into units and made the parity units
    SEND = 2  # leader: posted a unit to `rank`; `bytes` is the message
    QUEUE = 3  # worker: the unit lay there before its computation began
    COMPUTE = 4  # worker: ran the unit's program
    ARRIVE = 5  # leader: the answer came in time; start = posted, stop = arrived
    LATE = 6  # leader: the answer came when its stage had been decoded without it
    DECODE = 7  # leader: filled in what was missing and stitched the map
    HEAD = 8  # leader: ran the rest of the network
    SUSPECT = 9  # `rank` owes answers and has been silent for too long
    RETURN = 10  # a suspect rank spoke again
    FAIL = 11  # `rank` is dead; start = its last word, stop = when that was noticed
    RESEND = 12  # a unit was posted once more, to `rank`
    LOST = 13  # the query was given up
    EXTRA = 14  # leader: the answer (or word that it was skipped) came when all data was there
    # Injected faults, from when to when they were in force; start = stop: from then on. A fault
    # that ends has one such event when it begins and another, with both times, when it is over.
    CRASH = 15  # `rank` killed itself (SIGKILL)
    FREEZE = 16  # `rank`, or all ranks of its node, stood still (SIGSTOP)
    SLOW = 17  # `rank` computed slower
    SILENCE = 18  # `rank` did not send an answer
    DELAY = 19  # `rank` sent an answer later
    REBOOT = 20  # the node of `rank` went away with its MPI daemon, and came back
    CPU = 21  # the node of `rank` had less of its core
    RATE = 22  # the link of `rank` had another rate
    LINK = 23  # the link of `rank` was down
    LOSS = 24  # the link of `rank` lost packets
    # Which way queries take from `query` on; start = stop.
    ALONE = 25  # leader: unsplit, as the plan measured slower
    REPLAN = 26  # leader: by the plan again, or by a new one


EVENT = np.dtype(
    [
        ("rank", "i4"),
        ("query", "i8"),  # -1: not about one query
        ("stage", "i2"),
        ("unit", "i2"),
        ("action", "u1"),
        ("start", "f8"),  # seconds since the run began
        ("stop", "f8"),
        ("bytes", "i8"),
    ]
)


KEPT = 1_000_000  # events; the oldest are dropped if nobody drains the trace


class Trace:
    """The events since the last drain, at most ``KEPT``; a run drains them into its results."""

    def __init__(self) -> None:
        self._rows: deque[tuple[int, int, int, int, int, float, float, int]] = deque(maxlen=KEPT)

    def add(
        self,
        action: Action,
        start: float,
        stop: float,
        *,
        rank: int = 0,
        query: int = -1,
        stage: int = -1,
        unit: int = -1,
        nbytes: int = 0,
    ) -> None:
        """Append one event; ``start`` and ``stop`` are seconds since the run began."""
        self._rows.append((rank, query, stage, unit, int(action), start, stop, nbytes))

    def drain(self) -> npt.NDArray[np.void]:
        """Return the events since the last call, (events,) of ``EVENT``, and forget them."""
        rows = [self._rows.popleft() for _ in range(len(self._rows))]  # other threads may append
        return np.array(rows, dtype=EVENT)
