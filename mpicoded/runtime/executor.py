"""The one loop of every rank: events in, decisions of its Rank, actions out.

wire, engine  ->  events  ->  rank.on(event, now)  ->  actions  ->  wire, engine
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mpicoded.scheduling.events import Do, Event, Rank, Tick


class Port(Protocol):
    """Source of a rank's events and target of its actions: MPI, tensors and the clock."""

    def now(self) -> float:
        """Return the time in seconds."""

    def poll(self) -> Sequence[Event]:
        """Return the events since the last call."""

    def carry_out(self, action: Do) -> None:
        """Carry out an action of the rank."""

    def wait(self, busy: bool) -> None:
        """Sleep a little before the next poll; not at all if the rank is ``busy``."""


def serve(rank: Rank, port: Port) -> None:
    """Run until the rank is done."""
    while not rank.done:
        events = port.poll()
        for event in (*events, Tick()):
            for action in rank.on(event, port.now()):
                port.carry_out(action)
        port.wait(busy=bool(events))
