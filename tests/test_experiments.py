"""The experiments of jobs/lab: all their jobs can be planned. A short one runs in tests/lab."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
