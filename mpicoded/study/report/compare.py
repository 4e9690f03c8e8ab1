"""Several runs side by side: one line a run, and the distributions of their latencies together.

told = compare([load(path) for path in paths])
told[1].ratio      # of its median latency to the first run's
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Group
from rich.table import Table
from rich.text import Text

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded
from mpicoded.study.report.scheme import scheme
from mpicoded.study.report.summary import Score, summary
from mpicoded.study.report.table import milliseconds, new_table, percent

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Run:
    """One run of a comparison: times in seconds, shares 0..1, NaN of nothing.

    ``latency`` (answers,) is sorted. ``accuracy`` is A_o of the held-out images if the file tells
    them apart, else of all; without labels it is NaN and ``agreement`` with the unsplit model is
    what there is. ``ratio`` is that of the median latency to the first run's.
    """

    name: str
    file: str
    queries: int
    degraded: int
    lost: int
    pending: int
    latency: npt.NDArray[np.float64]
    p50: float
    p95: float
    p99: float
    mean: float
    accuracy: float
    agreement: float
    ratio: float


def compare(runs: Sequence[Loaded], names: Sequence[str] = ()) -> list[Run]:
    """Return one line a run; without ``names`` they are named after their schemes.

    Raises
    ------
    ResultsError
        If there are names, but not one for every run.
    """
    if names and len(names) != len(runs):
        raise ResultsError(
            f"{len(names)} labels for {len(runs)} results files: give one --label a file, in order"
        )
    names = names or _names(runs)
    medians = [summary(loaded).latency[0] for loaded in runs[:1]]
    return [_run(loaded, name, medians[0]) for loaded, name in zip(runs, names, strict=True)]


def _names(runs: Sequence[Loaded]) -> list[str]:
    """Name runs after their schemes, and those of the same scheme after their files too."""
    found = [str(scheme(loaded)) for loaded in runs]
    count = Counter(found)
    return [
        f"{name} ({loaded.path.stem})" if count[name] > 1 else name
        for name, loaded in zip(found, runs, strict=True)
    ]


def _run(loaded: Loaded, name: str, first: float) -> Run:
    told = summary(loaded)
    done = np.isin(loaded.queries["mode"], (Mode.AVAILABLE, Mode.DEGRADED))
    latency = np.sort(loaded.queries["latency"][done])
    score: Score | None = told.held_out or told.all
    p50, p95, p99 = told.latency
    return Run(
        name=name,
        file=told.file,
        queries=told.queries,
        degraded=told.degraded,
        lost=told.lost,
        pending=told.pending,
        latency=latency,
        p50=p50,
        p95=p95,
        p99=p99,
        mean=float(latency.mean()) if latency.size else np.nan,
        accuracy=score.overall if score else np.nan,
        agreement=score.agreement if score else np.nan,
        ratio=p50 / first,
    )


def render_comparison(runs: Sequence[Run]) -> Group:
    """Return the table, one line a run, and which file each is where names do not tell."""
    times = ("p50", "p95", "p99", "mean", "ratio")
    table = new_table("run", "queries", "degraded", "lost", *times, _quality_name(runs))
    for run in runs:
        counts = (f"{run.queries - run.pending:,}", f"{run.degraded:,}", f"{run.lost:,}")
        seconds = [milliseconds(s) for s in (run.p50, run.p95, run.p99, run.mean)]
        style = "red" if run.lost else ""
        quality = percent(_quality(runs, run))
        table.add_row(run.name, *counts, *seconds, _ratio(run.ratio), quality, style=style)
    lines: list[Table | Text] = [table, Text(), Text("ratio: p50 to that of the first run")]
    pending = [f"{r.name}: {r.pending:,} queries are pending" for r in runs if r.pending]
    return Group(*lines, *map(Text, pending))


def _ratio(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _quality_name(runs: Sequence[Run]) -> str:
    return "agreement" if all(np.isnan(run.accuracy) for run in runs) else "accuracy"


def _quality(runs: Sequence[Run], run: Run) -> float:
    return run.agreement if _quality_name(runs) == "agreement" else run.accuracy
