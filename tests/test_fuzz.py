"""Some hundred damaged files through all verbs; jobs/measure/fuzz.py does it for hours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest

import fuzzing
import mutations
from fuzzing import Ended

FUZZ = Path(__file__).parents[1] / "jobs" / "measure" / "fuzz.py"
LINE = "error: x\n"


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    """As many as are done in the time, so that a busy machine makes it shorter, not longer."""

    def fuzz(seed: int) -> subprocess.CompletedProcess[str]:
        words = ["--seconds", "30", "--rounds", "200", "--seed", str(seed)]
        command = [sys.executable, FUZZ, *words, "--keep", tmp_path / str(seed)]
        return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    with ThreadPoolExecutor(2) as pool:
        for seed, done in enumerate(pool.map(fuzz, range(2))):
            assert done.returncode == 0, done.stdout + done.stderr
            told = rf"(\d+) mutations, seed {seed}; findings: none"
            found = re.search(told, done.stdout)
            assert found and int(found[1]) >= 10, done.stdout


@pytest.mark.parametrize(
    ("ended", "fault"),
    [
        (Ended(0, "fine", 1, 1), None),
        (Ended(2, LINE, 1, 1), None),
        (Ended(2, "r0 | a note\n" + LINE, 1, 1), None),
        (Ended(2, "", 1, 1), "not one line"),
        (Ended(2, LINE + "more\n", 1, 1), "not one line"),
        (Ended(2, LINE + LINE, 1, 1), "not one line"),
        (Ended(1, LINE, 1, 1), "status 1"),
        (Ended(1, "Traceback (most recent call last):\n", 1, 1), "traceback"),
        (Ended(-9, "", 1, 1), "hang"),
        (Ended(-11, "", 1, 1), "signal SIGSEGV"),
        (Ended(0, "", 1, 3 << 30), "memory: 3072 MB"),
    ],
)
def test_what_is_a_finding(ended: Ended, fault: str | None) -> None:
    assert ended.fault() == fault


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import os; os.kill(os.getpid(), 7)", "signal SIGBUS"),
        ("open('fifo').read()", "hang"),
        ("bytearray(1 << 20)", "memory"),
        ("raise KeyError", "traceback"),
    ],
)
def test_findings_are_found(
    tmp_path: Path, code: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.setattr(fuzzing, "WALL", 1 if fault == "hang" else 60)
    if fault == "memory":
        monkeypatch.setattr(fuzzing, "MEMORY", 1 << 20)
    monkeypatch.setattr(fuzzing, "_verb", lambda args: exec(code) or 0)
    assert str(fuzzing.call([], tmp_path).fault()).startswith(fault)


def test_a_round_of_a_seed_is_always_the_same(tmp_path: Path) -> None:
    for mutation in (mutations.of_bytes, mutations.of_toml):
        made = set()
        for _ in range(2):
            (tmp_path / "x").write_text(fuzzing.JOB)
            mutation(tmp_path / "x", Random("0 7"))
            made.add((tmp_path / "x").read_bytes())
        assert len(made) == 1 and made != {fuzzing.JOB.encode()}
