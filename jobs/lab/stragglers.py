"""Experiment c: one node at 25 % and at 10 % of its speed; delays with an exponential tail.

    python jobs/lab/stragglers.py [--repeats 5] [--queries 40] [--scales 6]

A straggler is a node whose CPU quota is cut. A delay is added to every worker's every answer, its
mean 0.2 … 1.2 of the healthy median of one stage (CoCoI, section "delay lambda"). There the learned
code also decodes at once, as CoCoI does, instead of waiting for what it knows to be merely late.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from bench import (
    COLOURS,
    COMPARED,
    STYLE,
    Runs,
    Scheme,
    draw,
    interleave,
    lab,
    options,
    ratio,
    tell,
)
from matplotlib.figure import Figure

JOB = "jobs/lab/resnet18.toml"
SPEEDS = (0.25, 0.10)
SCALES = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
DELAYED = COMPARED | {"learned 6+2 at once": (*COMPARED["learned 6+2"], "gather.deadline=0")}


def straggler(share: float) -> str:
    """Return the fault: node 2 has ``share`` of its own CPU, from the first query on."""
    return f'faults=[{{kind="cpu", rank=2, share={share}}}]'


def delay(seconds: float) -> str:
    """Return the fault: every answer of every worker comes later."""
    return f'faults=[{{kind="delay", rank="all", seconds={seconds:.5f}, tail="exponential"}}]'


def count(name: str, what: str) -> int | None:
    """Return the queries of a run: as asked for the code, few for what it is compared with."""
    return None if name.startswith("learned") and "25" not in what else 6


def over_delay(runs: list[Runs], stage: float, path: Path) -> None:
    """Draw the median and the slowest query over the mean delay; ``stage`` is that of scale 1."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, share, title in ((left, 50, "median"), (right, 100, "slowest")):
            for row, name in enumerate(DELAYED):
                mine = runs[row :: len(DELAYED)]
                delays = [1e3 * scale * stage for scale in SCALES[: len(mine)]]
                seconds = [np.concatenate(each.latencies()) for each in mine]
                ms = [1e3 * np.nanpercentile(each, share) for each in seconds]
                axes.plot(delays, ms, "o-", color=COLOURS[row], label=name, markersize=4)
            axes.set(title=f"{title} of {len(seconds[0])} queries", xlabel="mean delay, ms")
            axes.grid(color="#E4E4E4", linewidth=0.6)
        left.set(ylabel="latency, ms", ylim=(0, None))
        right.legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def main() -> None:
    """Run all schemes healthy, with a straggler, with delays."""
    given = options("stragglers", scales={"type": int, "default": len(SCALES)})
    schemes = [
        Scheme(
            f"{name}{what}",
            JOB,
            (*sets, *fault),
            queries=count(name, what),
            repeats=None if count(name, what) is None else 1,
        )
        for name, sets in COMPARED.items()
        for what, fault in (
            (", healthy", ()),
            *((f", one at {share:.0%}", (straggler(share),)) for share in SPEEDS),
        )
    ]
    with lab(given):
        runs = interleave(schemes, given)
        for first in range(0, len(runs), 3):
            healthy = runs[first]
            tell(runs[first : first + 3])
            p99 = runs[first + 2].percentiles()[2] / healthy.percentiles()[0]
            print(f"  p99 with one at 10 % over the healthy p50: {p99:.2f}")
        draw(runs, given.out / "straggler.png", "One straggler")
        if not given.scales:
            return
        stage = np.nanmedian(runs[0].files[0].queries["seconds"])  # s, posting to arrival of a unit
        delayed = [
            Scheme(
                f"{name}, delay {scale}", JOB, (*sets, delay(scale * stage)), queries=8, repeats=1
            )
            for scale in SCALES[: given.scales]
            for name, sets in DELAYED.items()
        ]
        more = interleave(delayed, given)
    tell(more, runs[0])
    for row, scale in enumerate(SCALES[: given.scales]):
        uncoded, *others = more[len(DELAYED) * row : len(DELAYED) * (row + 1)]
        told = [f"{each.scheme.name} {ratio(each, uncoded)[0]:.2f}" for each in others]
        print(f"  mean delay {1e3 * scale * stage:.0f} ms, over uncoded: {', '.join(told)}")
    over_delay(more, stage, given.out / "delay.png")


if __name__ == "__main__":
    main()
