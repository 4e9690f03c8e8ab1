"""The fault battery: runs one after the other, each with other faults, drawn from its number.

    python jobs/lab/battery.py [--repeats 50] [--queries 60]
    python jobs/lab/battery.py --start [--runs 100] [--seed 1] [--only RUN …] [--by mpirun]
        [--mpich] [--limit 60]

Asked: no query lost, no run that hangs, each query answered once. With `--start` there is no lab:
processes are struck at any moment from the first to the last (strike.py), and more is asked
(trial.py); `--only` repeats one run, and the logs of those that failed are kept. Every other run is
of a direct plan: eight strips without a code, whose workers exchange halos.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench import ROOT, lab, mpicoded, options
from strike import Strike
from trial import DIRECT, Trial, tell

from mpicoded.answer import Mode
from mpicoded.cluster_tools.launch.mpi import find
from mpicoded.results import load

JOB = "jobs/quickstart.toml"
HANGS = 120.0  # s
MPICH = Path(sys.prefix) / "mpich" / "bin" / "mpirun"
MORE: dict[str, dict[str, Any]] = {
    "start": {"action": "store_true", "help": "strike processes, also while they start and end"},
    "runs": {"type": int, "default": 100, "help": "with --start: how many"},
    "seed": {"type": int, "default": 1},
    "only": {"type": int, "nargs": "+", "help": "these runs alone, by their numbers"},
    "by": {"choices": ("launch", "mpirun"), "default": "launch"},
    "mpich": {"action": "store_true"},
    "limit": {"type": float, "default": 60.0, "help": "seconds from a strike to the end"},
}


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


def direct(run: int) -> bool:
    """Return True if a run is of a direct plan."""
    return run % 2 == 1


def main() -> None:
    """Run them all and count."""
    given = options("battery", **MORE)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.plan:
        mpicoded("plan", JOB)
    elif given.start:
        raise SystemExit(strikes(given))
    else:
        runs(given)


def strikes(given: argparse.Namespace) -> int:
    """Strike each run once; return the exit status: 1 if anything was found."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` had it ignored
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # end what runs
    mpi = find(str(MPICH) if given.mpich else None)
    queries = 200 if given.queries == 40 else given.queries
    how = f"--seed {given.seed} --queries {queries} --by {given.by}{' --mpich' * given.mpich}"
    chosen = range(given.runs) if given.only is None else given.only
    trials = dict[int, Trial]()
    for run in chosen:
        folder = given.out / f"{given.by}-{mpi.kind}-{given.seed}-{run:03d}"
        shutil.rmtree(folder, ignore_errors=True)
        strike = Strike.draw(given.seed, run, given.by)
        trials[run] = trial = Trial(
            strike, given.by, mpi, queries, given.limit, folder, direct(run)
        )
        began = time.monotonic()
        trial.run()
        said = "; ".join(f"{name.upper()}: {what}" for name, what in trial.findings.items()) or "ok"
        said = f"nothing struck, {said}" if trial.missed else said
        print(f"{run} {strike}: {said}; {time.monotonic() - began:.1f} s", flush=True)
        if not trial.findings:
            shutil.rmtree(folder)
    struck = sum(not trial.missed for trial in trials.values())
    print(f"\n{len(trials)} runs by {given.by} ({struck} struck), {mpi.name}")
    print(tell([trial.findings for trial in trials.values()]))
    if failed := [str(run) for run, trial in trials.items() if trial.findings]:
        print(f"again: python jobs/lab/battery.py --start {how} --only {' '.join(failed)}")
    return int(bool(failed))


def runs(given: argparse.Namespace) -> None:
    """Run the lab with other faults every time."""
    repeats = 50 if given.repeats == 5 else given.repeats
    queries = 60 if given.queries == 40 else given.queries
    lost = answered = hangs = failed = degraded = 0
    with lab(given):
        for run in range(repeats):
            file = given.out / f"{run:02d}.h5"
            drawn = f"faults=[{', '.join(faults(run))}]"
            sets = (drawn, f"input.limit={queries}", f'results.file="{file}"',
                    "results.unsplit=false", "results.flush=0.2",
                    *DIRECT * direct(run))  # fmt: skip
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
                f"{run + 1}/{repeats} {'direct, ' * direct(run)}{', '.join(faults(run))}: "
                f"{lost} lost so far, {time.monotonic() - began:.1f} s",
                flush=True,
            )
    print(
        f"{repeats} runs, {answered} queries answered ({degraded} degraded), {lost} lost, "
        f"{hangs} hangs, {failed} runs that failed"
    )


if __name__ == "__main__":
    main()
