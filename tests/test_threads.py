"""A rank's threads: its share of what its node may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpicoded.runtime import threads


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu_dot_max": "250000 100000\n"}, 3),
        ({"cpu_dot_max": "20000 100000\n"}, 1),
        ({"cpu__cpu.cfs_quota_us": "400000\n", "cpu__cpu.cfs_period_us": "100000\n"}, 4),
    ],
    ids=["v2", "v2, less than one", "v1"],
)
def test_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], cores: int) -> None:
    assert threads.quota(write(tmp_path, **files)) == cores


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"cpu_dot_max": "max 100000\n"},
        {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "1\n"},
    ],
    ids=["no control groups", "v2", "v1"],
)
def test_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    assert threads.quota(write(tmp_path, **files)) > 1000


@pytest.mark.parametrize("name", threads.LOCAL_RANKS)
def test_ranks_on_one_node_share_its_cores(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in threads.LOCAL_RANKS:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setattr(threads, "CGROUPS", write(tmp_path, cpu_dot_max="max 100000"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert threads.own_share() == 8
    monkeypatch.setenv(name, "3")
    assert threads.own_share() == 2
    monkeypatch.setenv(name, "9")
    assert threads.own_share() == 1
