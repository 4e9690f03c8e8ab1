"""Experiment e: a link is down for 10 s; a node reboots with its MPI daemon; the leader is killed.

    python jobs/lab/outages.py

Every query is answered once, whatever happens. Told is how long answers stood still.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bench import ROOT, lab, mpicoded, options

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import load
from mpicoded.runtime.lab_line import LAB_LINE

JOB = "jobs/quickstart.toml"
PACE = '{kind="delay", rank="all", seconds=0.05}'  # the run is to last longer than the outage
FAULTS = {
    "link": '{kind="link", rank=3, start=0.3, seconds=10.0}',
    "reboot": '{kind="reboot", rank=3, start=0.3, seconds=10.0}',
    "leader": "",
}


def command(file: Path, fault: str, queries: int) -> list[str]:
    """Return the words that run the job with that fault."""
    faults = ", ".join(filter(None, (PACE, fault)))
    sets = (f"faults=[{faults}]", f'results.file="{file}"', f"input.limit={queries}",
            "results.flush=0.2")  # fmt: skip
    words = [word for each in sets for word in ("--set", each)]
    return [sys.executable, "-m", "mpicoded", "lab", "run", JOB, "-n", "9", *words, "--overwrite"]


def leader() -> int | None:
    """Return the pid of rank 0 of the job in the lab, once it has begun."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                env = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"OMPI_COMM_WORLD_RANK=0" in env and any(
                each.startswith(LAB_LINE.encode()) for each in env
            ):
                return int(entry.name)
    return None


def answered(file: Path) -> int:
    """Return how many answers the file holds."""
    try:
        return int((load(file).queries["mode"] != Mode.PENDING).sum())
    except (ResultsError, OSError, KeyError):
        return 0


def kill_leader(file: Path, after: int, limit: float = 60.0) -> None:
    """SIGKILL the leader once the file holds ``after`` answers."""
    end = time.monotonic() + limit
    while answered(file) < after and time.monotonic() < end:
        time.sleep(0.2)
    pid = leader()
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def outage(name: str, file: Path, queries: int) -> tuple[int, float, float]:
    """Run one; return lost queries, the longest stand-still in seconds, and the whole time."""
    file.unlink(missing_ok=True)
    began = time.monotonic()
    running = subprocess.Popen(command(file, FAULTS[name], queries), cwd=ROOT)
    if name == "leader":
        kill_leader(file, queries // 3)
    if running.wait(timeout=300):
        raise SystemExit(f"{name}: the run ended with status {running.returncode}")
    took = time.monotonic() - began
    loaded = load(file)
    modes = loaded.queries["mode"]
    lost = int(((modes == Mode.LOST) | (modes == Mode.PENDING)).sum())
    gaps = np.diff(np.sort(loaded.queries["answered"]))
    return lost, float(gaps.max()), took


def main() -> None:
    """Run each outage --repeats times."""
    given = options("outages")
    given.out.mkdir(parents=True, exist_ok=True)
    if given.plan:
        mpicoded("plan", JOB)
        return
    with lab(given):
        for name in FAULTS:
            stood = []
            for repeat in range(given.repeats):
                lost, gap, took = outage(name, given.out / f"{name}-{repeat}.h5", 300)
                stood.append(gap)
                print(f"{name} {repeat}: {lost} lost, stood still {gap:.1f} s, run {took:.0f} s")
            print(f"{name}: stood still {np.median(stood):.1f} s (median of {given.repeats})")
            file = given.out / f"{name}-0.h5"
            mpicoded("report", str(file), "--figure", str(file.with_suffix(".png")), quiet=True)


if __name__ == "__main__":
    main()
