"""One start of mpirun: its output passed on, its end, and nothing of it left behind.

Every process of a start carries a mark in its environment. A rank leaves by itself when mpirun is
gone, but not one that is stopped; and killed ranks leave their shared memory behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import IO, Any

from mpicoded.cluster_tools.launch.allocation import alone
from mpicoded.cluster_tools.launch.leftovers import (
    MARK,
    kill,
    new_folder,
    new_memory,
    note,
    pids,
    remove,
)
from mpicoded.cluster_tools.launch.order import Order

KEPT = 1 << 16  # bytes of output that are kept, to tell why a job ended
GRACE = 1.5  # s that ranks have to leave by themselves when mpirun has gone
BACKING = "OMPI_MCA_btl_sm_backing_directory"
SHOW_CURSOR = "\x1b[?25h"
PARENT_DIES = 1  # prctl(PR_SET_PDEATHSIG, …)
LIBC = ctypes.CDLL(None)


class Start:
    """A running mpirun, in a session of its own so that Ctrl-C reaches it only through us."""

    def __init__(self, order: Order) -> None:
        self.folder = new_folder()
        self.mark = self.folder.name
        self.began = time.monotonic()
        self.heard = self.began  # when mpirun or a rank last printed something
        self._ending = False
        self.tail, self.errors = bytearray(), bytearray()  # of both streams, and of stderr alone
        env = order.env | {MARK: self.mark, "TMPDIR": str(self.folder)}
        memory = new_memory(self.folder) if alone(order.hosts) else None
        if memory is not None:
            env[BACKING] = str(memory)
        self._process = subprocess.Popen(
            order.words,
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=_end_with_us,
        )
        pairs = ((self._process.stdout, sys.stdout), (self._process.stderr, sys.stderr))
        self._copies = [threading.Thread(target=self._copy, args=p, daemon=True) for p in pairs]
        for thread in self._copies:
            thread.start()

    def wait(self, seconds: float) -> int | None:
        """Return mpirun's status (negative: the signal that killed it), None if it still runs."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        return None

    def terminate(self) -> None:
        """Ask mpirun to end: SIGTERM, upon which the leader closes its file in good order."""
        self._ending = True
        self._process.terminate()

    def end(self, limit: float) -> int:
        """End mpirun, by SIGKILL if it takes longer than ``limit`` seconds; return its status."""
        self.terminate()
        if self.wait(limit) is None:
            self._process.kill()
        return self._process.wait()

    def clean(self) -> None:
        """Take away what is left: ranks, the rest of the output, shared memory, the folder."""
        self.pids(remember=True)
        kill(self.mark, GRACE)
        for thread in self._copies:
            thread.join(GRACE)
        self._tidy()
        remove(self.folder)

    def _tidy(self) -> None:
        """Make good what a leader that was killed amid its progress bar left of the terminal."""
        if sys.stdout.isatty():
            sys.stdout.write(SHOW_CURSOR + "\n" * (not self.tail.endswith(b"\n")))
            sys.stdout.flush()

    def text(self) -> str:
        """Return the last that was printed, on either stream."""
        return bytes(self.tail).decode(errors="replace")

    def pids(self, remember: bool) -> list[int]:
        """Return who lives; note the shared memory that they use, for :meth:`clean`."""
        found = pids(self.mark)
        if remember:
            note(self.folder, found)
        return found

    def _copy(self, source: IO[bytes], target: Any) -> None:
        """Pass on what comes, at once and as it is: it may be a progress bar."""
        with source:
            while piece := os.read(source.fileno(), 1 << 16):
                self.heard = time.monotonic()
                self.tail += piece
                del self.tail[:-KEPT]
                if target is sys.stderr:
                    self.errors += piece
                    del self.errors[:-KEPT]
                    if self._ending:  # mpirun tells how it is going to end
                        continue
                with suppress(OSError, ValueError):  # nobody reads us any more: the job goes on
                    getattr(target, "buffer", target).write(piece)
                    target.flush()


def _end_with_us() -> None:
    """Ask the kernel, in the child, for SIGTERM when the supervisor dies."""
    LIBC.prctl(PARENT_DIES, signal.SIGTERM)
