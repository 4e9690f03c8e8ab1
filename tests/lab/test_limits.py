"""Links carry what they are asked to, cores give what they are asked to, memory ends."""

from __future__ import annotations

import signal
import subprocess

import pytest

from lab_programs import BUSY, counted, rates, swap


@pytest.mark.parametrize("rate", [50_000_000, 10_000_000])
def test_switched_links_have_their_rate_each(build, on, rate):
    build(nodes=4, cpu=0.4, rate=rate)
    for found in rates(on, [(0, 1), (2, 3)]):
        assert 0.85 * rate < found < 1.05 * rate


def test_shared_medium_has_its_rate_in_all(build, on):
    """Counted at the switch while both send: one of the two may well get more of it."""
    lab = build(nodes=4, cpu=0.4, rate=40_000_000, medium="shared")
    found = counted(lab.network, on, [(0, 1), (2, 3)], 1.5)
    assert sum(found) == pytest.approx(40e6, rel=0.15)
    assert min(found) > 1e6


@pytest.mark.parametrize("share", [0.2, 0.05])
def test_busy_loop_has_its_share_of_a_core(build, on, share):
    build(nodes=2, cpu=share)
    used = [float(one.communicate(timeout=60)[0]) for one in (on(0, BUSY), on(1, BUSY))]
    assert used == pytest.approx([share, share], rel=0.15)


@pytest.mark.skipif(bool(swap()), reason="with swap a node is slow, and not ended")
def test_memory_has_an_end(build, on):
    build(nodes=2, memory=2**27)
    glutton = on(1, "x = [bytes([1]) * 2**20 for _ in range(400)]; print(len(x))")
    glutton.communicate(timeout=60)
    assert glutton.returncode == -signal.SIGKILL


def test_a_node_is_a_machine_of_its_own(build, on):
    build(nodes=2)
    program = (
        "import os, socket; print(socket.gethostname(), os.environ['TMPDIR'],"
        "os.environ['ONEDNN_MAX_CPU_ISA'], os.environ['ATEN_CPU_CAPABILITY'])"
    )
    first, second = (on(i, program).communicate(timeout=30)[0].split() for i in range(2))
    assert (first[0], second[0]) == ("n0", "n1")
    assert first[1] != second[1]
    assert first[2:] == ["SSE41", "default"]


def test_agent_runs_words_through_a_shell_as_ssh_does(build, home):
    build(nodes=2)
    words = ["/bin/sh", str(home.agent), "10.77.0.2", "hostname;", "echo", "a$((1+1))"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == ["n1", "a2"]


def test_agent_lifts_limits_until_they_begin(build, home):
    lab = build(nodes=2)
    home.change(lift=True)
    subprocess.run(["/bin/sh", str(home.agent), "n1", "true"], timeout=30, check=True)
    assert not lab.limited(1) and lab.limited(0)
    assert lab.network.traffic()[1].rate is None
    lab.limit(())
    assert lab.limited(1)
    assert lab.network.traffic()[1].rate == 50_000_000
