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
LOOK = 0.05  # s between two looks at the file, which is flushed every 0.2 s
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


def watch(running: subprocess.Popen[bytes], file: Path, kill_after: int | None) -> float:
    """Look at the file until the run ends; return the longest time without a new answer.

    The leader is killed once there are ``kill_after`` answers.
    """
    had, since, longest = 0, time.monotonic(), 0.0
    while running.poll() is None:
        count, now = answered(file), time.monotonic()
        if count > had:
            longest = max(longest, now - since if had else 0.0)
            had, since = count, now
        if kill_after is not None and count >= kill_after and (pid := leader()) is not None:
            os.kill(pid, signal.SIGKILL)
            kill_after = None
        time.sleep(LOOK)
    return longest


def outage(name: str, file: Path, queries: int) -> tuple[int, float, float]:
    """Run one; return lost queries, the longest stand-still in seconds, and the whole time."""
    file.unlink(missing_ok=True)
    began = time.monotonic()
    running = subprocess.Popen(command(file, FAULTS[name], queries), cwd=ROOT)
    stood = watch(running, file, queries // 3 if name == "leader" else None)
    if running.returncode:
        raise SystemExit(f"{name}: the run ended with status {running.returncode}")
    modes = load(file).queries["mode"]
    lost = int(((modes == Mode.LOST) | (modes == Mode.PENDING)).sum())
    return lost, stood, time.monotonic() - began


def main() -> None:
    """Run each outage --repeats times."""
    given = options("outages", only={"choices": tuple(FAULTS), "default": None})
    given.out.mkdir(parents=True, exist_ok=True)
    if given.plan:
        mpicoded("plan", JOB)
        return
    with lab(given):
        for name in [given.only] if given.only else FAULTS:
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
