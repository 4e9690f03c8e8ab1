"""Experiment f: latency and accuracy of the same run, for every pattern of silent workers.

    python jobs/lab/accuracy.py [--network fashion|cifar] [--queries 660]

k = 4 shards, r = 2 parity units on six workers. A third of the queries loses nothing, a third one
worker, a third two, all sets of workers in turn. The full test set without a lab:
`python -m mpicoded evaluate jobs/lab/fashion.toml`.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from bench import ROOT, Runs, Scheme, interleave, lab, options
from matplotlib.figure import Figure

from mpicoded.answer import Mode
from mpicoded.results import Loaded

FAULTS = (
    '{kind="pattern", missing=0, start=0.0, stop=0.3333}, '
    '{kind="pattern", missing=1, start=0.3333, stop=0.6667}, '
    '{kind="pattern", missing=2, start=0.6667, stop=1.0}'
)


def rows(loaded: Loaded) -> list[tuple[int, int, float, float, float, float, float]]:
    """Return (missing data units, queries, p50, p99, accuracy, base's accuracy, agreement)."""
    missing = 4 - loaded.queries["arrived"][:, 0, :4].sum(1)
    label, own, base = (
        loaded.labels["label"][:, 0],
        loaded.predictions["class"][:, 0],
        loaded.predictions["base_class"][:, 0],
    )
    told = []
    for count in range(3):
        here = (missing == count) & (loaded.queries["mode"] != Mode.LOST)
        here[:3] = False
        seconds = loaded.queries["latency"][here]
        p50, p99 = np.percentile(seconds, (50, 99))
        told.append((count, int(here.sum()), p50, p99, (own == label)[here].mean(),
                     (base == label)[here].mean(), (own == base)[here].mean()))  # fmt: skip
    return told


def tell(loaded: Loaded) -> None:
    """Print a line for each number of missing data units, and one for each pattern."""
    for count, queries, p50, p99, own, base, same in rows(loaded):
        print(
            f"{count} data units missing, {queries:4d} queries: p50 {1e3 * p50:.0f} ms, p99 "
            f"{1e3 * p99:.0f} ms, accuracy {own:.2%}, unsplit {base:.2%}, the same {same:.2%}"
        )
    lost = int((loaded.queries["mode"] == Mode.LOST).sum())
    print(f"{lost} lost")
    arrived = loaded.queries["arrived"][:, 0].astype(int)
    same = loaded.predictions["class"][:, 0] == loaded.predictions["base_class"][:, 0]
    for pattern in np.unique(arrived, axis=0)[::-1]:
        here = (arrived == pattern).all(1)
        p50 = np.median(loaded.queries["latency"][here])
        used = "".join(map(str, pattern))
        print(
            f"  used {used}: {here.sum():4d} queries, p50 {1e3 * p50:.0f} ms, the unsplit model's "
            f"answer {same[here].mean():.1%}"
        )


def picture(runs: Runs, path: str) -> None:
    """Draw accuracy over latency, a point for each number of missing data units."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for count, _, p50, p99, own, base, _ in rows(runs.files[0]):
            axes.plot([1e3 * p50, 1e3 * p99], [100 * own] * 2, color="#0072B2", linewidth=1)
            axes.plot(1e3 * p50, 100 * own, "o", color="#0072B2")
            axes.plot(1e3 * p50, 100 * base, "_", color="#D55E00", markersize=14)
            axes.annotate(f" {count} missing", (1e3 * p50, 100 * own), va="bottom", fontsize=9)
        axes.set(xlabel="latency, ms: p50 (point) to p99 (end of the line)", ylabel="accuracy, %")
        axes.set_title(
            f"{runs.scheme.name}: point = this run, dash = unsplit model on the same images",
            fontsize=9,
        )
        axes.margins(0.15, 0.3)
        figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def main() -> None:
    """Run the network once with every pattern."""
    given = options("accuracy", network={"choices": ("fashion", "cifar"), "default": "fashion"})
    given.repeats, given.out = 1, given.out / given.network
    queries = given.queries if given.queries != 40 else 660
    sets = (f"faults=[{FAULTS}]", "results.unsplit=true", "runtime.window=1")
    scheme = Scheme(given.network, f"jobs/lab/{given.network}.toml", sets, ranks=7, queries=queries)
    with lab(given):
        (runs,) = interleave([scheme], given)
    tell(runs.files[0])
    picture(runs, str((given.out / "accuracy.png").relative_to(ROOT)))


if __name__ == "__main__":
    main()
