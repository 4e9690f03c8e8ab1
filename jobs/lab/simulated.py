"""Experiment h: the simulator against the lab, setting by setting; p50 and p95 of both.

    python jobs/lab/simulated.py [--network resnet18|vgg16] [--repeats 1] [--queries 20]

The lab is measured first (`mpicoded lab profile`); every setting then runs in the lab, and by
`mpicoded simulate` on what was measured, from the same job. Told is simulated / measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from bench import WARM, Runs, Scheme, interleave, lab, mpicoded, options
from failures import silent
from stragglers import delay, straggler

from mpicoded.results import load

SEEDS = 4
DIRECT = ('plan.exchange="neighbours"', "plan.stages=[]")
LEARNED = ('code.name="learned"', "code.untrained=true")
DEAD = 'faults=[{kind="crash", rank=3}, {kind="crash", rank=6}]'


def settings(job: str) -> list[Scheme]:
    """Return what is compared: healthy, late, silent and dead ranks; gathered and direct plans."""
    coded = (*LEARNED, "code.k=6", "code.r=2")
    return [
        Scheme("uncoded 8", job, ("code.k=8",)),
        Scheme("learned 7+1", job, (*LEARNED, "code.k=7", "code.r=1")),
        Scheme("learned 6+2", job, coded),
        Scheme("replication 4x2", job, ('code.name="replication"', "code.k=4", "code.r=4")),
        Scheme("learned 6+2, a straggler of 10 %", job, (*coded, straggler(0.1))),
        Scheme("learned 6+2, delays", job, (*coded, delay(0.05))),
        Scheme("learned 6+2, two silent", job, (*coded, silent(2))),
        Scheme("learned 6+2, two dead", job, (*coded, DEAD)),
        Scheme("uncoded 8, direct", job, ("code.k=8", *DIRECT)),
        Scheme("uncoded 4, direct", job, ("code.k=4", *DIRECT)),
    ]


def simulated(scheme: Scheme, cluster: Path, given: argparse.Namespace) -> tuple[float, float]:
    """Return p50 and p95 in seconds of a setting on the virtual clock, SEEDS runs as long as it."""
    seconds = list[float]()
    for seed in range(SEEDS):
        file = given.out / f"simulated-{scheme.name.replace(' ', '-')}-{seed}.h5"
        sets = (*scheme.sets, f"input.limit={given.queries + WARM}", "results.unsplit=false",
                f"seed={seed}", f'results.file="{file}"')  # fmt: skip
        words = [part for word in sets for part in ("--set", word)]
        its = ("simulate", scheme.job, "--cluster", str(cluster), *words, "--overwrite")
        mpicoded(*its, quiet=True)
        seconds += load(file).queries["latency"][WARM:].tolist()
    p50, p95 = np.nanpercentile(seconds, (50, 95))
    return float(p50), float(p95)


def main() -> None:
    """Run all settings and print a line each."""
    given = options("simulated", network={"choices": ("resnet18", "vgg16"), "default": "resnet18"})
    job, cluster = f"jobs/lab/{given.network}.toml", given.out / f"{given.network}-cluster.toml"
    given.out.mkdir(parents=True, exist_ok=True)
    with lab(given):
        if not (cluster.exists() or given.plan):
            mpicoded("lab", "profile", job, "--out", str(cluster))
        measured = interleave(settings(job), given)
    print(f"{'':34s}{'measured':>20s}{'simulated':>20s}{'ratio':>16s}")
    for runs in measured:
        print(line(runs, *simulated(runs.scheme, cluster, given)))


def line(runs: Runs, p50: float, p95: float) -> str:
    """Return a setting's p50 and p95, measured and simulated, in ms, and their ratios."""
    was50, was95, _ = runs.percentiles()
    pairs = (f"{1e3 * a:.0f} / {1e3 * b:.0f}" for a, b in ((was50, was95), (p50, p95)))
    ratios = f"{p50 / was50:.3f} / {p95 / was95:.3f}"
    return f"{runs.scheme.name:34s}" + "".join(f"{cell:>20s}" for cell in (*pairs, ratios))


if __name__ == "__main__":
    main()
