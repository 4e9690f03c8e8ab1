"""Waiting for messages without burning the core that another rank needs."""

from __future__ import annotations

import threading
import time
from contextlib import suppress


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

    A spinning rank would burn the core that another needs. ``wake`` ends a sleep at once. No sleep
    takes longer than ``longest`` seconds.
    """

    WAITING, WORKING = 1 / 24, 1 / 6  # while this rank has nothing else to do, and while it has
    SHORTEST = 150e-6  # a poll costs about as much where ranks share a core

    def __init__(self, longest: float = 15e-3) -> None:
        self.longest = longest
        self._since = time.perf_counter()
        self._bell = threading.Lock()  # a third of what an Event costs; released: there is work
        self._bell.acquire()

    def reset(self) -> None:
        """Poll quickly again, as something happened."""
        self._since = time.perf_counter()

    def sleep(self, working: bool = False) -> None:
        """Sleep a little, longer the longer nothing has happened."""
        waited = time.perf_counter() - self._since
        share = self.WORKING if working else self.WAITING
        self._bell.acquire(timeout=min(max(waited * share, self.SHORTEST), self.longest))

    def rest(self) -> None:
        """Sleep for long: no message is waited for, and a poll costs more than it can tell."""
        self._bell.acquire(timeout=self.longest)

    def wake(self) -> None:
        """End the sleep of the polling thread: there is work for it."""
        self._since = time.perf_counter()
        with suppress(RuntimeError):  # it was woken before
            self._bell.release()
