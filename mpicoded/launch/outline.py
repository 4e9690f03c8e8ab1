"""What the launcher must know of a job, read as the leader reads it.

The supervisor stays beside the leader for the whole run, so it loads neither torch nor what needs
it; whether model, images and plan are right is for the leader to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpicoded.job import Job


@dataclass(frozen=True)
class Outline:
    """``units`` is k + r; ``start_limit`` the seconds that all ranks have to meet.

    ``flush`` is for how many seconds the results file may stand still.
    """

    units: int
    threads: int
    start_limit: float
    results: Path
    flush: float = 1.0

    @classmethod
    def read(cls, path: Path, sets: Sequence[str]) -> Outline:
        """Read a job file and its overrides.

        Raises
        ------
        JobError
            If it is no job file, or a value or an override in it is not usable.
        """
        job = Job.read(path, sets, light=True)
        threads = job.runtime.threads
        return cls(
            units=job.code.k + job.code.r,
            threads=1 if threads == "auto" else threads,
            start_limit=job.runtime.start_limit,
            flush=job.results.flush,
            results=job.results_path,
        )
