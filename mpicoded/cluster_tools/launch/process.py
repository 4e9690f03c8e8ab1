"""One start of mpirun: its output passed on, its end, and nothing of it left behind.

Its processes carry a mark in their environment, as a stopped rank does not leave by itself.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import IO, Any

from mpicoded.cluster_tools.launch.hostfile import alone
from mpicoded.cluster_tools.launch.leftovers import (
    MARK,
    kill,
    new_folder,
    new_memory,
    note,
    pids,
    remove,
)
from mpicoded.cluster_tools.launch.start_command import StartCommand

KEPT = 1 << 16  # bytes of output that are kept, to tell why a job ended
GRACE = 1.5  # s that ranks have to leave by themselves when mpirun has gone
BACKING = "OMPI_MCA_btl_sm_backing_directory"
SHOW_CURSOR = "\x1b[?25h"
PARENT_DIES = 1  # prctl(PR_SET_PDEATHSIG, …)
LIBC = ctypes.CDLL(None)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Start:
    """A running mpirun, in a session of its own so that Ctrl-C reaches it only through us.

    ``quiet``: its output is kept and not passed on.
    """

    def __init__(self, command: StartCommand, quiet: bool = False) -> None:
        self.folder = new_folder()
        self.mark = self.folder.name
        self.began = time.monotonic()
        self.heard = self.began  # when mpirun or a rank last printed something
        self._ending, self._quiet = False, quiet
        self.tail, self.errors = bytearray(), bytearray()  # of both streams, and of stderr alone
        env = command.env | {MARK: self.mark, "TMPDIR": str(self.folder)}
        memory = new_memory(self.folder) if alone(command.hosts) else None
        if memory is not None:
            env[BACKING] = str(memory)
        self._process = subprocess.Popen(
            command.words,
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
        """Ask mpirun to end: SIGTERM, upon which the leader closes its file in good command."""
        self._ending = True
        self._process.terminate()

    def end(self, limit: float) -> int:
        """End mpirun, by SIGKILL if it takes longer than ``limit`` seconds; return its status."""
        self.terminate()
        if self.wait(limit) is None:
            self._process.kill()
        return self._process.wait()

    def clean(self) -> None:
        """Remove all that is left: ranks, the rest of the output, shared memory, the folder."""
        self.pids(remember=True)
        kill(self.mark, GRACE)
        for thread in self._copies:
            thread.join(GRACE)
        if sys.stdout.isatty():  # the leader may have been killed amid its progress bar
            sys.stdout.write(SHOW_CURSOR + "\n" * (not self.tail.endswith(b"\n")))
            sys.stdout.flush()
        remove(self.folder)

    def text(self) -> str:
        """Return the last that was printed, on either stream."""
        return bytes(self.tail).decode(errors="replace")

    def pids(self, remember: bool) -> list[int]:
        """Return the living ranks; note their shared memory, for :meth:`clean`."""
        found = pids(self.mark)
        if remember:
            note(self.folder, found)
        return found

    def _copy(self, source: IO[bytes], target: Any) -> None:
        """Pass output on, at once and as it is: it may be a progress bar."""
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
                if self._quiet:
                    continue
                with suppress(OSError, ValueError):  # nobody reads us any more: the job goes on
                    getattr(target, "buffer", target).write(piece)
                    target.flush()


def _end_with_us() -> None:
    """Ask the kernel, in the child, for SIGTERM when the supervisor dies."""
    LIBC.prctl(PARENT_DIES, signal.SIGTERM)


@dataclass
class Stopped:
    """Ctrl-C and SIGTERM: ``number`` is the signal that came, 0 for none; it ends ``start``."""

    number: int = 0
    start: Start | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Pass the signal on to mpirun, which ends the ranks."""
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
        """Why a start was ended, in words."""
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
