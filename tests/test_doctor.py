"""Doctor: probes that run for real, here and through an agent, and findings from what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from launching import Ended
from mpicoded.cluster_tools.doctor import doctor as doctor_module
from mpicoded.cluster_tools.doctor import probe
from mpicoded.cluster_tools.doctor.doctor import Examination, examine, hostfile
from mpicoded.cluster_tools.doctor.facts import Facts, Finding, Software, chosen
from mpicoded.cluster_tools.doctor.group_checks import (
    Clock,
    of_addresses,
    of_clocks,
    of_names,
    of_versions,
)
from mpicoded.cluster_tools.doctor.hello import KNOWN
from mpicoded.cluster_tools.doctor.host_checks import SUM, of_host, unreachable
from mpicoded.cluster_tools.doctor.links import Answer, Link, advised, of_links
from mpicoded.cluster_tools.doctor.session import Session
from mpicoded.cluster_tools.launch import Host, Machines
from mpicoded.cluster_tools.launch import hostfile as hostfiles
from mpicoded.cluster_tools.launch.mpi import Mpi, find
from mpicoded.errors import JobError

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/raspberry-pi.md"
MPI = Mpi("openmpi", "5.0.11", "/x/bin/mpirun")
GOOD = Software(
    status=0, failed=[], last="", peak=250_000_000, python="3.11.2", mpi4py="4.1.0", numpy="2.3.1",
    library="Open MPI v5.0.11, package: x", mpicoded="0a0b", torch="2.13.0+cpu", seconds=0.01,
    sum=SUM,
)  # fmt: skip
PI = Facts(
    name="pi0", machine="aarch64", cpu="Raspberry Pi 4 Model B", instructions=["asimd"], cores=4,
    memory=(4_000_000_000, 3_000_000_000), interfaces=[("eth0", "192.168.0.10", 24)],
    mpirun="mpirun (Open MPI) 5.0.11\n", software=GOOD,
)  # fmt: skip
DIES = "import os, signal\nos.kill(os.getpid(), signal.{})\n"


def one(findings: Iterable[Finding]) -> Finding:
    (finding,) = findings
    assert "\n" not in str(finding)
    return finding


def software(**more: object) -> Facts:
    return replace(PI, software=replace(GOOD, **more))  # type: ignore[arg-type]


def about(facts: Facts, slots: int = 1) -> list[Finding]:
    return list(of_host(Host("pi0", slots), facts, MPI, 60.0))


def stand_in(folder: Path, module: str, text: str) -> dict[str, str]:
    """An environment in which ``import module`` runs ``text``."""
    (folder / f"{module}.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


MODULES = {
    "illegal instruction": (
        "torch", DIES.format("SIGILL"),
        "import torch died of an illegal instruction (SIGILL): this build of torch uses some that "
        "aarch64 Raspberry Pi 4 Model B (asimd) does not have; take another: pip install "
        f"--force-reinstall torch=={metadata.version('torch').partition('+')[0]} --index-url "
        "https://download.pytorch.org/whl/cpu (docs/raspberry-pi.md), or leave the host out",
    ),
    "of numpy": (
        "numpy", DIES.format("SIGILL"),
        "this build of numpy uses some that aarch64 Raspberry Pi 4 Model B (asimd) does not have; "
        f"take another: pip install --force-reinstall numpy=={metadata.version('numpy')} (docs",
    ),
    "in the convolution": (
        "torch",
        "import os, signal\n__version__ = '2.13'\nclass cuda:\n    is_available = lambda: True\n"
        "def no_grad(): os.kill(os.getpid(), signal.SIGILL)\n",
        "error: pi0: a convolution died of an illegal instruction (SIGILL): this build of torch",
    ),
    "out of memory": (
        "torch", DIES.format("SIGKILL"), "(SIGKILL), 3.0 GB of 4.0 GB being free: the memory, or a "
    ),
    "another signal": (
        "torch", DIES.format("SIGBUS"), "import torch died of SIGBUS (without a word); install its "
    ),
    "a library is missing": (
        "torch", "raise ImportError('libopenblas.so.0: cannot open')",
        "error: pi0: import torch fails: libopenblas.so.0: cannot open; ",
    ),
    "a module is missing": (
        "numpy", "import no_such_module",
        "error: pi0: import numpy fails: No module named 'no_such_module'; ",
    ),
    "an exit": (
        "torch", "import os\nos.write(2, b'disk full\\n')\nos._exit(3)",
        "error: pi0: import torch ended with status 3: disk full; mend that",
    ),
    "too slow": (
        "torch", "import time\ntime.sleep(60)", "import torch did not end within 3 s; look at its "
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_what_a_broken_module_does_is_named(name, tmp_path):
    module, text, says = MODULES[name]
    env = stand_in(tmp_path, module, text)
    found = probe.software(sys.executable, str(tmp_path), env, 3.0 if name == "too slow" else 60.0)
    facts = Facts.of({**vars(PI), "software": found})
    errors = [finding for finding in of_host(Host("pi0"), facts, MPI, 3.0) if finding.stops]
    assert any(says in str(finding) for finding in errors), errors


def doctor(mpirun: Callable[..., Ended], *words: object, **env: str) -> Ended:
    given = {"PYTHONPATH": str(ROOT), "COLUMNS": "80", **env}
    args = ["-m", "mpicoded", "doctor", *map(str, words)]
    return mpirun(1, args, mpi="launch", timeout=100, env=given)


def test_this_machine_is_well(mpirun, tmp_path):
    ended = doctor(mpirun, "--write", tmp_path / "hosts")
    assert ended.status == 0, ended.output
    assert "1 of 1 hosts answer; 0 errors, " in ended.stdout and ended.stderr == ""
    (host,) = hostfiles.read(tmp_path / "hosts")
    assert host.name in ended.stdout and 1 <= host.slots <= probe.cores()
    assert "Open MPI" in ended.stdout and " ms" in ended.stdout


def test_an_illegal_instruction_ends_with_status_1(mpirun, tmp_path):
    ended = doctor(mpirun, **stand_in(tmp_path, "torch", DIES.format("SIGILL")))
    (line,) = [text for text in ended.stdout.splitlines() if text.startswith("error: ")]
    assert ended.status == 1 and "died of an illegal instruction (SIGILL)" in line
    assert "1 of 1 hosts answer; 1 errors" in ended.stdout and ended.stderr == ""


WRONG = {
    "hostfile": (("none",), "none: there is no such hostfile"),
    "interface": (("--interface", "-x"), "--interface '-x' is no name of a network interface"),
    "mpirun": (("--mpirun", "/none"), "there is no /none"),
    "write": (("--write", "/none/hosts"), "/none/hosts cannot be written: name a file in a folder"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_are_told_in_one_line(name, mpirun):
    words, says = WRONG[name]
    ended = doctor(mpirun, *words)
    assert ended.status == 2 and ended.stdout == ""
    assert says in ended.stderr and ended.stderr.count("\n") == 1


AGENT = """\
#!/bin/sh
# HOST WORDS: what a machine of that name, and the way to it, are like
host=$1
shift
case $host in
denied) echo 'pi@denied: Permission denied (publickey,password).' >&2; exit 255 ;;
away) echo 'ssh: connect to host away port 22: No route to host' >&2; exit 255 ;;
bare) exec sh -c 'echo "sh: 1: python3: not found" >&2; exit 127' ;;
silent) exec sleep 60 ;;
esac
echo 'Welcome to this host!'
[ "$host" = twin ] && host=node0
export HOST="$host"
exec unshare --uts sh -c 'hostname "$HOST"; eval "$*"' sh "$@"
"""


@pytest.fixture
def agent(tmp_path: Path) -> str:
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare, to give each host a name of its own")
    (tmp_path / "agent").write_text(AGENT)
    (tmp_path / "agent").chmod(0o755)
    return str(tmp_path / "agent")


def test_hosts_that_do_not_answer_are_named(agent, monkeypatch):
    monkeypatch.setattr(doctor_module, "ANSWER", 2.0)
    names = ("denied", "away", "bare", "silent")
    machines = Machines(4, tuple(map(Host, names)), agent)
    found = examine(machines, find(), 5.0)
    assert [finding.where for finding in found.findings] == list(names) and not found.facts
    denied, away, bare, silent = map(str, found.findings)
    assert denied.endswith(
        "(publickey,password).; let it in without a password: ssh-copy-id denied"
    )
    assert "No route to host; is it switched on, in this network" in away
    assert "python3: not found; install it there: sudo apt install python3" in bare
    assert silent.startswith("error: silent: does not answer within 2 s; ")


def test_an_agent_that_is_no_program():
    machines = Machines(1, (Host("pi0"),), "/none/ssh")
    with pytest.raises(
        JobError, match="/none/ssh: No such file or directory; name another --agent"
    ):
        Session(machines, "pi0")


def test_probes_behind_an_agent(agent):
    """Two hosts with one name, with which mpirun would hang: it is not tried."""
    machines = Machines(2, (Host("node0"), Host("twin")), agent)
    found = examine(machines, find(), 60.0)
    assert {facts.name for facts in found.facts.values()} == {"node0"}
    texts = list(map(str, found.findings))
    assert any(
        "node0, twin: have the same host name, node0, with which Open MPI" in t for t in texts
    )
    assert not any("mpirun" in text for text in texts)
    assert all(abs(clock.ahead) < 1.0 for clock in found.clocks.values())
    assert all(facts.software and facts.software.sum == SUM for facts in found.facts.values())


def test_versions_that_differ():
    hosts = {"a": PI, "b": PI, "c": software(torch="2.11.0", mpicoded="ffff")}
    hosts["c"] = replace(hosts["c"], mpirun="mpirun (Open MPI) 4.1.4")
    texts = [str(finding) for finding in of_versions(hosts)]
    assert texts == [
        "warning: a, b, c: torch differs: 2.13.0+cpu on a, b; 2.11.0 on c; answers may differ in "
        "their last bits; install one version",
        "error: a, b, c: the checkout differs: 0a0b on a, b; ffff on c; copy one checkout to all: "
        "rsync -a, or git pull",
        "error: a, b, c: MPI differs: Open MPI 5.0.11 on a, b; Open MPI 4.1.4 on c; it has to be "
        "one version: install it anew",
    ]
    assert not list(of_versions({"a": PI, "b": PI}))
    assert one(of_names({"a": PI, "b": replace(PI, name="b"), "c": PI})).where == "a, c"


ONE_HOST = {
    "well": (PI, 1, []),
    "32 bits": (software(bits=32), 1, ["python is a 32-bit one, for which there is no PyTorch"]),
    "old python": (software(python="3.9.2"), 1, ["python is 3.9.2 and 3.11 or newer is needed"]),
    "wrong sum": (software(sum=1.0), 1, ["a convolution gave 1 instead of 1.07495e+08; pip inst"]),
    "no environment": (replace(PI, software=None), 1, [f"there is no {sys.executable}, which"]),
    "no mpirun": (replace(PI, mpirun=None), 1, ["there is no /x/bin/mpirun; "]),
    "no MPI": (replace(PI, mpirun="Intel\n"), 1, ["/x/bin/mpirun --version says ['Intel']"]),
    "two MPIs": (
        software(library="MPICH Version:      4.2.1"), 1,
        ["mpirun is Open MPI 5.0.11 and mpi4py's library MPICH 4.2.1; every rank would be alone"],
    ),
    "many ranks": (
        PI, 16,
        ["slots=16 need 4.0 GB of memory (250 MB for a rank) and 3.0 GB are free; give slots=4",
         "slots=16 on 4 cores: ranks wait for one another; give slots=4"],
    ),
    "CUDA": (software(cuda="13.0"), 1, ["torch 2.13.0+cpu is the build for CUDA 13.0, some GB"]),
    "no DHCP": (
        replace(PI, interfaces=[("wlan0", "169.254.7.1", 16)]), 1,
        ["wlan0 has the address 169.254.7.1, which it gave itself"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_HOST)
def test_one_host(name):
    facts, slots, says = ONE_HOST[name]
    found = about(facts, slots)
    assert len(found) == len(says)
    for finding, text in zip(found, says, strict=True):
        assert text in str(finding)
        assert finding.stops == (name not in ("many ranks", "CUDA", "no DHCP"))


def host(name: str, *interfaces: tuple[str, str, int]) -> Facts:
    return replace(PI, name=name, interfaces=list(interfaces))


DOCKER = ("docker0", "172.17.0.1", 16)


def test_addresses_of_several_hosts():
    hosts = {
        "a": host("a", ("eth0", "10.0.0.1", 24), DOCKER),
        "b": host("b", ("eth0", "10.0.0.2", 24), DOCKER),
    }
    shared = one(of_addresses(hosts, None, "give --interface eth0 to leave it out"))
    assert str(shared).startswith("error: a, b: have the same address, 172.17.0.1 on docker0, by")
    assert str(shared).endswith("; give --interface eth0 to leave it out")
    assert not list(of_addresses(hosts, "eth0", "")) and not list(
        of_addresses(hosts, "10.0.0.0/8", "")
    )
    assert len(list(of_addresses(hosts, "eth1", ""))) == 2
    hosts["b"] = host("b", ("wlan0", "10.0.0.2", 24))
    has_not = one(of_addresses(hosts, "eth0", ""))
    assert "b: has no interface eth0, only wlan0 (10.0.0.2)" in str(has_not)


def test_interfaces_that_mpi_may_use():
    known = [("eth0", "10.0.0.1", 24), ("wlan0", "192.168.0.1", 24), ("eth0", "fd00::1", 64)]
    assert chosen(known, None) == known and chosen(known, "eth0") == [known[0], known[2]]
    assert chosen(known, "wlan0,10.0.0.0/8") == known[:2]
    assert chosen(known, "fd00::/8") == known[2:] and chosen(known, "nonsense/x") == []


def link(a: str, b: str, **errors: str) -> Link:
    """What ``a`` found: eth0 and wlan0 of ``b``, and why one did not answer."""
    number = int(b[-1])
    known = {"eth0": f"10.0.0.{number}", "wlan0": f"192.168.0.{number}", "six": f"fd00::{number}"}
    answers = (Answer((n, known[n], 24), 1e-3, 1e7, error) for n, error in errors.items())
    return Link(a, b, tuple(answers))


def test_links():
    hosts = {name: host(name) for name in ("h1", "h2")}
    well = [link("h1", "h2", eth0=""), link("h2", "h1", eth0="")]
    assert not list(of_links(well, ""))
    apart = [link("h1", "h2", eth0="timed out"), link("h2", "h1", eth0="timed out")]
    found = one(of_links(apart, ""))
    assert str(found).startswith(
        "error: h1, h2: do not reach each other (10.0.0.2: timed out); put"
    )
    found = one(of_links([apart[0], well[1]], ""))
    says = "error: h1: does not reach h2 (10.0.0.2: timed out), which reaches it at 10.0.0.1; look"
    assert str(found).startswith(says)
    some = [link("h1", "h2", eth0="", wlan0="timed out"), link("h2", "h1", eth0="")]
    found = one(of_links(some, "give --interface eth0"))
    says = "warning: h2: h1 cannot reach 192.168.0.2 on wlan0 (timed out), which MPI may try; give"
    assert str(found).startswith(says)
    six = [link("h1", "h2", six=""), link("h2", "h1", eth0="")]
    assert str(one(of_links(six, ""))).startswith("warning: h2: answers h1 by IPv6 only, which an")
    assert advised(hosts, well) is None, "no interface is known"


def test_interface_by_which_all_reach_one_another():
    ends = {"h1": host("h1", ("eth0", "10.0.0.1", 24)), "h2": host("h2", ("eth0", "10.0.0.2", 24))}
    well = [link("h1", "h2", wlan0="timed out", eth0=""), link("h2", "h1", eth0="")]
    assert advised(ends, well) == "eth0"
    uneven = {**ends, "h2": host("h2", ("end0", "10.0.0.2", 24))}
    there = Link("h1", "h2", (Answer(("end0", "10.0.0.2", 24)),))
    assert advised(uneven, [there, well[1]]) == "10.0.0.0/24"
    assert advised(ends, [link("h1", "h2", eth0="timed out"), well[1]]) is None


def test_clocks():
    clocks = {"a": Clock(0.2, 0.01), "b": Clock(0.9, 0.01), "c": Clock(-3600.0, 0.01)}
    found = one(of_clocks(clocks))
    assert str(found).startswith("warning: c: its clock is 3,600.2 s behind that of a, so that")


def test_hostfile_of_what_was_found(tmp_path):
    machines = Machines(3, (Host("a", 9), Host("b"), Host("c", 2)), interface="eth0")
    small = replace(PI, memory=(10**9, 600_000_000))
    found = Examination(machines, {"a": PI, "b": small}, findings=[unreachable("c", "away")])
    path = tmp_path / "hosts"
    path.write_text(hostfile(found, path))
    assert hostfiles.read(path) == (Host("a", 4), Host("b", 2))
    first, *_, last = path.read_text().splitlines()
    assert first == f"# mpicoded launch JOB --hostfile {path} --interface eth0"
    assert last == "# c slots=2  # did not answer"


def test_a_host_cannot_write_on_the_terminal():
    assert str(Finding("a", "x\x1b[2Jy")) == "error: a: x?[2Jy"


def test_probe_runs_under_an_older_python():
    """Its syntax is that of Python 3.7, as far as ast can tell."""
    import ast

    ast.parse(Path(probe.__file__).read_text(), feature_version=(3, 7))
    words = [sys.executable, "-S", "-I", probe.__file__]
    done = subprocess.run(words, input=b'["clock", {}]\n["none", {}]\n', capture_output=True)
    lines = done.stdout.decode().splitlines()
    assert (
        len(lines) == 2 and lines[0].startswith(probe.MARK + '{"ok": ') and "KeyError" in lines[1]
    )


# What others say: ssh, pip, Python and the kernel, by way of mpirun.
OTHERS = (
    "Permission denied (publickey", "Host key verification failed", "Could not resolve hostname",
    "No route to host", "Connection timed out", "No matching distribution found for torch",
    "exited on signal 4 (Illegal instruction)", "exited on signal 9 (Killed)",
    "No module named 'torch'",
)  # fmt: skip


def test_messages_of_the_page_are_ours_or_those_of_open_mpi():
    """Each stands in our sources, or in what is installed of Open MPI; KNOWN ones have a row."""
    rows = re.findall(r"(?m)^\| (`[^|]+`) \| [^|]+ \| [^|]+ \|$", PAGE.read_text())
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 15 and set(KNOWN) <= set(messages) and set(OTHERS) <= set(messages)
    places = [Path(sys.prefix) / "share", Path(sys.prefix) / "lib/openmpi", ROOT / "mpicoded"]
    files = [file for place in places for file in place.rglob("*") if file.is_file()]
    files += Path(sys.prefix, "lib").glob("*.so*")
    left = {message.encode() for message in messages} - {message.encode() for message in OTHERS}
    for file in files:
        if left:
            text = file.read_bytes()
            left = {message for message in left if message not in text}
    assert not left
