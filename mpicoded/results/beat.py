"""The heartbeat of a run: its results file is touched while ranks are at work.

An answer may take longer than the launcher waits for one; a file that is not touched either
belongs to a leader that stands still, or to ranks that wait for what will never come.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT = 1.0  # s


@contextmanager
def beating(path: Path, at_work: Callable[[], bool]) -> Iterator[None]:
    """Touch a file every second in which ``at_work`` is true."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            if at_work():
                with suppress(OSError):  # it may be renamed just now
                    os.utime(path)

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
