"""JobHeader: the few keys of a job that the launcher needs, read without torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Self

from mpicoded.faults import KINDS
from mpicoded.job import FaultSpec, Job


@dataclass(frozen=True)
class JobHeader:
    """Seconds to meet, to be ``quiet`` though all is well, and to leave.

    ``units`` are k + r, or the workers of the cluster that a planner plans for.
    """

    units: int
    threads: int
    start_limit: float
    results: Path
    quiet: float = 1.5
    end_limit: float = 10.0

    @classmethod
    def read(cls, path: Path, sets: Sequence[str]) -> Self:
        """Read a job file and its overrides; JobError if they are not usable."""
        job = Job.read(path, sets, light=True)
        threads, cluster = job.runtime.threads, job.measured() if job.plan.planner else None
        return cls(
            units=len(cluster.workers) if cluster else job.code.k + job.code.r,
            threads=1 if threads == "auto" else threads,
            start_limit=job.runtime.start_limit,
            quiet=_quiet(job),
            end_limit=job.runtime.end_limit,
            results=job.results_path,
        )


def _quiet(job: Job) -> float:
    """Return for how long a run may be silent in which all goes as planned."""
    quiet = job.results.flush + job.runtime.suspect_after
    if sum(map(_silent, job.faults)) > job.code.r:  # the code cannot do without them
        quiet += (1 + job.gather.retries) * job.gather.give_up
        quiet += max(fault.seconds or 0.0 for fault in job.faults)
    return quiet


def _silent(fault: FaultSpec) -> float:
    """Return how many ranks an injected fault makes silent."""
    if not KINDS[fault.kind].silent:
        return 0
    return inf if fault.rank == "all" else fault.missing
