"""Injection of a worker's own faults into its own process, and word of it to the leader."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from mpicoded.faults import Effect, Schedule
from mpicoded.trace import Action

Tell = Callable[[Action, float, float, int], None]  # what, from when, until when, in which query


class FaultInjector:
    """Applies a Schedule to this very process, and ``tell``s the leader what and when.

    ``last_words`` returns when what was told has left, or after a moment.
    """

    def __init__(self, faults: Schedule, tell: Tell, last_words: Callable[[], None]) -> None:
        self.faults = faults
        self._tell = tell
        self._last_words = last_words
        self._frozen: set[int] = set()
        self._slow_since: float | None = None

    def before(self, query: int) -> Effect:
        """Apply the faults that strike before a unit is computed; return all effects."""
        effect = self.faults.at(query)
        now = time.perf_counter()
        if effect.crash:
            self._tell(Action.CRASH, now, now, query)
            self._last_words()
            os.kill(os.getpid(), signal.SIGKILL)
        for number, seconds in effect.freezes:
            if number not in self._frozen:
                self._frozen.add(number)
                self._freeze(seconds, query)
        self._note_slowness(effect, query, now)
        return effect

    def after(self, effect: Effect, computed: float, query: int) -> None:
        """Apply the effect on a unit that has been computed in ``computed`` seconds."""
        began = time.perf_counter()
        pause = computed * (effect.factor - 1) + effect.seconds
        if pause > 0:
            time.sleep(pause)
        if effect.seconds:
            self._tell(Action.DELAY, began, time.perf_counter(), query)
        if effect.silent:
            self._tell(Action.SILENCE, began, began, query)

    def _freeze(self, seconds: float, query: int) -> None:
        """Stop this process, all its threads; another one lets it go on after ``seconds``."""
        began = time.perf_counter()
        self._tell(Action.FREEZE, began, began, query)
        self._last_words()
        thaw = f"sleep {seconds:.3f}; kill -CONT {os.getpid()}"
        null = subprocess.DEVNULL  # mpirun waits until nobody has the rank's output open
        with subprocess.Popen(
            ["/bin/sh", "-c", thaw], stdin=null, stdout=null, stderr=null, start_new_session=True
        ):
            began = time.perf_counter()
            os.kill(os.getpid(), signal.SIGSTOP)
        self._tell(Action.FREEZE, began, time.perf_counter(), query)

    def _note_slowness(self, effect: Effect, query: int, now: float) -> None:
        if effect.factor > 1 and self._slow_since is None:
            self._slow_since = now
            self._tell(Action.SLOW, now, now, query)
        elif effect.factor <= 1 and self._slow_since is not None:
            self._tell(Action.SLOW, self._slow_since, now, query)
            self._slow_since = None
