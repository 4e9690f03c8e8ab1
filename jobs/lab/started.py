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

MARK = "MPICODED_BATTERY"
RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
DAEMONS = ("mpirun", "prterun", "mpiexec", "mpiexec.hydra", "hydra_pmi_proxy")
KILL_LIMIT = 10.0  # s


class Started:
    """``words`` run in the background as ``role``; what they print goes to the file ``log``."""

    def __init__(
        self, role: str, words: Sequence[str], env: Mapping[str, str], log: Path, folder: Path
    ) -> None:
        self.role, self.log = role, log
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, **env, name: value, "TMPDIR": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """Return the role of every living process, by pid."""
        environments = ((pid, read(pid, "environ").split("\0")) for pid in all_pids())
        return {pid: self._role(pid, env) for pid, env in environments if self._mark in env}

    def _role(self, pid: int, env: Sequence[str]) -> str:
        if pid == self.process.pid:
            return self.role
        for entry in env:
            name, _, value = entry.partition("=")
            if name in RANK:
                return f"rank {value}"
        asks = "--version" in read(pid, "cmdline").split("\0")
        return "mpirun" if read(pid, "comm").strip() in DAEMONS and not asks else "another"

    def find(self, role: str) -> int | None:
        """Return the first process in that role: a rank may have children, mpirun a proxy."""
        return next((pid for pid, each in self.processes().items() if each == role), None)

    def told(self) -> str:
        """Name the living processes and their states: R(uns), S(leeps), T (is stopped)."""
        states = ((each, read(pid, "stat")) for pid, each in self.processes().items())
        return ", ".join(f"{each} {stat.rpartition(')')[2][1:2]}" for each, stat in states)

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


def all_pids() -> list[int]:
    """Return every process of this machine."""
    return sorted(int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit())


def read(pid: int, name: str) -> str:
    """Return a file of a process; nothing when it is gone or not ours."""
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""
