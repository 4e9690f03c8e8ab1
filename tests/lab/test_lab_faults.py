"""Every fault of the lab shows its effect on the machine, and ends."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import pytest

from lab_programs import BUSY, PING, rates, state, wait_for
from mpicoded.cluster_tools.lab.fault_manager import FaultManager
from mpicoded.cluster_tools.lab.inject import inject
from mpicoded.cluster_tools.lab.server import Server
from mpicoded.cluster_tools.lab.status import measure
from mpicoded.errors import LabError


@pytest.fixture
def echo(build, on):
    """A lab of two nodes; ``echo(n)`` of n packets to node 1 so many come back."""
    build(nodes=2, cpu=0.4)
    there = on(1, PING, "echo")
    assert there.stdout.readline() == "here\n"

    def count(packets: int) -> int:
        return int(on(0, PING, "ask", packets).communicate(timeout=60)[0])

    yield count
    there.kill()
    there.communicate()


def test_cpu(build, home, on):
    build(nodes=1, cpu=0.4)
    inject(home, "cpu", "n0", 0.25, None)
    assert float(on(0, BUSY).communicate(timeout=60)[0]) == pytest.approx(0.1, rel=0.15)
    inject(home, "end", "n0", None, None)
    assert float(on(0, BUSY).communicate(timeout=60)[0]) == pytest.approx(0.4, rel=0.15)


@pytest.mark.parametrize("pair", [(0, 1), (1, 0)], ids=["to the node", "from the node"])
def test_rate(build, home, on, pair):
    lab = build(nodes=2, cpu=0.4)
    inject(home, "rate", "n1", "5mbit", None)
    assert rates(on, [pair])[0] == pytest.approx(5e6, rel=0.15)
    inject(home, "end", "n1", None, None)
    assert lab.network.traffic()[1].rate == 50_000_000


def test_link(echo, home):
    assert echo(3) == 3
    inject(home, "link", "n1", None, None)
    assert echo(3) == 0
    assert [row.traffic.up for row in measure(home)[1]] == [True, False]
    inject(home, "end", "n1", None, None)
    assert echo(3) == 3


def test_loss(echo, home):
    assert echo(5) == 5  # the nodes know one another's hardware addresses now
    try:
        inject(home, "loss", "n1", 0.3, None)
    except LabError as error:
        assert "this kernel cannot lose packets" in str(error)
        pytest.skip(str(error))
    assert 120 < echo(400) < 280  # each way 70 % come through: 49 % of the answers, 196 of them
    inject(home, "end", "n1", None, None)
    assert echo(20) == 20


def test_freeze_stops_ranks_only(build, home):
    lab = build(nodes=1)
    agent = ["/bin/sh", str(home.agent), "--exec", "n0"]
    rank = subprocess.Popen([*agent, "env", "OMPI_COMM_WORLD_RANK=3", "sleep", "60"])
    daemon = subprocess.Popen([*agent, "sleep", "60"])
    wait_for(lambda: lab.ranks(0) == {rank.pid: 3} and daemon.pid in lab.group(0).pids())
    inject(home, "freeze", "n0", None, None)
    wait_for(lambda: state(rank.pid) == "T")
    wait_for(lambda: state(daemon.pid) == "S")
    inject(home, "end", "n0", None, None)
    wait_for(lambda: state(rank.pid) == "S")
    for process in (rank, daemon):
        process.kill()
        process.wait()


def test_reboot_kills_all_and_the_node_is_away(build, home):
    lab = build(nodes=2)
    agent = ["/bin/sh", str(home.agent), "n1"]
    victim = subprocess.Popen([*agent, "sleep 60 & setsid sleep 60 & wait"])
    wait_for(lambda: len(lab.group(1).pids()) == 3)
    began = time.monotonic()
    command = "from mpicoded.cluster_tools.lab.inject import inject; "
    command += "from mpicoded.cluster_tools.lab.state import Home; "
    command += f"inject(Home({home.name!r}), 'reboot', 'n1', None, 1.5)"
    reboot = subprocess.Popen([sys.executable, "-c", command])
    assert victim.wait(10) == -signal.SIGKILL
    assert lab.group(1).pids() == []
    wait_for(lambda: not lab.network.traffic()[1].up)
    refused = subprocess.run([*agent, "true"], capture_output=True, text=True, timeout=10)
    assert (refused.returncode, refused.stderr) == (255, "lab: n1: no route to host\n")
    assert reboot.wait(20) == 0
    assert time.monotonic() - began > 1.5
    assert lab.network.traffic()[1].up
    subprocess.run([*agent, "true"], timeout=10, check=True)


def test_socket_is_for_root_only(home, build):
    """What listens on it could do anything to the nodes."""
    line = Server(FaultManager(build(nodes=1)))
    line.start()
    assert home.line.stat().st_mode & 0o777 == 0o600
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(home.line))
    line.stop()
