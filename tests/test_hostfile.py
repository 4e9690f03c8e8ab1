"""Host files and whatever else names hosts: nothing hostile reaches a command line, or memory."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from mpicoded.cluster_tools.launch import Host, Machines, hostfile
from mpicoded.cluster_tools.launch.nodes import Refusal, placed, refusals
from mpicoded.cluster_tools.launch.start_command import check
from mpicoded.errors import JobError

NO_NAME = "is no name of a host: letters, digits"
HOSTILE = {
    "an option": (b"-Fevil\n", "line 1: '-Fevil' " + NO_NAME),
    "a longer option": (b"pi0\n--proxy\n", "line 2: '--proxy' " + NO_NAME),
    "a shell's word": (b"pi0;reboot\n", NO_NAME),
    "a user": (b"root@pi0\n", NO_NAME),
    "a dot": (b".pi\n", NO_NAME),
    "a port": (b"pi0:22\n", NO_NAME),
    "two hosts": (b"pi0,pi1\n", NO_NAME),
    "letters of other scripts": ("π0\n".encode(), NO_NAME),
    "NUL": (b"pi\0\n", NO_NAME),
    "a very long name": (b"p" * 300, NO_NAME),
    "a very long line": (b"p " * 4096, "is not understood"),
    "binary": (bytes(range(256)), "is not text in UTF-8 (byte 128)"),
    "many digits": (b"pi0 slots=" + b"9" * 5000, "slots=9999999999999999… is no number of ranks"),
    "many slots": (b"pi0 slots=1000000000\n", "slots=1000000000 is no number of ranks"),
    "digits of other scripts": ("pi0 slots=٣\n".encode(), "is no number of ranks"),
    "negative": (b"pi0 slots=-1\n", "slots=-1 is no number of ranks"),
    "the same in capitals": (b"pi0\nPI0 slots=2\n", "pi0 stands there 2 times; give it one line"),
    "many hosts": (b"".join(b"h%d\n" % i for i in range(5000)), "5000 hosts are too many"),
    "a million lines": (b"pi0\n" * 10**6, "it has more than the 1,048,576 bytes"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused(name, tmp_path):
    text, says = HOSTILE[name]
    (tmp_path / "hosts").write_bytes(text)
    refused(tmp_path / "hosts", says)


def refused(path: Path, says: str) -> None:
    with pytest.raises(JobError) as error:
        hostfile.read(path)
    line = str(error.value)
    assert says in line and "\n" not in line and len(line) < 400


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "cannot be read as a hostfile: it is a FIFO, not a file")
    refused(Path("/dev/zero"), "cannot be read as a hostfile: it is a device, not a file")
    refused(tmp_path, "cannot be read as a hostfile: it is a folder, not a file")
    refused(tmp_path / "none", "there is no such hostfile")
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "huge", "it has more than the 1,048,576 bytes")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (64 << 10)  # KiB


def test_ordinary_names_are_taken(tmp_path):
    text = "pi-0.local\nPi_1 slots=02\n10.0.0.7\r\nn\tslots = 3\n"
    (tmp_path / "hosts").write_bytes(text.encode())
    names = (Host("pi-0.local"), Host("Pi_1", 2), Host("10.0.0.7"), Host("n", 3))
    assert hostfile.read(tmp_path / "hosts") == names


def test_names_of_a_batch_system_are_no_options_either(tmp_path, monkeypatch):
    nodes = tmp_path / "nodes"
    nodes.write_text("a\n-oProxyCommand=x\n")
    with pytest.raises(JobError, match="'-oProxyCommand=x' is no name of a host"):
        hostfile.allocated_hosts({"PBS_NODEFILE": str(nodes)})
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(JobError, match="fifo: cannot be read as a hostfile: it is a FIFO"):
        hostfile.allocated_hosts({"PBS_NODEFILE": str(tmp_path / "fifo")})
    with pytest.raises(JobError, match="SLURM_JOB_NODELIST: '-' is no name of a host"):
        hostfile.allocated_hosts({"SLURM_JOB_NODELIST": "--usage"})
    assert len(hostfile.tasks("2(x999999999),1")) == hostfile.MOST


WORDS = {
    "interface": (
        Machines(2, interface="-x"),
        "--interface '-x' is no name of a network interface",
    ),
    "more words": (Machines(2, interface="eth0 --bogus"), "'eth0 --bogus' is no name of a network"),
    "empty agent": (Machines(2, agent=" "), "--agent ' ' is no command"),
    "open quote": (Machines(2, agent="ssh '"), "is no command"),
    "unknown agent": (Machines(2, agent="/none/ssh -x"), "there is no program '/none/ssh'"),
    "agent without x": (Machines(2, agent=__file__), "that can be executed"),
    "an option as agent": (Machines(2, agent="-x"), "there is no program '-x'"),
    "a host": (Machines(2, (Host("-v"),)), "'-v' " + NO_NAME),
    "ranks": (Machines(10**9), "1000000000 ranks are too many: launch starts up to 4096"),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_of_the_command_line(name):
    target, says = WORDS[name]
    with pytest.raises(JobError) as error:
        check(target)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_words_that_are_right():
    check(Machines(9, (Host("pi0"),), agent="env LANG=C ssh -x", interface="192.168.0.0/16"))


def test_many_slots_are_not_dealt_out_in_vain():
    assert placed((Host("a", 4096), Host("b", 4096)), 3) == ("a", "b", "a")


REFUSALS = {
    "its last words": ("echo hi; echo 'Permission denied.' >&2; exit 255", "Permission denied."),
    "no words": ("exit 3", ""),
    "control characters": ("printf '\\033[2Jx' >&2; exit 255", "?[2Jx"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_host_that_refuses(name, tmp_path):
    text, said = REFUSALS[name]
    (found,) = asked(tmp_path, text).values()
    assert found.message == said and found.final


def test_a_host_that_is_off_is_no_refusal(tmp_path):
    far = "echo 'ssh: connect to host pi0 port 22: No route to host' >&2; exit 255"
    assert not asked(tmp_path, far)["pi0"].final
    assert asked(tmp_path, "exit 0") == {}


def test_what_an_agent_leaves_in_the_background_is_not_waited_for(tmp_path):
    """As ssh does with ControlPersist."""
    assert asked(tmp_path, "sleep 15 & exit 0") == {}


def asked(folder: Path, text: str) -> dict[str, Refusal]:
    agent = folder / "agent"
    agent.write_text(f"#!/bin/sh\n{text}\n")
    agent.chmod(0o755)
    return refusals(Machines(1, agent=str(agent)), (Host("pi0"),), 10.0)
