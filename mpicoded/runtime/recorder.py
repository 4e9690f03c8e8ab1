"""What the leader notes down in the trace, all of it in seconds since the run began."""

from __future__ import annotations

import time
from collections.abc import Iterable

from mpicoded.runtime.query import Query
from mpicoded.runtime.wire import Kind, Message
from mpicoded.scheduling.ranks import Task
from mpicoded.trace import Action, Trace


class Recorder:
    """Turns messages and actions into events; ``began`` is second 0 on ``time.perf_counter``."""

    def __init__(self, ranks: Iterable[int]) -> None:
        self.trace = Trace()
        self.began = time.perf_counter()
        self._heard = dict.fromkeys(ranks, 0.0)
        self._offset = dict.fromkeys(self._heard, 0.0)  # a worker's clock less ours

    def now(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.began

    def set_clock(self, message: Message) -> None:
        """Learn the clock of a worker on another host from a message that it has just sent."""
        self._offset[message.peer] = message.clock[0] - message.at

    def hear(self, rank: int) -> None:
        """A rank said something."""
        self._heard[rank] = self.now()

    def rank(self, action: Action, rank: int) -> None:
        """Note what befell a rank, from its last word to now."""
        self.trace.add(action, self._heard[rank], self.now(), rank=rank)

    def fault(self, action: Action, rank: int, start: float, stop: float, query: int = -1) -> None:
        """Note an injected fault; its times are on the clock of the machine that tells it."""
        offset = self.began + self._offset.get(rank, 0.0)
        self.trace.add(action, start - offset, stop - offset, rank=rank, query=query)

    def own(self, action: Action, began: float, took: float, query: Query, unit: int = -1) -> None:
        """Note what the leader itself did for a query, or for the units from ``unit`` on."""
        self.unit(action, began, took, 0, Task(query.number, query.stage, unit))

    def lost(self, query: Query) -> None:
        """Note that a query was given up."""
        self.trace.add(Action.LOST, query.posted, self.now(), query=query.number, stage=query.stage)

    def answer(self, action: Action, message: Message, task: Task, query: Query | None) -> None:
        """Note when a unit lay waiting, was computed and came; ``action`` is what became of it."""
        came, started, stopped = (t - self._offset[message.peer] for t in message.clock)
        if message.kind is Kind.ANSWER:
            self.unit(Action.QUEUE, came, started - came, message.peer, task)
            self.unit(Action.COMPUTE, started, stopped - started, message.peer, task)
        since = came if query is None else self.began + query.posted
        self.unit(action, since, message.at - since, message.peer, task, message.nbytes)

    def unit(
        self, action: Action, began: float, took: float, rank: int, task: Task, nbytes: int = 0
    ) -> None:
        """Note what happened to a unit; ``began`` is on the leader's clock."""
        start = began - self.began
        about = {**task._asdict(), "rank": rank, "nbytes": nbytes}
        self.trace.add(action, start, start + took, **about)
