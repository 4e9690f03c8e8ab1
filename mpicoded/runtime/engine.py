"""The compute thread: one job after another, while messages move on another thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Job = Callable[[], Any]


class Done(NamedTuple):
    """A job's result; ``start`` and ``stop`` are on ``time.perf_counter``."""

    key: Any
    result: Any
    start: float
    stop: float
    error: Exception | None = None


class Engine:
    """Runs jobs in the order in which they were submitted; ``wake`` is called after each."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.busy = False
        self._wake = wake
        self._jobs: queue.SimpleQueue[tuple[Any, Job, bool] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._compute, name="compute", daemon=True)
        self._thread.start()

    def submit(self, key: Any, job: Job, wake: bool = True) -> None:
        """Queue a job; :meth:`poll` gives its result with ``key``.

        Without ``wake`` nobody is in a hurry for it: another job follows at once.
        """
        self._jobs.put((key, job, wake))

    def tell(self, key: Any) -> None:
        """Let :meth:`poll` give ``key`` before the job is done that runs now and says so."""
        now = time.perf_counter()
        self._done.put(Done(key, None, now, now))
        self._wake()

    def poll(self) -> list[Done]:
        """Return the jobs that were done since the last call."""
        return [self._done.get() for _ in range(self._done.qsize())]

    def close(self) -> None:
        """Wait until all jobs are done."""
        self._jobs.put(None)
        self._thread.join()

    @torch.inference_mode()
    def _compute(self) -> None:
        # OpenMP keeps the number of threads for each thread that asks: this one's is all cores yet
        torch.set_num_threads(torch.get_num_threads())
        while (job := self._jobs.get()) is not None:
            self.busy = True
            self._done.put(self._run(*job[:2]))
            self.busy = False
            if job[2]:
                self._wake()

    def _run(self, key: Any, job: Job) -> Done:
        start, result, error = time.perf_counter(), None, None
        try:
            result = job()
        except Exception as raised:
            error = raised
        return Done(key, result, start, time.perf_counter(), error)
