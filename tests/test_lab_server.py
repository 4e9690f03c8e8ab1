"""The lab's side of the line, with a lab that does nothing: what it hears and what it answers."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpicoded.cluster_tools.lab.cgroup import Cgroups
from mpicoded.cluster_tools.lab.fault_manager import FaultManager
from mpicoded.cluster_tools.lab.inject import ask
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.running import warnings
from mpicoded.cluster_tools.lab.server import Server
from mpicoded.cluster_tools.lab.spec import equal
from mpicoded.cluster_tools.lab.state import Home, State
from mpicoded.errors import LabError
from mpicoded.processes import started


class Still(Lab):
    """A lab whose nodes are only written down."""

    done: list[Any] = []

    def limit(self, faults: Any) -> None:
        self.done.append(("limit", len(faults)))

    def settle(self, kind: str, index: int, faults: Any) -> None:
        if kind == "loss":
            raise LabError("this kernel cannot")
        self.done.append((kind, index, len(list(faults))))

    def ranks(self, index: int) -> dict[int, int]:
        return {1000 + index: index}


@pytest.fixture
def lab(tmp_path: Path) -> Still:
    home = Home("test", tmp_path)
    spec = equal(3, 0.2, 10**7, None, "switched", 512)
    with home.lock():
        home.write(State(spec, True))
    Still.done = []
    return Still(home, spec, Cgroups(1, {}))


@pytest.fixture
def line(lab: Still) -> Iterator[Server]:
    line = Server(FaultManager(lab))
    line.start()
    yield line
    line.stop()


class Leader:
    """A client of the line that says what it is told to."""

    def __init__(self, lab: Lab) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(5)
        self.socket.connect(str(lab.home.line))
        self.file = self.socket.makefile("rb")

    def say(self, **what: Any) -> Any:
        self.socket.sendall(json.dumps(what).encode() + b"\n")
        return self.hear()

    def hear(self) -> Any:
        return json.loads(self.file.readline())

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def leader(lab: Still, line: Server) -> Iterator[Leader]:
    leader = Leader(lab)
    yield leader
    leader.close()


def begin(number: int, kind: str, **more: Any) -> dict[str, Any]:
    about = {"do": "begin", "number": number, "kind": kind, "rank": 2, "host": "n2"}
    return {**about, "value": None, "seconds": None, **more}


def until(what: Any) -> None:
    limit = time.monotonic() + 5
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_ready_puts_limits_in_force_and_tells_the_time(lab, leader):
    before = time.monotonic()
    answer = leader.say(do="ready")
    assert before <= answer["at"] <= time.monotonic()
    assert lab.done == [("limit", 0)]


def test_fault_begins_and_ends(lab, leader):
    began = leader.say(**begin(0, "cpu", value=0.1))["at"]
    assert [f.kind for f in lab.home.need().faults] == ["cpu"]
    ended = leader.say(do="end", number=0)["at"]
    assert began <= ended
    assert lab.done == [("cpu", 2, 1), ("cpu", 2, 0)]
    assert lab.home.need().faults == ()


def test_fault_that_ends_by_itself_is_told(lab, leader):
    began = leader.say(**begin(4, "link", seconds=0.05))["at"]
    event = leader.hear()
    assert {key: event[key] for key in ("event", "rank", "from")} == {
        "event": "link",
        "rank": 2,
        "from": began,
    }
    assert 0.04 < event["to"] - began < 2
    assert "no fault" in leader.say(do="end", number=4)["error"]


def test_fault_from_another_shell_is_told(lab, leader):
    leader.say(do="ready")
    at = ask(lab.home, {"do": "fault", "kind": "rate", "node": "n1", "value": 1e6})
    assert leader.hear() == {"event": "rate", "rank": 1, "from": at, "to": None, "value": 1e6}
    healed = ask(lab.home, {"do": "heal", "node": "n1"})
    event = leader.hear()
    assert event["from"] == at and at < event["to"] <= healed


def test_same_fault_again_replaces_the_first(lab, leader):
    leader.say(do="ready")
    for value in (0.5, 0.25):
        ask(lab.home, {"do": "fault", "kind": "cpu", "node": "n1", "value": value})
    heard = [leader.hear() for _ in range(3)]
    assert [(h["value"], h["to"] is None) for h in heard] == [
        (0.5, True),
        (0.5, False),
        (0.25, True),
    ]
    assert [f.value for f in lab.home.need().faults] == [0.25]


def test_what_cannot_be_done_is_an_error_line(lab, leader):
    assert leader.say(**begin(0, "loss", value=0.1)) == {"error": "this kernel cannot"}
    assert lab.home.need().faults == ()
    assert "is not a node" in leader.say(**begin(0, "link", host="n7"))["error"]
    assert "needs a value" in leader.say(**begin(0, "cpu"))["error"]
    with pytest.raises(LabError, match="'flood' is not a fault"):
        ask(lab.home, {"do": "fault", "kind": "flood", "node": "n1"})


def test_garbage_is_answered_and_survived(lab, leader):
    for garbage in (b"\xff\xfe\n", b"{\n", b"[]\n", b'{"do": "fly"}\n', b'{"do": "end"}\n', b"7\n"):
        leader.socket.sendall(garbage)
        assert "error" in leader.hear(), garbage
    leader.socket.sendall(b'{"do": "re')
    time.sleep(0.05)
    leader.socket.sendall(b'ady"}\n\n{"do": "ready"}\n')
    assert "at" in leader.hear() and "at" in leader.hear()


def test_line_without_end_is_dropped_and_others_are_served(lab, leader):
    other = Leader(lab)
    with pytest.raises(OSError):
        for _ in range(100):
            other.socket.sendall(b"x" * 65536)
            time.sleep(0.005)
    other.close()
    assert "at" in leader.say(do="ready")


def test_leader_that_goes_takes_its_faults_with_it(lab, line, leader):
    first = Leader(lab)
    first.say(**begin(0, "cpu", value=0.5))
    first.say(**begin(1, "reboot", seconds=60))
    first.close()
    until(lambda: [f.kind for f in lab.home.need().faults] == ["reboot"])
    assert "at" in leader.say(**begin(0, "cpu", value=0.5))  # its numbers are its own


def test_all_faults_end_with_the_line(lab):
    line = Server(FaultManager(lab))
    line.start()
    ask(lab.home, {"do": "fault", "kind": "cpu", "node": "0", "value": 0.5})
    line.stop()
    assert lab.home.need().faults == ()
    assert not lab.home.line.exists()
    with pytest.raises(LabError, match="the process that runs the job does not answer"):
        ask(lab.home, {"do": "ready"})


def test_labs_that_run_at_a_time_are_warned_of(lab, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    assert list(warnings(FaultManager(lab))) == []  # 3 nodes of 0.2 are less than one core
    other = Home("other", lab.home.run)
    ours = (os.getpid(), started(os.getpid()))
    with other.lock():
        other.write(State(lab.spec, True, run=ours))
    warned = "labs test and other run at a time and ask for 1.2 cores of 1: none is honest"
    assert list(warnings(FaultManager(lab))) == [warned]
    other.change(run=(ours[0], 1))  # an earlier process of that number
    assert list(warnings(FaultManager(lab))) == []


def said(path: Path, raw: bytes) -> bytes:
    """Send bytes, and return what comes back until the lab has nothing more to say."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.settimeout(5)
        try:
            client.sendall(raw)
            return client.recv(65536)
        except (TimeoutError, ConnectionError, BrokenPipeError):
            return b""


GARBAGE = [
    b"\x00\xff\xfe\n", b"[]\n", b"null\n", b"3\n", b'"x"\n', b"{}\n", b'{"do": []}\n',
    b'{"do": {}}\n',
    b'{"do": "begin"}\n', b'{"do": "begin", "number": 1, "kind": "cpu", "rank": 1e400}\n',
    b'{"do": "begin", "number": 1, "kind": [], "rank": 1}\n', b'{"do": "heal", "node": []}\n',
    b'{"do": "begin", "number": {}, "kind": "cpu", "rank": ' + b"9" * 5000 + b"}\n",
    b'{"do": "fault", "kind": "rate", "node": "n1", "value": "' + b"9" * 5000 + b'"}\n',
    b'{"do": "fault", "kind": "cpu", "node": "n1", "value": NaN}\n', b"[" * 50000 + b"\n",
]  # fmt: skip


@pytest.mark.parametrize("raw", GARBAGE, ids=lambda raw: raw[:40].decode(errors="replace"))
def test_garbage_is_answered_by_an_error(line: Server, lab: Still, raw: bytes) -> None:
    assert b'"error"' in said(lab.home.line, raw)
    assert b'"at"' in said(lab.home.line, b'{"do": "heal", "node": "n1"}\n')


def test_an_endless_line_and_many_that_say_nothing(line: Server, lab: Still) -> None:
    assert said(lab.home.line, b"x" * 200_000) == b""
    idle = [socket.socket(socket.AF_UNIX) for _ in range(100)]
    for client in idle:
        client.connect(str(lab.home.line))
    limit = time.monotonic() + 10
    while len(line._clients) < 64 and time.monotonic() < limit:
        time.sleep(0.01)
    for client in idle:
        client.close()
    while line._clients and time.monotonic() < limit:
        time.sleep(0.01)
    assert b'"at"' in said(lab.home.line, b'{"do": "heal", "node": "n1"}\n')


def test_a_fault_that_lasts_for_ages(line: Server, lab: Still) -> None:
    fault = b'{"do": "fault", "kind": "freeze", "node": "n1", "seconds": 1e300}\n'
    assert b'"at"' in said(lab.home.line, fault)
    assert b'"at"' in said(lab.home.line, b'{"do": "heal", "node": "n1"}\n')


@pytest.mark.parametrize("raw", [b"\xff", b"[" * 9000, b'{"version": 1e400}', b"9" * 5000])
def test_a_state_file_of_anything(lab: Still, raw: bytes) -> None:
    lab.home.file.write_bytes(raw)
    with pytest.raises(LabError, match="state.json is damaged .*`lab down` clears it away"):
        lab.home.read()
