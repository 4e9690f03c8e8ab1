"""Experiment g: what an answer costs in time when it need not be perfect: latency over accuracy.

    python -m mpicoded calibrate jobs/lab/fashion.toml
    python jobs/lab/quality.py [--network fashion|cifar] [--queries 1000] [--plain]

Every unit is late by a random time with an exponential tail, and one worker is slow besides. The
job is run once for each [gather] min_accuracy, so many points below the best that the code's table
expects; nothing but the accuracy ends a wait (deadline = inf). Beside them stand the policies that
ask how many units are here: every data unit, the first decodable set, and the adaptive deadline.

All runs answer the same images. Accuracy is drawn as points above or below the unsplit model's on
the same images; what was expected, as points above or below the unsplit model's in the calibration.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import matplotlib
import numpy as np
from bench import ROOT, Runs, Scheme, interleave, lab, options
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mpicoded.answer import Mode
from mpicoded.expected_accuracy import AccuracyTable, read_table
from mpicoded.job import Job

BELOW = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 20.0)  # points below the table's best
COUNTING = {
    "all data": ("gather.deadline=inf",),
    "adaptive": (),
    "first k": ("gather.deadline=0.0",),
}
SECONDS = 0.03  # mean delay of a unit
STRAGGLER = 2  # rank


@dataclass(frozen=True)
class Point:
    """What one policy gives: seconds, accuracies as shares of the counted queries."""

    name: str
    p50: float
    p99: float
    accuracy: float
    expected: float
    unsplit: float
    error: float  # standard error of accuracy - unsplit: both are of the same images
    units: float  # used for an answer, mean
    lost: int

    @classmethod
    def of(cls, runs: Runs) -> Point:
        """Pool the repeats of a policy; a lost answer counts as wrong."""
        warm, files = runs.scheme.warm, runs.files
        mode, expected, own, base, label = (
            np.concatenate([file_part[warm:] for file_part in part])
            for part in (
                [file.queries["mode"] for file in files],
                [file.queries["expected"] for file in files],
                [file.predictions["class"][:, 0] for file in files],
                [file.predictions["base_class"][:, 0] for file in files],
                [file.labels["label"][:, 0] for file in files],
            )
        )
        used = np.concatenate([file.queries["arrived"][warm:, 0].sum(1) for file in files])
        p50, _, p99 = runs.percentiles()
        right, unsplit = own == label, base == label
        return cls(
            name=runs.scheme.name,
            p50=p50,
            p99=p99,
            accuracy=float(right.mean()),
            expected=float(np.nan_to_num(expected).mean()),
            unsplit=float(unsplit.mean()),
            error=float((right - 1.0 * unsplit).std() / np.sqrt(len(right))),
            units=float(used.mean()),
            lost=int((mode == Mode.LOST).sum()),
        )


def faults(seconds: float) -> str:
    """Every worker is late by a random time, one of them by ten times as much."""
    return (
        f'faults=[{{kind="delay", rank="all", seconds={seconds}, tail="exponential"}}, '
        f'{{kind="delay", rank={STRAGGLER}, seconds={10 * seconds}}}]'
    )


def schemes(job: str, quality: AccuracyTable, given: argparse.Namespace) -> list[Scheme]:
    """Return the policies, the most patient first."""
    shared = (faults(given.seconds), "results.unsplit=true", "runtime.window=1")
    queries = given.queries if given.queries != 40 else 1000
    found = [
        Scheme(name, job, (*shared, *sets), ranks=7, queries=queries)
        for name, sets in COUNTING.items()
    ]
    for points in BELOW:
        least = np.floor(1e4 * (quality.best - points / 100)) / 1e4
        sets = (*shared, "gather.deadline=inf", f"gather.min_accuracy={least:.4f}")
        found.append(Scheme(f"{least:.4f}", job, sets, ranks=7, queries=queries))
    return found


def tell(points: list[Point], quality: AccuracyTable) -> None:
    """Print a line a policy."""
    base = quality.base / quality.images
    print(f"unsplit model: {base:.2%} in the calibration, {points[0].unsplit:.2%} here")
    for p in points:
        kind = p.name if p.name in COUNTING else f"min_accuracy {p.name}"
        print(
            f"{kind:20s} p50 {1e3 * p.p50:5.0f} ms  p99 {1e3 * p.p99:5.0f} ms  units used "
            f"{p.units:.2f}  accuracy {p.accuracy:.2%} ({100 * (p.accuracy - p.unsplit):+.2f} "
            f"± {100 * p.error:.2f})  "
            f"expected {p.expected:.2%} ({100 * (p.expected - base):+.2f})  lost {p.lost}"
        )


def picture(points: list[Point], quality: AccuracyTable, path: str) -> None:
    """Draw accuracy over latency: p50 on the left, p99 on the right."""
    base = quality.base / quality.images
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, which in ((left, "p50"), (right, "p99")):
            _curve(axes, points, which, base)
            axes.set_xlabel(f"latency, ms: {which}")
            axes.grid(color="#E4E4E4", linewidth=0.6)
        left.set_ylabel("accuracy less the unsplit model's, points")
        right.legend(frameon=False, fontsize=8, loc="lower right")
        title = "latency of answers that have to be so good; numbers are [gather] min_accuracy"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def _curve(axes: Axes, points: list[Point], which: str, base: float) -> None:
    aimed = [p for p in points if p.name not in COUNTING]
    counting = [p for p in points if p.name in COUNTING]
    for style, some, label in (("o-", aimed, "an accuracy"), ("D", counting, "so many units")):
        x = [1e3 * getattr(p, which) for p in some]
        y = [100 * (p.accuracy - p.unsplit) for p in some]
        colour = "#0072B2" if some is aimed else "#444444"
        axes.errorbar(x, y, [100 * p.error for p in some], fmt=style, color=colour, linewidth=1,
                      elinewidth=0.6, label=f"measured, waiting for {label}")  # fmt: skip
        for number, (p, place) in enumerate(zip(some, zip(x, y, strict=True), strict=True)):
            offset = (6, -10) if some is aimed else (-8, (14, -22, 22)[number])
            name = p.name[1:] if some is aimed else p.name
            axes.annotate(name, place, offset, textcoords="offset points", fontsize=7)
    x = [1e3 * getattr(p, which) for p in points]
    axes.plot(x, [100 * (p.expected - base) for p in points], "_", color="#D55E00", markersize=13,
              label="expected by the calibration")  # fmt: skip


def main() -> None:
    """Run all policies in turn."""
    given = options(
        "quality",
        network={"choices": ("fashion", "cifar"), "default": "fashion"},
        seconds={"type": float, "default": SECONDS, "help": "mean delay of a unit"},
        weights={"help": "another weights file of the code, from the repository's root"},
    )
    given.repeats = 1 if given.repeats == 5 else given.repeats
    given.out = given.out / given.network
    job = f"jobs/lab/{given.network}.toml"
    sets = [] if given.weights is None else [f'code.weights="{(ROOT / given.weights).resolve()}"']
    quality = read_table(Job.read(ROOT / job, sets))
    if quality is None:
        raise SystemExit(f"first: python -m mpicoded calibrate {job}")
    found = [
        Scheme(s.name, s.job, (*s.sets, *sets), s.ranks, s.queries)
        for s in schemes(job, quality, given)
    ]
    with lab(given):
        runs = interleave(found, given)
    points = [Point.of(each) for each in runs]
    tell(points, quality)
    picture(points, quality, str((given.out / "quality.png").resolve()))


if __name__ == "__main__":
    main()
