"""The leader's side of the line to the lab, against a lab that only writes down what it is told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpicoded.errors import RemoteError
from mpicoded.faults import Fault
from mpicoded.runtime.lab_line import LAB_LINE, LabLine
from mpicoded.trace import Action

HOSTS = ("pi0", "pi1", "pi2")


class Lab:
    """Answers every request with the next time, or with an error for a kind it cannot do."""

    def __init__(self, path: Path) -> None:
        self.heard: list[dict[str, Any]] = []
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        self.line, _ = self.listener.accept()
        with self.line.makefile("rb") as file:
            for text in file:
                self.heard.append(json.loads(text))
                able = self.heard[-1].get("kind") != "loss"
                self.say({"at": 100.0 + len(self.heard)} if able else {"error": "no sch_netem"})

    def say(self, what: dict[str, Any]) -> None:
        data = json.dumps(what).encode() + b"\n"
        self.line.sendall(data[:5])  # a line may come in pieces
        time.sleep(0.01)
        self.line.sendall(data[5:])


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    path = tmp_path / "lab"
    lab = Lab(path)
    monkeypatch.setenv(LAB_LINE, str(path))
    yield lab
    lab.listener.close()


def settle(line: LabLine, noted: list[Any], count: int) -> None:
    limit = time.monotonic() + 5
    while len(noted) < count and time.monotonic() < limit:
        line.poll()
        time.sleep(0.005)
    assert len(noted) == count


def test_faults_begin_and_end_with_their_queries(lab: Lab) -> None:
    noted: list[tuple[Action, int, float, float]] = []
    faults = [
        Fault("slow", 1, 0, 99),
        Fault("rate", 2, 3, 6, value=1e7),
        Fault("reboot", 1, 4, 99, seconds=5.0),
    ]
    line = LabLine(faults, HOSTS, lambda *event: noted.append(event))
    line.ready()
    for query in range(3):
        line.reach(query)
    assert [said["do"] for said in lab.heard] == ["ready"]
    for query in range(3, 8):
        line.reach(query)
    settle(line, noted, 3)
    assert lab.heard[1:] == [
        {"do": "begin", "number": 0, "kind": "rate", "rank": 2, "host": "pi2", "value": 1e7,
         "seconds": None},
        {"do": "begin", "number": 1, "kind": "reboot", "rank": 1, "host": "pi1", "value": 0.0,
         "seconds": 5.0},
        {"do": "end", "number": 0},
    ]  # fmt: skip
    assert noted == [
        (Action.RATE, 2, 102.0, 102.0),
        (Action.REBOOT, 1, 103.0, 103.0),
        (Action.RATE, 2, 102.0, 104.0),
    ]
    line.close()


def test_what_is_on_at_the_end_is_ended(lab: Lab) -> None:
    noted: list[tuple[Action, int, float, float]] = []
    line = LabLine([Fault("link", 1, 0, 99)], HOSTS, lambda *event: noted.append(event))
    line.reach(0)
    line.close()
    assert [said["do"] for said in lab.heard] == ["begin", "end"]
    assert noted[-1] == (Action.LINK, 1, 101.0, 102.0)


def test_a_fault_from_outside_is_noted(lab: Lab) -> None:
    noted: list[tuple[Action, int, float, float]] = []
    line = LabLine([], HOSTS, lambda *event: noted.append(event))
    line.ready()
    lab.say({"event": "freeze", "rank": 2, "from": 7.0, "to": None})
    lab.say({"event": "freeze", "rank": 2, "from": 7.0, "to": 9.5})
    settle(line, noted, 2)
    assert noted == [(Action.FREEZE, 2, 7.0, 7.0), (Action.FREEZE, 2, 7.0, 9.5)]


def test_what_the_lab_cannot_do_is_said(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    noted: list[tuple[Action, int, float, float]] = []
    line = LabLine([Fault("loss", 1, 0, 9, value=0.1)], HOSTS, lambda *e: noted.append(e))
    line.reach(0)
    line.close()
    assert "lab: no sch_netem" in capsys.readouterr().err
    assert not noted


def test_without_a_lab_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LAB_LINE, raising=False)
    line = LabLine([], HOSTS, lambda *event: None)
    line.ready()
    line.reach(0)
    line.poll()
    line.close()


def test_a_lab_that_is_gone_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAB_LINE, str(tmp_path / "nobody"))
    with pytest.raises(RemoteError, match="the lab at .*nobody is not there"):
        LabLine([], HOSTS, lambda *event: None)


@pytest.mark.parametrize(
    "raw",
    [b"\xff\n", b"3\n", b"[]\n", b"{}\n", b'{"event": "x", "from": 1}\n', b"[" * 9000 + b"\n",
     b'{"event": "link", "from": {}}\n', b'{"event": "link", "from": 1, "rank": 1e400}\n',
     b"x" * 99999],
)  # fmt: skip
def test_what_no_lab_says_ends_the_line(
    lab: Lab, raw: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    line = LabLine([Fault("link", 1, 0, 99)], HOSTS, lambda *event: None)
    line.ready()
    lab.line.sendall(raw)
    limit = time.monotonic() + 10
    while line._socket is not None and time.monotonic() < limit:
        line.poll()
        time.sleep(0.005)
    assert "r0 | lab: says what is not understood" in capsys.readouterr().err
    line.reach(0)
    line.close()
