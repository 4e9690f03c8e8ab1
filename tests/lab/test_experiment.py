"""A short variant of an experiment of jobs/lab, on a real lab."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BATTERY = Path(__file__).parents[2] / "jobs" / "lab" / "battery.py"


@pytest.mark.usefixtures("home")  # it skips where no lab can be built
def test_a_short_battery(tmp_path):
    words = ("--repeats", "1", "--queries", "25", "--out", tmp_path)
    command = [sys.executable, BATTERY, *words]
    ended = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 runs, 25 queries answered" in ended.stdout
    assert "0 lost, 0 hangs, 0 runs that failed" in ended.stdout
