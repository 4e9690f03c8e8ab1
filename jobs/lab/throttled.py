"""Experiment d: ADCNN's scenario. Half of the workers are throttled in the middle of the run.

    python jobs/lab/throttled.py [--repeats 5] [--queries 90]

Two of eight nodes keep 45 % of their CPU and two 24 % from one third of the queries to two thirds
(Zhang et al., ICPP 2020: 241 -> 392 ms, 351 ms after re-allocation). Drawn is latency over time.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from bench import COLOURS, Runs, Scheme, interleave, lab, options
from matplotlib.figure import Figure

JOB = "jobs/lab/resnet18.toml"
KEPT = {1: 0.45, 2: 0.45, 3: 0.24, 4: 0.24}  # rank: share of its CPU
THROTTLE = ", ".join(
    f'{{kind="cpu", rank={rank}, share={share}, start=0.3333, stop=0.6667}}'
    for rank, share in KEPT.items()
)
SCHEMES = {
    "uncoded 8": ("code.k=8",),
    "uncoded 24 shared": ("code.k=24", "runtime.sharing=true"),
    "learned 6+2": ('code.name="learned"', "code.untrained=true", "code.k=6", "code.r=2"),
}
SETTLE = 3  # queries after a change that are still part of it


def phases(runs: Runs) -> list[float]:
    """Median seconds before, at the beginning of, later in, and after the throttling."""
    seconds = np.stack([file.queries["latency"] for file in runs.files])  # (repeats, queries)
    count = seconds.shape[1]
    first, last = round(count / 3), round(2 * count / 3)
    edges = [(0, first), (first, first + SETTLE), (first + SETTLE, last), (last + SETTLE, count)]
    return [float(np.nanmedian(seconds[:, start:stop])) for start, stop in edges]


def picture(all_runs: list[Runs], path: str) -> None:
    """Draw the median latency of every query over the repeats."""
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 4), layout="constrained")
        axes = figure.subplots()
        for row, runs in enumerate(all_runs):
            seconds = np.nanmedian([file.queries["latency"] for file in runs.files], axis=0)
            axes.plot(1e3 * seconds, color=COLOURS[row], label=runs.scheme.name, linewidth=1.4)
        count = len(seconds)
        axes.axvspan(
            count / 3, 2 * count / 3, color="#8A8A8A", alpha=0.15, label="4 of 8 throttled"
        )
        axes.set(xlabel="query", ylabel="latency, ms", ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
        figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def main() -> None:
    """Run all schemes in turn and tell their latency before, during and after."""
    given = options("throttled")
    schemes = [
        Scheme(name, JOB, (*sets, f"faults=[{THROTTLE}]"), queries=max(given.queries, 90), warm=0)
        for name, sets in SCHEMES.items()
    ]
    with lab(given):
        runs = interleave(schemes, given)
    print("median ms: before | first three queries | then | after")
    for each in runs:
        print(f"{each.scheme.name:20s}", " | ".join(f"{1e3 * s:.0f}" for s in phases(each)))
    picture(runs, str(given.out / "throttled.png"))


if __name__ == "__main__":
    main()
