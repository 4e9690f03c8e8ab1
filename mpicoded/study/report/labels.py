"""Labels of a run, from its job text: its code, k and r."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpicoded.errors import JobError, ResultsError
from mpicoded.jobfile import override, parse
from mpicoded.results import Loaded

SET = re.compile(r"^# --set (.*=.*)$", re.MULTILINE)  # an override, after the job's own text


@dataclass(frozen=True)
class Labels:
    """Code (k, r); ``k`` = 0 if the job does not say, a ``planner`` decides it.

    ``workers`` = 0: one device, no code.
    """

    code: str
    k: int
    r: int
    workers: int
    planner: str = ""

    def __str__(self) -> str:
        """Return a short name, such as ``learned k=6 r=2``."""
        if not self.workers:
            return "one device"
        if self.planner:
            return f"planner {self.planner}"
        if not self.k:
            return "unnamed scheme"
        redundancy = f" r={self.r}" if self.r else ""
        return f"{self.code} k={self.k}{redundancy}"


def labels(loaded: Loaded) -> Labels:
    """Return the labels of a run; a job text that cannot be read leaves the defaults."""
    job = _job(str(loaded.attrs.get("job", "")))
    code, plan = (
        each if isinstance(each := job.get(key), dict) else {} for key in ("code", "plan")
    )
    return Labels(
        code=str(code.get("name", "uncoded")),
        k=int(code.get("k", 1 if job.get("model") else 0)),
        r=int(code.get("r", 0)),
        workers=loaded.layout.ranks - 1,
        planner=str(plan.get("planner", "")),
    )


def names(given: Sequence[str], short: Sequence[str], long: Sequence[str]) -> Sequence[str]:
    """Return names ``given``, else ``short`` ones, ``long`` for twins; ResultsError if too few."""
    if given and len(given) != len(short):
        raise ResultsError(
            f"{len(given)} labels for {len(short)} results files: give one --label a file, in order"
        )
    count = Counter(short)
    return given or [b if count[a] > 1 else a for a, b in zip(short, long, strict=True)]


def _job(text: str) -> dict[str, Any]:
    job: dict[str, Any] = {}
    with suppress(JobError):
        job = parse(Path("job"), text)
        for each in SET.findall(text):
            override(job, each)
    return job
