"""Waiting for messages without burning the core that another rank needs."""

from __future__ import annotations

import threading
import time


class Stopwatch:
    """Seconds of waiting; when the whole job stood still for long, that counts as a short time."""

    LONGEST = 1.0  # s between two looks

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin at 0 again."""
        self._sum, self._looked = 0.0, time.perf_counter()

    def seconds(self) -> float:
        """Return the seconds so far; look more often than once in ``LONGEST``."""
        before, self._looked = self._looked, time.perf_counter()
        self._sum += min(self._looked - before, self.LONGEST)
        return self._sum


class Backoff:
    """Sleep between two polls: a part of the time already waited, so that it costs little of it.

    A spinning rank would burn the core that another needs. ``wake`` ends a sleep at once.
    """

    WAITING, WORKING = 1 / 24, 1 / 6  # while this rank has nothing else to do, and while it has
    SHORTEST, LONGEST = 150e-6, 15e-3

    def __init__(self) -> None:
        self.event = threading.Event()
        self._since = time.perf_counter()

    def reset(self) -> None:
        """Poll quickly again, as something happened."""
        self._since = time.perf_counter()

    def sleep(self, working: bool = False) -> None:
        """Sleep a little, longer the longer nothing has happened."""
        waited = time.perf_counter() - self._since
        share = self.WORKING if working else self.WAITING
        self.event.wait(min(max(waited * share, self.SHORTEST), self.LONGEST))
        self.event.clear()

    def rest(self) -> None:
        """Sleep for long: no message is waited for, and a poll costs more than it can tell."""
        self.event.wait(self.LONGEST)
        self.event.clear()

    def wake(self) -> None:
        """End the sleep of the polling thread: there is work for it."""
        self._since = time.perf_counter()
        self.event.set()
