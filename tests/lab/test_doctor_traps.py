"""Doctor on a lab: real links between network namespaces, and the traps of real clusters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launching import environment
from mpicoded.cluster_tools.lab import shell, up
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.network import HOLE, NO_BUCKET
from mpicoded.cluster_tools.lab.spec import Node, Spec, equal
from mpicoded.cluster_tools.lab.state import Home
from mpicoded.cluster_tools.launch import hostfile

ROOT = Path(__file__).parents[2]
Examine = Callable[..., tuple[int, str]]
# Packets that open a connection (SYN without ACK) go to nowhere.
NO_SYN = (
    "protocol ip pref 1 u32 match ip protocol 6 0xff match u8 0x02 0x12 at 33 "
    "action mirred egress redirect dev hole"
)


@pytest.fixture
def lab(home: Home) -> Lab:
    spec = equal(3, 0.2, 50_000_000, None, "switched", 128)
    up.up(home, spec)
    return Lab.of(home, spec)


@pytest.fixture
def examine(home: Home, tmp_path: Path) -> Examine:
    """``examine(*words)`` runs the doctor on node 0; its status and what it printed."""

    def examine(*words: str, **env: str) -> tuple[int, str]:
        agent, spec = f"/bin/sh {home.agent}", home.need().spec
        names = [spec.address(i) for i in range(len(spec.nodes))]
        (tmp_path / "hosts").write_text("".join(f"{name} slots=1\n" for name in names))
        doctor = [sys.executable, "-m", "mpicoded", "doctor", str(tmp_path / "hosts")]
        done = subprocess.run(
            [*agent.split(), "--exec", "0", *doctor, "--agent", agent, *words],
            env=environment("openmpi", {"PYTHONPATH": str(ROOT), **env}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    return examine


def ip(lab: Lab, node: int, *lines: str, tool: str = "ip") -> None:
    text = "".join(line + "\n" for line in lines)
    shell.run([tool, "-n", lab.network.namespace(node), "-batch", "-"], text)


def test_nodes_that_are_well(examine, lab, tmp_path):
    made = tmp_path / "made"
    status, text = examine("--interface", "eth0", "--write", str(made))
    assert status == 0, text
    assert "3 of 3 hosts answer; 0 errors, " in text
    rows = [line.split() for line in text.splitlines() if " eth0 " in line]
    names = [lab.spec.address(i) for i in range(3)]
    assert sorted(row[:2] for row in rows) == sorted([a, b] for a in names for b in names if a != b)
    assert all(row[2:5] == ["eth0", row[1], "IPv4"] for row in rows)
    assert [host.name for host in hostfile.read(made)] == names
    first = made.read_text().splitlines()[0]
    assert first == f"# mpicoded launch JOB --hostfile {made} --interface eth0"


def test_traps_of_docker_and_of_ipv6_on_some_nodes(examine, lab):
    for node in range(3):
        bridge = ("link add docker0 type bridge", "addr add 172.17.0.1/16 dev docker0")
        ip(lab, node, *bridge, "link set docker0 up")
    for node in (0, 1):
        ip(lab, node, f"addr add fd00:77::{node + 1}/64 dev eth0 nodad")
    status, text = examine("--limit", "18")
    n0, n1, n2 = (lab.spec.address(i) for i in range(3))
    assert status == 1
    assert f"error: {n0}, {n1}, {n2}: have the same address, 172.17.0.1 on docker0" in text, text
    assert f"warning: {n0}: {n2} cannot reach fd00:77::1 on eth0 (Network is unreachable)" in text
    cures = "--interface eth0 and export OMPI_MCA_btl_tcp_disable_family=6"
    assert f"), but does well with {cures}: do so for launch" in text, text
    status, text = examine("--interface", "eth0", OMPI_MCA_btl_tcp_disable_family="6")
    assert status == 0 and "docker0" not in text, text


def test_a_link_that_is_down_and_one_way_that_is_closed(examine, lab):
    lab.network.set_link(2, False)
    ip(lab, 1, *HOLE)
    ip(lab, 1, f"qdisc replace dev hole root {NO_BUCKET}", "qdisc add dev eth0 ingress", tool="tc")
    ip(lab, 1, f"filter add dev eth0 parent ffff: {NO_SYN}", tool="tc")
    n0, n1, n2 = (lab.spec.address(i) for i in range(3))
    status, text = examine("--interface", "eth0", "--limit", "18")
    assert status == 1
    closed = f"error: {n0}: does not reach {n1} ({n1}: timed out), which reaches it at {n0}; look"
    assert closed in text, text
    assert f"error: {n0}, {n2}: do not reach each other ({n2}: " in text
    assert f"error: {n1}, {n2}: do not reach each other ({n2}: " in text


def test_a_node_with_little_memory(home, examine):
    nodes = Node("n0", 1.0, None, None), Node("n1", 0.9, None, 2**27)
    up.up(home, Spec(nodes))
    home.change(lift=False)
    status, text = examine("--interface", "eth0")
    assert status == 1 and "error: 10.77.0.2: import torch was killed at " in text, text
    assert "2 of 2 hosts answer; 1 errors, " in text, "mpirun started on the other"
