"""A job that was started, and all its processes: they carry a mark in their environment."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench import ROOT

from mpicoded.processes import entries, fields, pids, rank, read

MARK = "MPICODED_BATTERY"
DAEMONS = (b"mpirun", b"prterun", b"mpiexec", b"mpiexec.hydra", b"hydra_pmi_proxy")
KILL_LIMIT = 10.0  # s


class Started:
    """``words`` run in the background as ``role``; what they print goes to the file ``log``."""

    def __init__(
        self, role: str, words: Sequence[str], env: Mapping[str, str], log: Path, folder: Path
    ) -> None:
        self.role, self.log = role, log
        mark = uuid.uuid4().hex
        self._entry = f"{MARK}={mark}".encode()
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, **env, MARK: mark, "TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """Return the role of every living process, by pid."""
        return {pid: self._role(pid) for pid in pids() if self._entry in entries(pid)}

    def _role(self, pid: int) -> str:
        if pid == self.process.pid:
            return self.role
        if (number := rank(pid)) is not None:
            return f"rank {number}"
        asks = b"--version" in read(pid, "cmdline").split(b"\0")
        return "mpirun" if read(pid, "comm").strip() in DAEMONS and not asks else "another"

    def find(self, role: str) -> int | None:
        """Return the first process in that role: a rank may have children, mpirun a proxy."""
        return next((pid for pid, each in self.processes().items() if each == role), None)

    def told(self) -> str:
        """Name the living processes and their states: R(uns), S(leeps), T (is stopped)."""
        states = ((each, fields(pid)[:1]) for pid, each in self.processes().items())
        return ", ".join(" ".join((each, *state)) for each, state in states)

    def runs(self) -> bool:
        """Return whether the first process lives."""
        return self.process.poll() is None

    def ended(self) -> bool:
        """Return whether nothing lives any more."""
        return not (self.runs() or self.processes())

    def kill(self) -> None:
        """End every process."""
        end = time.monotonic() + KILL_LIMIT
        while not self.ended() and time.monotonic() < end:
            for pid in self.processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.02)
