"""The fault battery: runs one after the other, each with other faults, drawn from its number.

    python jobs/lab/battery.py [--repeats 50] [--queries 60]

Asked: no query lost, no run that hangs, each query answered once.
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
from bench import ROOT, lab, mpicoded, options

from mpicoded.answer import Mode
from mpicoded.results import load

JOB = "jobs/quickstart.toml"
HANGS = 120.0  # s


def faults(run: int) -> list[str]:
    """Draw one to three faults of different kinds, each on another rank."""
    draw = np.random.default_rng(run)
    kinds = (
        'kind="crash"',
        'kind="freeze", seconds=1.5',
        'kind="silence", probability=0.3',
        'kind="slow", factor=10.0',
        'kind="delay", seconds=0.05, tail="exponential"',
        'kind="link", seconds=3.0',
        'kind="cpu", share=0.1, seconds=3.0',
        'kind="rate", mbit=5.0, seconds=3.0',
        'kind="reboot", seconds=5.0',
    )
    ranks = draw.permutation(np.arange(1, 9))
    chosen = draw.choice(len(kinds), size=draw.integers(1, 4), replace=False)
    return [
        f"{{{kinds[kind]}, rank={rank}, start={draw.uniform(0.0, 0.7):.2f}}}"
        for kind, rank in zip(chosen, ranks, strict=False)
    ]


def main() -> None:
    """Run them all and count."""
    given = options("battery")
    runs = 50 if given.repeats == 5 else given.repeats
    queries = 60 if given.queries == 40 else given.queries
    given.out.mkdir(parents=True, exist_ok=True)
    if given.plan:
        mpicoded("plan", JOB)
        return
    lost = answered = hangs = failed = degraded = 0
    with lab(given):
        for run in range(runs):
            file = given.out / f"{run:02d}.h5"
            drawn = f"faults=[{', '.join(faults(run))}]"
            sets = (drawn, f"input.limit={queries}", f'results.file="{file}"',
                    "results.unsplit=false", "results.flush=0.2")  # fmt: skip
            words = [word for each in sets for word in ("--set", each)]
            command = [sys.executable, "-m", "mpicoded", "lab", "run", JOB, "-n", "9", *words]
            began = time.monotonic()
            try:
                ended = subprocess.run([*command, "--overwrite"], cwd=ROOT, timeout=HANGS,
                                       capture_output=True, text=True, check=False)  # fmt: skip
                failed += ended.returncode != 0
                if ended.returncode:
                    print(ended.stdout[-2000:], ended.stderr[-2000:])
            except subprocess.TimeoutExpired:
                hangs += 1
            mode = load(file).queries["mode"]
            lost += int(np.isin(mode, (Mode.LOST, Mode.PENDING)).sum())
            degraded += int((mode == Mode.DEGRADED).sum())
            answered += int(np.isin(mode, (Mode.AVAILABLE, Mode.DEGRADED)).sum())
            print(
                f"{run + 1}/{runs} {', '.join(faults(run))}: {lost} lost so far, "
                f"{time.monotonic() - began:.1f} s",
                flush=True,
            )
    print(
        f"{runs} runs, {answered} queries answered ({degraded} degraded), {lost} lost, "
        f"{hangs} hangs, {failed} runs that failed"
    )


if __name__ == "__main__":
    main()
