"""Control groups of version 2 on a tree of plain files, and which version is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpicoded.cluster_tools.lab.cgroup import Cgroups, Group, find, quota
from mpicoded.errors import LabError


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        (0.2, (2000, 10_000)),  # 10 ms are short enough
        (0.1, (1000, 10_000)),
        (0.02, (1000, 50_000)),  # the kernel takes no quota below 1 ms: a longer period
        (0.03, (1000, 33_334)),
        (0.0001, (1000, 1_000_000)),  # nor a longer period than 1 s
        (2.5, (25_000, 10_000)),
    ],
)
def test_quota_has_the_shortest_period(share, wanted):
    assert quota(share) == wanted


def mounts(folder: Path, *lines: str) -> Path:
    file = folder / "mountinfo"
    file.write_text("".join(f"30 23 0:26 / {line}\n" for line in lines))
    return file


def test_version_1_is_found_where_it_is_mounted(tmp_path):
    file = mounts(
        tmp_path,
        "/sys/fs/cgroup/unified rw - cgroup2 cgroup rw",
        "/sys/fs/cgroup/cpu,cpuacct rw,relatime shared:1 - cgroup cgroup rw,cpu,cpuacct",
        "/a\\040b/memory rw - cgroup cgroup rw,memory",
        "/ rw - ext4 /dev/sda rw",
    )
    found = find(file)
    both = Path("/sys/fs/cgroup/cpu,cpuacct")
    assert found.version == 1
    assert found.roots == {"cpu": both, "cpuacct": both, "memory": Path("/a b/memory")}


def test_version_2_is_found_by_its_controllers(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = find(mounts(tmp_path, f"{tmp_path} rw - cgroup2 cgroup2 rw"))
    assert found.version == 2
    assert set(found.roots.values()) == {tmp_path}


def test_machine_without_them_is_refused(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")  # a Pi as it comes: no memory
    with pytest.raises(LabError, match="no control groups for memory; .*cgroup_enable=memory"):
        find(mounts(tmp_path, f"{tmp_path} rw - cgroup2 cgroup2 rw"))


@pytest.fixture
def group(tmp_path: Path) -> Group:
    groups = Cgroups(2, dict.fromkeys(("cpu", "cpuacct", "memory"), tmp_path))
    groups.delegate("lab")
    for folder in (tmp_path, tmp_path / "lab"):
        assert (folder / "cgroup.subtree_control").read_text() == "+cpu +memory"
    group = groups.group("lab", "n0")
    group.create()
    assert (tmp_path / "lab" / "n0").is_dir()
    for processes, weight in ((9, "900"), (500, "10000"), (None, "10000")):
        groups.weigh("lab", processes)
        assert (tmp_path / "lab" / "cpu.weight").read_text() == weight
    return group


def test_version_2_limits(group):
    folder = group.folders["cpu"]
    group.limit_cpu(0.2)
    group.limit_memory(2**30)
    assert (folder / "cpu.max").read_text() == "2000 10000"
    assert (folder / "memory.max").read_text() == str(2**30)
    assert group.cpu_limit() == 0.2
    group.limit_cpu(None)
    group.limit_memory(None)
    (folder / "cpu.max").write_text("max 100000\n")  # as the kernel shows it
    assert (folder / "memory.max").read_text() == "max"
    assert group.cpu_limit() is None


def test_version_2_lifts_with_one_word(group):
    group.limit_cpu(None)
    assert (group.folders["cpu"] / "cpu.max").read_text() == "max"


def test_version_2_is_measured(group):
    folder = group.folders["cpu"]
    (folder / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nnr_throttled 0\n")
    (folder / "memory.current").write_text("4096\n")
    assert group.cpu_seconds() == 2.5
    assert group.memory() == 4096
    assert group.pids() == []
    group.enter(123)
    assert group.pids() == [123]
