"""Real mpirun jobs for the tests: started clean, watched, and ended with every rank they had.

mpirun gives each rank a process group of its own, and its death leaves Open MPI's ranks running.
So every job carries a mark in its environment, and its processes are found by that mark in /proc.
Each has a TMPDIR of its own: what a killed mpirun leaves there stops a later one with the same pid.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "MPICODED_TEST_JOB"
# The names that an outer mpirun, or a user's settings for one, leave in the environment.
LAUNCHERS = ("OMPI_", "PMIX_", "PRTE_", "PMI_", "HYD", "MPI4PY_", "MPICH_", "MPIR_")
ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")
MPICH = Path(sys.prefix) / "mpich"


@dataclass(frozen=True)
class Ended:
    """How a job ended; ``left`` holds the ranks that outlived mpirun (they are killed by now)."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    left: tuple[int, ...]

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


def environment(mpi: str, more: Mapping[str, str]) -> dict[str, str]:
    """Ours, less what an outer mpirun left, plus what Open MPI asks of root."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    # mpirun gives every rank a terminal, which would mean colours.
    env |= {"OMP_NUM_THREADS": "1", "TERM": "dumb"}
    if mpi == "openmpi":
        env["OMPI_MCA_btl"] = "^ofi"  # it sleeps 1 s at start
    if os.getuid() == 0:
        env |= {name + end: "1" for name in ROOT for end in ("", "_CONFIRM")}
    if mpi == "mpich":
        env["MPI4PY_LIBMPI"] = str(MPICH / "lib" / "libmpi.so.12")
    return env | dict(more)


def launcher(mpi: str, n: int, ft: bool) -> list[str]:
    """The command line before the program; with mpi="launch" that starts mpirun itself."""
    if mpi == "launch":
        return []
    if mpi == "mpich":
        return [str(MPICH / "bin" / "mpirun"), "-n", str(n)]
    command = [str(Path(sys.prefix) / "bin" / "mpirun"), "--oversubscribe", "--bind-to", "none"]
    return command + ["--with-ft", "ulfm"] * ft + ["-n", str(n)]


def environ(pid: int) -> dict[str, str]:
    """The environment a process was started with; empty when it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


class Running:
    """A job that runs: ``python args`` on ``n`` ranks; output goes to files in ``folder``."""

    def __init__(
        self,
        folder: Path,
        n: int,
        args: Sequence[str | Path],
        *,
        ft: bool = True,
        env: Mapping[str, str] | None = None,
        mpi: str = "openmpi",
        cwd: Path | None = None,
    ) -> None:
        self.mark = uuid.uuid4().hex
        self.files = (folder / f"{self.mark}.out", folder / f"{self.mark}.err")
        command = [*launcher(mpi, n, ft), sys.executable, *map(str, args)]
        with self.files[0].open("wb") as out, self.files[1].open("wb") as err:
            self.process = subprocess.Popen(
                command,
                env=environment(mpi, env or {}) | {MARK: self.mark, "TMPDIR": str(folder)},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def pids(self) -> list[int]:
        """Every living process of the job, mpirun among them."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if environ(pid).get(MARK) == self.mark]

    def ranks(self) -> dict[int, int]:
        """Pid by rank, of the living ranks; a rank's own children are not counted."""
        found: dict[int, int] = {}
        for pid in sorted(self.pids()):
            env = environ(pid)
            rank = env.get("OMPI_COMM_WORLD_RANK", env.get("PMI_RANK"))
            if rank is not None:
                found.setdefault(int(rank), pid)
        return found

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to one rank: SIGKILL, SIGSTOP, SIGCONT."""
        os.kill(self.ranks()[rank], number)

    def text(self) -> str:
        """What was printed so far, on both streams."""
        return "".join(file.read_text(errors="replace") for file in self.files)

    def wait_for(self, text: str, timeout: float) -> None:
        """Wait until ``text`` was printed; AssertionError after ``timeout`` seconds."""
        limit = time.monotonic() + timeout
        while text not in self.text():
            ended = self.process.poll() is not None
            assert not ended or text in self.text(), f"ended without {text!r}:\n{self.text()}"
            assert time.monotonic() < limit, f"no {text!r} in {timeout} s:\n{self.text()}"
            time.sleep(0.02)

    def wait(self, timeout: float, grace: float = 5.0) -> Ended:
        """Wait for the end; after ``timeout`` seconds the job is killed: AssertionError.

        Ranks have ``grace`` seconds to leave after mpirun.
        """
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            alive = sorted(self.ranks())
            self.kill()
            raise AssertionError(
                f"mpirun did not end in {timeout} s; living ranks: {alive}\n{self.text()}"
            ) from None
        seconds = time.monotonic() - self.started
        left = self.linger(grace)
        self.kill()
        stdout, stderr = (file.read_text(errors="replace") for file in self.files)
        return Ended(status, stdout, stderr, seconds, left)

    def linger(self, grace: float) -> tuple[int, ...]:
        """The ranks that still live ``grace`` seconds after mpirun's end."""
        limit = time.monotonic() + grace
        while (ranks := self.ranks()) and time.monotonic() < limit:
            time.sleep(0.02)
        return tuple(sorted(ranks))

    def kill(self) -> None:
        """End mpirun and every rank, stopped ones too, and wait until they are gone."""
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            self.process.poll()
            time.sleep(0.01)
        self.process.wait()
