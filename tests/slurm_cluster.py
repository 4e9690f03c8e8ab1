"""A real Slurm of several emulated nodes on this machine, in a folder of its own.

Each slurmd has a host name of its own (a UTS namespace) and a port; munge and all daemons are run
by hand, with their own configuration, and nothing of the machine's own Slurm is touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path

from launching import environ

TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "unshare", "hostname")
SBIN = ("/usr/sbin", "/sbin")  # where Debian puts the daemons, which need not be on the PATH
MARK = "MPICODED_TEST_SLURM"
CONFIG = """\
ClusterName=emulated
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is put back in the queue waits until its old credentials have expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1
ReturnToService=2
KillWait=5
NodeName=node[1-{nodes}] NodeAddr=127.0.0.1 Port={first}-{last} CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; "" if there can."""
    if os.getuid() != 0:
        return "needs root, to give each emulated node a host name of its own"
    absent = [tool for tool in TOOLS if not which(tool)]
    return f"Slurm is not installed (apt install slurm-wlm): no {', '.join(absent)}" * bool(absent)


def which(tool: str) -> str | None:
    return shutil.which(tool, path=os.pathsep.join([os.environ["PATH"], *SBIN]))


class Slurm:
    """The running daemons; ``ask`` runs one of Slurm's commands."""

    def __init__(self, folder: Path, nodes: int = 3, cpus: int = 2) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), MARK: str(folder)}
        control, first = ports(1)[0], run_of_ports(nodes)
        (folder / "state").mkdir()
        (folder / "slurm.conf").write_text(
            CONFIG.format(
                host=socket.gethostname(),
                folder=folder,
                control=control,
                first=first,
                last=first + nodes - 1,
                nodes=nodes,
                cpus=cpus,
            )
        )
        self._munge()
        self._daemon("slurmctld", "-D")
        for node in range(1, nodes + 1):
            self.start_node(f"node{node}")
        self.wait_until(lambda: self.ask("sinfo", "-h", "-o", "%D %T") == f"{nodes} idle", 30)

    def _munge(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        places = {"socket": "munge.socket", "key-file": key.name, "log-file": "munged.log"}
        places |= {"pid-file": "munged.pid", "seed-file": "munged.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in places.items()]
        # --force: it would refuse a folder that others may write, as one below /tmp
        self._daemon("munged", "--foreground", "--force", *options)
        self.wait_until((self.folder / "munge.socket").exists, 10)

    def _daemon(self, tool: str, *args: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            subprocess.Popen(
                [_path(tool), *args],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ask(self, *words: str) -> str:
        """The output of a command of Slurm; "" if it failed."""
        done = subprocess.run(
            [_path(words[0]), *words[1:]], env=self.env, capture_output=True, text=True, timeout=30
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    def submit(self, script: Path, *args: str, options: Sequence[str], cwd: Path) -> str:
        """Submit a batch script; return the job's number."""
        words = [_path("sbatch"), "--parsable", *options, str(script), *args]
        done = subprocess.run(
            words, env=self.env, cwd=cwd, capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def about(self, job: str, key: str) -> str:
        """What Slurm says of a job: its JobState, its ExitCode; "" if there is no such job."""
        words = self.ask("scontrol", "show", "job", job).split()
        return next((word[len(key) + 1 :] for word in words if word.startswith(f"{key}=")), "")

    def wait_until(self, true: object, seconds: float) -> None:
        """Wait until ``true()``; AssertionError with the logs after so many seconds."""
        assert callable(true)
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """The end of every log."""
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"{file.name}:\n{file.read_text()[-2000:]}" for file in files)

    def pids(self) -> list[int]:
        """Every process of this Slurm, its jobs' too."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [pid for pid in pids if environ(pid).get(MARK) == str(self.folder)]

    def kill_node(self, name: str) -> None:
        """A node dies: its slurmd and all that runs there."""
        for pid in self.pids():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if name.encode() in words or environ(pid).get("SLURMD_NODENAME") == name:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def start_node(self, name: str) -> None:
        """Start a node's slurmd, on a machine of that name."""
        inside = 'hostname "$0"; exec "$@"'
        self._daemon("unshare", "--uts", "sh", "-c", inside, name, _path("slurmd"), "-DN", name)

    def end(self) -> None:
        """End all jobs and daemons."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.05)


def _path(tool: str) -> str:
    found = which(tool)
    assert found, tool
    return found


def run_of_ports(count: int) -> int:
    """The first of so many free ports in a row."""
    for first in range(20000 + os.getpid() % 10000, 60000, count):
        if all(free(port) for port in range(first, first + count)):
            return first
    raise AssertionError("no free ports")


def ports(count: int) -> list[int]:
    """So many free ports, as the system gives them."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    numbers = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return numbers


def free(port: int) -> bool:
    with closing(socket.socket()) as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
