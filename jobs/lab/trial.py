"""One run that is struck, the run after it, and what is wrong with either.

Asked of every run, whenever and whatever is struck: it ends within the limit; status 0 means that
all is answered; another status means that `launch --resume` answers exactly the rest; no traceback;
and after the next launch nothing is left. Launch itself ends with 0 unless it was told to end.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from bench import ROOT
from leftovers import Leftovers
from started import Started
from strike import ENDS, STARTING, Blow, Strike

from mpicoded.answer import Mode
from mpicoded.cluster_tools.launch.job_header import JobHeader
from mpicoded.cluster_tools.launch.machines import Machines
from mpicoded.cluster_tools.launch.mpi import Mpi
from mpicoded.cluster_tools.launch.start_command import of_program
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded, load

JOB = ROOT / "jobs" / "quickstart.toml"
RANKS = 9
# Eight strips that exchange halos, without a code and without the leader between two stages.
DIRECT = ('plan={split="width", exchange="neighbours"}', 'code={name="uncoded", k=8}')
PACE = '{kind="delay", rank="all", seconds=0.01}'  # serving is to last some seconds
START_LIMIT = 20  # s
LATE = 10.0  # s after the start limit in which plain mpirun has to end
LOOK = 0.05  # s
TRACEBACK = re.compile(
    r"Traceback \(most recent call last\)|Exception ignored in|Fatal Python error|"
    r"Segmentation fault"
)
ASKED = ("hangs", "wrong exit status", "tracebacks", "leftovers", "lost or changed")


@dataclass
class Trial:
    """``by`` is launch or mpirun, ``limit`` the seconds to the end after a strike.

    With ``direct`` workers exchange halos. ``findings`` holds a sentence for each of what is ASKED
    that was not kept.
    """

    strike: Strike
    by: str
    mpi: Mpi
    queries: int
    limit: float
    folder: Path
    direct: bool = False
    findings: dict[str, str] = field(default_factory=dict)
    missed: bool = False

    @property
    def file(self) -> Path:
        """The results file."""
        return self.folder / "results" / "run.h5"

    def run(self) -> None:
        """Run, strike, judge, and run the rest where there is one."""
        for part in ("tmp", "results"):
            (self.folder / part).mkdir(parents=True)
        leftovers = Leftovers(self.folder / "tmp", self.file)
        job = self._start(self.by, "run")
        try:
            pids = self.strike.aim(job, self.file)
            leftovers.look(job.processes())
            blow = self.strike.hit(pids, self.by)
            self.missed = not blow.pids
            at_strike = answered(self.file)
            status = self._wait(job, self._limit(), leftovers, blow)
        finally:
            job.kill()
        rows = answered(self.file)
        self.findings |= changed(at_strike, rows)
        done = complete(self.file, self.queries)
        why = "" if status is None else wrong(self.strike, self.by, self.mpi, blow, status, done)
        if why:
            self.findings["wrong exit status"] = why
        if status != 0 or leftovers.found():
            self._go_on(rows, leftovers)
        if left := leftovers.found():
            self.findings["leftovers"] = ", ".join(left)
            leftovers.remove()

    def _limit(self) -> float:
        """Return the seconds to the end: nobody starts again what plain mpirun began."""
        early = self.strike.moment in STARTING and self.strike.forever(self.by)
        return START_LIMIT + LATE if early and self.by == "mpirun" else self.limit

    def _go_on(self, rows: Rows, leftovers: Leftovers) -> None:
        """Run the rest: nothing that was answered may be answered again."""
        job = self._start("launch", "next", "--resume")
        try:
            status = self._wait(job, self.limit, leftovers, Blow(time.monotonic(), ()))
        finally:
            job.kill()
        self.findings |= changed(rows, answered(self.file))
        if why := complete(self.file, self.queries):
            self.findings.setdefault("lost or changed", f"after --resume {why}")
        if status:
            self.findings.setdefault("wrong exit status", f"--resume ended with {status}")

    def _start(self, by: str, name: str, *flags: str) -> Started:
        log, tmp = self.folder / f"{name}.log", self.folder / "tmp"
        sets = (f"faults=[{PACE}]", f"input.limit={self.queries}", "results.flush=0.2",
                f"runtime.start_limit={START_LIMIT}", f'results.file="{self.file}"',
                *DIRECT * self.direct)  # fmt: skip
        if by == "mpirun":
            machines, header = Machines(RANKS), JobHeader.read(JOB, sets)
            program = [sys.executable, "-m", "mpicoded", "run", str(JOB), *flags]
            program += [word for each in sets for word in ("--set", each)]
            command = of_program(self.mpi, machines, program, header.threads, (), RANKS)
            return Started("mpirun", command.words, command.env, log, tmp)
        words = [sys.executable, "-m", "mpicoded", "launch", str(JOB), "-n", str(RANKS)]
        words += ["--mpirun", self.mpi.mpirun, *flags]
        words += [word for each in sets for word in ("--set", each)]
        return Started("launcher", words, {}, log, tmp)

    def _wait(self, job: Started, limit: float, leftovers: Leftovers, blow: Blow) -> int | None:
        """Wait for the end of all processes; return the status of the first, None if it hangs."""
        while not job.ended():
            blow.relent()
            leftovers.look(job.processes())
            if time.monotonic() > blow.when + limit:
                name = "" if job.log.stem == "run" else f"{job.log.stem}: "
                self.findings.setdefault("hangs", f"{name}{limit:.0f} s later live {job.told()}")
                break
            time.sleep(LOOK)
        if found := TRACEBACK.search(job.log.read_text(errors="replace")):
            self.findings.setdefault("tracebacks", f"{found[0]} in {job.log.name}")
        return job.process.returncode


Rows = Mapping[str, Any]


def answered(file: Path) -> Rows:
    """Return all that is recorded of the queries that have an answer; "damaged" says why if so."""
    if not file.exists():
        return {}
    try:
        loaded = load(file)
    except (ResultsError, OSError, KeyError) as error:
        return {"damaged": str(error)}
    return _rows(loaded)


def _rows(loaded: Loaded) -> Rows:
    at = np.flatnonzero(loaded.queries["mode"] != Mode.PENDING)
    parts = {**loaded.queries, **{f"output/{n}": a for n, a in loaded.predictions.items()}}
    later = ("base", "apart")  # of the unsplit model, which runs when all is answered
    return {
        "query": at,
        **{n: a[at] for n, a in parts.items() if not n.split("/")[-1].startswith(later)},
    }


def changed(before: Rows, after: Rows) -> dict[str, str]:
    """Find what was on disk and is not, or not as it was."""
    if "damaged" in after:
        return {"lost or changed": f"the file is damaged: {after['damaged']}"}
    if "query" not in before:
        return {}
    if "query" not in after:
        return {"lost or changed": "the file is gone"}
    at = np.searchsorted(after["query"], before["query"])
    if gone := np.setdiff1d(before["query"], after["query"]).tolist():
        return {"lost or changed": f"answers {gone} are gone"}
    pairs = ((name, rows, after[name][at]) for name, rows in before.items())
    other = [name for name, a, b in pairs if not np.array_equal(a, b, a.dtype.kind == "f")]
    return {"lost or changed": f"{', '.join(other)} changed"} if other else {}


def complete(file: Path, queries: int) -> str:
    """Return why not every query has one answer in a finished file; "" if so."""
    try:
        loaded = load(file)
    except (ResultsError, OSError, KeyError) as error:
        return f"there is no good file: {error}"
    mode = loaded.queries["mode"]
    counts = {"pending": int((mode == Mode.PENDING).sum()), "lost": int((mode == Mode.LOST).sum())}
    whys = [f"{n} of {len(mode)} queries are {name}" for name, n in counts.items() if n]
    whys += [f"there are {len(mode)} queries, not {queries}"] * (len(mode) != queries)
    whys += ["the file is not finished"] * (not loaded.finished)
    return ", ".join(whys)


def wrong(strike: Strike, by: str, mpi: Mpi, blow: Blow, status: int, why: str) -> str:
    """Return what is wrong with an exit status; ``why`` the file is not complete, if so."""
    if status == 0:
        told = strike.kind == "kill" and strike.victim == first(by) and blow.pids
        return f"0, but {why}" if why else "0 of a process that was killed" * bool(told)
    return f"{status}, but it had to go on" if bound(strike, by, mpi) or not blow.pids else ""


def first(by: str) -> str:
    """Return the process whose status is the run's."""
    return "launcher" if by == "launch" else "mpirun"


def bound(strike: Strike, by: str, mpi: Mpi) -> bool:
    """Return whether the run has to come to its end by itself, with status 0."""
    if by == "launch":
        return not (strike.victim == "launcher" and strike.kind in ENDS)
    workers = strike.victim in ("worker", "two workers")
    return strike.kind == "pause" or (
        workers and mpi.survives and strike.moment == "serving" and strike.kind != "stop"
    )


def tell(findings: Sequence[Mapping[str, str]]) -> str:
    """Return the table: of all trials, how many failed in what."""
    counts = [str(sum(name in each for each in findings)) for name in ASKED]
    widths = [max(len(name), 3) for name in ASKED]
    lines = (zip(row, widths, strict=True) for row in (ASKED, counts))
    return "\n".join("  ".join(cell.rjust(width) for cell, width in line) for line in lines)
