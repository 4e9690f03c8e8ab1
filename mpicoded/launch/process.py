"""One start of mpirun: its output passed on, its end, and nothing of it left behind.

Every process of a start carries a mark in its environment. A rank leaves by itself when mpirun is
gone, but not one that is stopped; and killed ranks leave their shared memory behind.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

MARK = "MPICODED_LAUNCH"
KEPT = 1 << 16  # bytes of output that are kept, to tell why a job ended
GRACE = 1.5  # s that ranks have to leave by themselves when mpirun has gone
KILL_LIMIT = 15.0  # s; a process that waits for a disk for ever cannot be killed
SHOW_CURSOR = "\x1b[?25h"
# What Open MPI and MPICH make there; whatever else a rank maps from there is not ours.
SHARED = re.compile(
    r"/dev/shm/(?:sm_segment|vader_segment|osc_|mpich_|psm2?_|ucx_)[^/\s]*(?=\s|$)", re.MULTILINE
)
PARENT_DIES = 1  # prctl(PR_SET_PDEATHSIG, …)
LIBC = ctypes.CDLL(None)


class Start:
    """A running mpirun, in a session of its own so that Ctrl-C reaches it only through us."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str]) -> None:
        self.mark = uuid.uuid4().hex
        # what a killed mpirun leaves there makes a later one with the same pid fail
        self.folder = tempfile.mkdtemp(prefix="mpicoded-")
        self.began = time.monotonic()
        self._made = time.time()
        self.heard = self.began  # when mpirun or a rank last printed something
        self.tail = bytearray()
        self._shared: set[str] = set()
        self._process = subprocess.Popen(
            words,
            env={**os.environ, **env, MARK: self.mark, "TMPDIR": self.folder},
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
        self._process.terminate()

    def end(self, limit: float) -> int:
        """End mpirun, by SIGKILL if it takes longer than ``limit`` seconds; return its status."""
        self.terminate()
        if self.wait(limit) is None:
            self._process.kill()
        return self._process.wait()

    def clean(self) -> None:
        """Take away what is left: ranks, the rest of the output, shared memory, the folder."""
        end = time.monotonic() + GRACE
        while (pids := self.pids()) and time.monotonic() < end:
            self._remember(pids)
            time.sleep(0.02)
        last = time.monotonic() + KILL_LIMIT
        while (pids := self.pids()) and time.monotonic() < last:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)
        for thread in self._copies:
            thread.join(GRACE)
        self._tidy()
        for path in self._shared:
            self._remove(Path(path))
        shutil.rmtree(self.folder, ignore_errors=True)

    def _remove(self, path: Path) -> None:
        """Remove shared memory that was made by us since this start."""
        with suppress(OSError):
            made = path.stat()
            if made.st_uid == os.getuid() and made.st_mtime >= self._made - 1:
                path.unlink()

    def _tidy(self) -> None:
        """Make good what a leader that was killed amid its progress bar left of the terminal."""
        if sys.stdout.isatty():
            sys.stdout.write(SHOW_CURSOR + "\n" * (not self.tail.endswith(b"\n")))
            sys.stdout.flush()

    def text(self) -> str:
        """Return the last that was printed, on either stream."""
        return bytes(self.tail).decode(errors="replace")

    def pids(self) -> list[int]:
        """Return every living process of this start on this machine."""
        mark = f"{MARK}={self.mark}".encode()
        return [pid for pid in _processes() if mark in _read(pid, "environ").split(b"\0")]

    def remember(self) -> None:
        """Note the shared memory that the ranks use now, to take it away when they are gone."""
        self._remember(self.pids())

    def _remember(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._shared.update(SHARED.findall(_read(pid, "maps").decode(errors="replace")))

    def _copy(self, source: IO[bytes], target: Any) -> None:
        """Pass on what comes, at once and as it is: it may be a progress bar."""
        with source:
            while piece := os.read(source.fileno(), 1 << 16):
                self.heard = time.monotonic()
                self.tail += piece
                del self.tail[:-KEPT]
                with suppress(OSError, ValueError):  # nobody reads us any more: the job goes on
                    getattr(target, "buffer", target).write(piece)
                    target.flush()


def _end_with_us() -> None:
    """Ask the kernel, in the child, for SIGTERM when the supervisor dies."""
    LIBC.prctl(PARENT_DIES, signal.SIGTERM)


def _processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    """Return a file of a process; nothing when it is gone, a zombie, or not ours."""
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
