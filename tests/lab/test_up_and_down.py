"""A lab is built once, rebuilt when it is to be another, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

from mpicoded.cluster_tools.lab import cgroup, machine, network, up
from mpicoded.cluster_tools.lab.network import Network
from mpicoded.cluster_tools.lab.spec import Node, Spec, equal
from mpicoded.cluster_tools.lab.status import measure, table
from mpicoded.errors import LabError


def spec_of(nodes: int, **more: object) -> Spec:
    about = {"cpu": 0.2, "bits": 50_000_000, "memory": 2**28, "medium": "switched", "vectors": 128}
    return equal(nodes, **{**about, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("medium", ["switched", "shared"])
def test_up_twice_status_down_twice(home, medium):
    spec = spec_of(3, medium=medium)
    assert up.up(home, spec) == "built"
    inode = (network.NETNS / f"{home.lab}-n1").stat().st_ino
    assert up.up(home, spec) == "unchanged"
    assert (network.NETNS / f"{home.lab}-n1").stat().st_ino == inode
    _, rows = measure(home)
    assert [row.node.name for row in rows] == ["n0", "n1", "n2"]
    assert [row.address for row in rows] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert all(row.cpu == 0.2 and row.traffic.up for row in rows)
    assert all(row.traffic.rate == 50_000_000 and row.processes == 0 for row in rows)
    assert table(rows).row_count == 3
    assert up.up(home, spec_of(2)) == "rebuilt"
    assert len(measure(home)[1]) == 2
    assert up.down(home)
    assert not up.down(home)
    assert up.traces(home) == []


def test_uneven_nodes_have_their_own_limits(home):
    up.up(home, Spec((Node("a", 0.5, 10**7, 2**28), Node("b", 0.05, 2 * 10**7))))
    _, rows = measure(home)
    assert [row.cpu for row in rows] == [0.5, 0.05]
    assert [row.traffic.rate for row in rows] == [10**7, 2 * 10**7]
    group = cgroup.find().group(home.lab, "a")
    name = "memory.max" if group.version == 2 else "memory.limit_in_bytes"
    assert int((group.folders["memory"] / name).read_text()) == 2**28


def test_lab_that_was_half_taken_away_is_built_anew(home):
    up.up(home, spec_of(2))
    subprocess.run(["ip", "netns", "del", f"{home.lab}-n1"], check=True)
    assert up.up(home, spec_of(2)) == "rebuilt"
    assert len(measure(home)[1]) == 2


def test_down_clears_what_has_no_state_file(home):
    up.up(home, spec_of(2))
    home.file.write_text("{")
    with pytest.raises(LabError, match="is damaged"):
        up.up(home, spec_of(2))
    assert up.down(home)


def test_down_ends_what_runs_there(home):
    up.up(home, spec_of(1))
    process = subprocess.Popen(["/bin/sh", str(home.agent), "n0", "sleep", "60"])
    group = cgroup.find().group(home.lab, "n0")
    limit = time.monotonic() + 10
    while process.pid not in group.pids():
        assert time.monotonic() < limit
        time.sleep(0.01)
    up.down(home)
    assert process.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("step", ["build", "limit", "create"])
def test_an_error_on_the_way_leaves_nothing(home, monkeypatch, step):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    owner = cgroup.Group if step == "create" else Network
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(KeyboardInterrupt):
        up.up(home, spec_of(2))
    assert up.traces(home) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_signal_during_up_leaves_nothing(home, lab_verb, number):
    """It comes when the first namespaces stand; 200 nodes take long enough for that."""
    process = lab_verb("up", "--nodes", 200, "--cpu", 0.01)
    limit = time.monotonic() + 30
    while not network.namespaces(home.lab):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=30)
    assert process.returncode != 0
    assert "Traceback" not in err
    assert up.traces(home) == []


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([("token buckets", "sch_tbf", "tc qdisc add dev lo root tbff")], "no token buckets"),
        (
            [("ifb devices", "ifb", "ip link add air type ifbb")],
            r"no ifb devices \(modprobe ifb",
        ),
    ],
)
def test_kernel_without_a_feature_is_refused_in_one_line(home, monkeypatch, features, message):
    monkeypatch.setattr(machine, "FEATURES", tuple(features))
    with pytest.raises(LabError, match=f"this kernel has {message}") as caught:
        up.up(home, spec_of(2))
    assert "\n" not in str(caught.value)
    assert up.traces(home) == []


def test_too_much_is_refused_on_the_command_line(home, lab_verb):
    process = lab_verb("up", "--nodes", 200, "--cpu", 1)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert err.startswith("error: 200 nodes ask for 200 cores and this machine has")
    assert err.count("\n") == 1


def test_verbs_without_a_lab_say_so(home, lab_verb):
    verbs = (["status"], ["fault", "link", "n1"], ["run", "jobs/quickstart.toml"])
    for process in [lab_verb(*words) for words in verbs]:
        _, err = process.communicate(timeout=30)
        assert (process.returncode, err.count("\n")) == (2, 1), err
        assert "no lab is up" in err
