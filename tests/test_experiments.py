"""The experiments of jobs/lab: their jobs can be planned, and a short one runs on a real lab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpicoded.errors import LabError
from mpicoded.lab import cgroup, machine

ROOT = Path(__file__).parents[1]
DATA = "MPICODED_DATA"
OURS = ("battery", "outages")  # on the bundled digits
SETS = ("healthy", "failures", "stragglers", "throttled", "accuracy")


def experiment(name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "jobs" / "lab" / f"{name}.py", *words]
    return subprocess.run(
        [str(word) for word in command], text=True, capture_output=True, timeout=300, check=False
    )


@pytest.mark.parametrize("name", [*OURS, *SETS])
def test_all_jobs_can_be_planned(name: str, tmp_path: Path) -> None:
    if name in SETS and not os.environ.get(DATA):
        pytest.skip(f"needs {DATA} with cifar-10/ and fashion-mnist/")
    ended = experiment(name, "--plan", "--out", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "rank" in ended.stdout


def test_a_short_battery_on_a_real_lab(tmp_path: Path) -> None:
    try:
        machine.check_tools()
        cgroup.find()
        machine.check_kernel("mpicoded-try", shared=False)
    except LabError as error:
        pytest.skip(str(error))
    ended = experiment("battery", "--repeats", "2", "--queries", "25", "--out", tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 runs, 50 queries answered" in ended.stdout
    assert "0 lost, 0 hangs, 0 runs that failed" in ended.stdout
