"""Faults of the lab in a simulated run: nodes that become slow or go away, from query to query."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from mpicoded.faults import KINDS, Fault

if TYPE_CHECKING:
    from mpicoded.simulate.run import Simulation


class Lab:
    """Changes the speed and links of ranks, one rank a node, as ``faults`` say."""

    def __init__(self, faults: Iterable[Fault], run: Simulation) -> None:
        self._run = run
        self._to_come = [fault for fault in faults if fault.by_lab]
        self._on: list[Fault] = []  # that end with a query

    def reach(self, query: int) -> None:
        """Begin and end what is due when a query is asked."""
        for fault in [f for f in self._to_come if f.first <= query]:
            self._to_come.remove(fault)
            if query < fault.last:
                self._begin(fault)
        for fault in [f for f in self._on if f.last <= query]:
            self._on.remove(fault)
            self._end(fault)

    def _begin(self, fault: Fault) -> None:
        self._note(fault)
        if fault.kind == "reboot":
            self._run.worker(fault.rank or 0).die()  # a launcher would go on without its node
            return
        self._weigh(fault, 1)
        if fault.once:
            self._run.after(fault.seconds, partial(self._end, fault))
        else:
            self._on.append(fault)

    def _end(self, fault: Fault) -> None:
        self._weigh(fault, -1)
        self._note(fault)

    def _note(self, fault: Fault) -> None:
        now = self._run.now
        self._run.leader.injected(KINDS[fault.kind].action, fault.rank or 0, now, now)

    def _weigh(self, fault: Fault, sign: int) -> None:
        """Put a fault in force, or take it back."""
        rank, links = fault.rank or 0, self._run.links
        if fault.kind == "link":
            (links.unplug if sign > 0 else links.plug)(rank)
        elif fault.kind == "cpu":
            self._run.slower[rank] = self._run.slower.get(rank, 1.0) * fault.value**-sign
        else:
            links.slower[rank] = links.slower.get(rank, 1.0) * self._less(fault) ** sign

    def _less(self, fault: Fault) -> float:
        """Return how many times slower a link becomes."""
        if fault.kind == "loss":
            return 1 / (1 - min(fault.value, 0.99))  # lost packets are sent again
        return max(1.0, 8 * self._run.links.rate(fault.rank or 0) / fault.value)
