"""The experiments of jobs/lab: all their jobs can be planned. A short one runs in tests/lab."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = "MPICODED_DATA"
Planned = subprocess.CompletedProcess[str]
OURS = ("battery", "outages")  # on the bundled digits
SETS = ("planners", "healthy", "failures", "stragglers", "throttled", "accuracy")


def experiment(name: str, *words: str | Path) -> Planned:
    command = [sys.executable, ROOT / "jobs" / "lab" / f"{name}.py", *words]
    return subprocess.run(
        [str(word) for word in command], text=True, capture_output=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Planned]:
    """Plan those that can be, at the same time."""
    names = [*OURS, *(SETS if os.environ.get(DATA) else ())]
    with ThreadPoolExecutor(2) as pool:
        folders = [tmp_path_factory.mktemp(name) for name in names]
        plans = pool.map(lambda name, to: experiment(name, "--plan", "--out", to), names, folders)
        return dict(zip(names, plans, strict=True))


@pytest.mark.parametrize("name", [*OURS, *SETS])
def test_all_jobs_can_be_planned(name: str, planned: dict[str, Planned]) -> None:
    if name not in planned:
        pytest.skip(f"needs {DATA} with cifar-10/ and fashion-mnist/")
    ended = planned[name]
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "rank" in ended.stdout
