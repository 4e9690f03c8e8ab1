"""Ctrl-C and SIGTERM: the running start is ended in good order, and no other one begins."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from mpicoded.cluster_tools.launch.process import Start

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Stopped:
    """``number`` is the signal that came, 0 for none; ``start`` is what it ends."""

    number: int = 0
    start: Start | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Pass the wish to end on to mpirun, which tells the ranks."""
        self.number = number
        if self.start is not None:
            self.start.terminate()

    @contextmanager
    def ending(self, start: Start) -> Iterator[None]:
        """Let a signal end this start, also one that has just come."""
        self.start = start
        if self.number:
            start.terminate()
        try:
            yield
        finally:
            self.start = None

    @property
    def why(self) -> str:
        """What is said of a start that was ended so."""
        return f"{signal.Signals(self.number).name} came" if self.number else ""

    @property
    def status(self) -> int:
        """The exit status of a program that ended because of this signal."""
        return 128 + self.number


@contextmanager
def stopping() -> Iterator[Stopped]:
    """Take the signals over; elsewhere than in the main thread they stay with their owner."""
    stopped = Stopped()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.signal(number, stopped.handle) for number in SIGNALS}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
