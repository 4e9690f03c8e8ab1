"""One strike: when in the life of a run, whom, and how; drawn from its number."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from started import Started

from mpicoded.cluster_tools.launch.progress import look
from mpicoded.processes import read

# The moments of a run in their order, each with the seconds after its first sign that may pass.
MOMENTS = {
    "launcher": 0.8,  # the launcher imports
    "mpirun": 0.4,  # mpirun is there
    "ranks": 2.0,  # a rank is there, and imports
    "init": 1.0,  # a rank has loaded MPI
    "setup": 0.5,  # the results file is there
    "serving": 2.0,  # a query is answered
    "comparing": 0.1,  # all are, and the unsplit model runs
    "end": 0.5,  # the results file is complete
}
STARTING = ("launcher", "mpirun", "ranks", "init", "setup")
VICTIMS = ("launcher", "mpirun", "leader", "worker", "two workers")
KINDS = {
    "kill": signal.SIGKILL,
    "stop": signal.SIGSTOP,
    "pause": signal.SIGSTOP,  # and SIGCONT after PAUSE
    "terminate": signal.SIGTERM,
    "interrupt": signal.SIGINT,
}
ENDS = ("kill", "terminate", "interrupt")
PAUSE = 2.0  # s
COMES = 300.0  # s in which a moment has to come
TURNED_TO = 10.0  # s until somebody looks after a stopped process that nobody else watches
LOOK = 0.02  # s


@dataclass(frozen=True)
class Strike:
    """``kind`` befalls ``victim`` (workers: ``ranks``) ``delay`` s after ``moment`` has begun."""

    moment: str
    delay: float
    victim: str
    kind: str
    ranks: tuple[int, ...] = ()

    @classmethod
    def draw(cls, seed: int, run: int, by: str = "launch") -> Strike:
        """Draw the strike of a run that is started ``by`` launch, or by plain mpirun."""
        rng = np.random.default_rng((seed, run))
        first = by != "launch"  # there is no launcher
        moment = str(rng.choice(list(MOMENTS)[first:]))
        there = {"launcher": 1, "mpirun": 2}.get(moment, len(VICTIMS))
        victim = VICTIMS[rng.integers(first, there)]
        kind = str(rng.choice(list(KINDS)))
        delay = rng.uniform(0.0, MOMENTS[moment])
        workers = rng.permutation(np.arange(1, 9)).tolist()
        count = {"leader": (0,), "worker": workers[:1], "two workers": workers[:2]}
        return cls(moment, delay, victim, kind, tuple(count.get(victim, ())))

    def __str__(self) -> str:
        workers = ", ".join(str(rank) for rank in self.ranks if rank)
        return f"{self.moment} + {self.delay:.2f} s: {self.kind} {self.victim} {workers}".rstrip()

    def forever(self, by: str) -> bool:
        """Return whether it is a stop that the product itself has to notice.

        Nothing watches the first process, nor a leader that serves under plain mpirun.
        """
        unwatched = self.victim in VICTIMS[: 1 + (by != "launch")]
        unwatched |= by != "launch" and self.victim == "leader" and self.moment not in STARTING
        return self.kind == "stop" and not unwatched

    def aim(self, job: Started, file: Path) -> list[int]:
        """Wait for the moment; return whom to strike.

        There is nobody if the job, or the victim, has ended before, or the moment does not come.
        """
        place, end = list(MOMENTS).index(self.moment), time.monotonic() + COMES
        while job.runs() and _reached(job, file) < place:
            if time.monotonic() > end:
                return []
            time.sleep(LOOK)
        time.sleep(self.delay)
        roles = [f"rank {rank}" for rank in self.ranks] or [self.victim]
        pids = [job.find(role) for role in roles]
        while job.runs() and None in pids and time.monotonic() < end:
            time.sleep(LOOK)
            pids = [job.find(role) for role in roles]
        return [pid for pid in pids if pid is not None]

    def hit(self, pids: Sequence[int], by: str) -> Blow:
        """Strike."""
        struck = [pid for pid in pids if _send(pid, KINDS[self.kind])]
        now = time.monotonic()
        if self.kind not in ("stop", "pause") or self.forever(by):
            return Blow(now, tuple(struck))
        return Blow(now, tuple(struck), now + (PAUSE if self.kind == "pause" else TURNED_TO))


@dataclass(frozen=True)
class Blow:
    """A strike that was done at ``when`` to these ``pids``, which go on at ``until``."""

    when: float
    pids: tuple[int, ...]
    until: float = float("inf")

    def relent(self) -> None:
        """Let the stopped go on when it is time."""
        if time.monotonic() >= self.until:
            for pid in self.pids:
                _send(pid, signal.SIGCONT)


def _reached(job: Started, file: Path) -> int:
    """Return which moment has begun; a later one's sign stands for those before it."""
    if progress := look(file):
        all_answered = progress.answered == progress.queries
        return 4 + bool(progress.answered) + all_answered + progress.finished
    roles = job.processes()
    ranks = [pid for pid, role in roles.items() if role.startswith("rank ")]
    if ranks:
        return 2 + any(b"/libmpi.so" in read(pid, "maps") for pid in ranks)
    return int("mpirun" in roles.values())


def _send(pid: int, number: signal.Signals) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False
