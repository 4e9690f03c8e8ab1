"""Start a small program on all hosts with mpirun, as the launcher would, within a limit."""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpicoded.cluster_tools.doctor.facts import Finding
from mpicoded.cluster_tools.launch.machines import Machines
from mpicoded.cluster_tools.launch.mpi import Mpi
from mpicoded.cluster_tools.launch.nodes import last_line
from mpicoded.cluster_tools.launch.process import Start, Stopped
from mpicoded.cluster_tools.launch.start_command import of_program

Cures = Mapping[str, Mapping[str, Any]]  # words for launch: the fields of Machines that they set
NO_IPV6 = "OMPI_MCA_btl_tcp_disable_family"
KILL = 4.0  # s from SIGTERM to SIGKILL of mpirun
# Parts of lines that Open MPI prints, of the most telling first.
KNOWN = (
    "Unable to find reachable pairing between local and remote interfaces",
    "but cannot find a corresponding process",
    "Open MPI failed to TCP connect to a peer MPI process",
    "A daemon failed to report back after being spawned",
    "PRTE has lost communication with a remote daemon",
    "There are not enough slots available in the system",
)
# Each rank sends to every other one, more than fits into one message of a handshake.
HELLO = """
from mpi4py import MPI
comm = MPI.COMM_WORLD
comm.alltoall([bytes(1 << 17)] * comm.Get_size())
hosts = comm.gather(MPI.Get_processor_name())
if hosts: print("hello from", len(hosts), "ranks", flush=True)
"""


def of_hello(
    machines: Machines, mpi: Mpi, cures: Cures, limit: float, stopped: Stopped
) -> list[Finding]:
    """Return why ranks on all hosts cannot exchange messages, and if the cures help."""
    why = _failure(machines, mpi, limit, stopped)
    if not why:
        return []
    where = ", ".join(host.name for host in machines.hosts)
    if cures and not stopped.number:
        changes = {name: value for fields in cures.values() for name, value in fields.items()}
        if not _failure(replace(machines, **changes), mpi, limit, stopped):
            text = " and ".join(cures)
            return [Finding(where, f"mpirun {why}, but does well with {text}: do so for launch")]
    return [Finding(where, f"mpirun {why}; docs/raspberry-pi.md has what its messages mean")]


def _failure(machines: Machines, mpi: Mpi, limit: float, stopped: Stopped) -> str:
    """Return how a start of one rank a host failed; "" if it did not."""
    program = [sys.executable, "-m", "mpi4py", "-c", HELLO]  # an exception ends all ranks
    start = Start(of_program(mpi, machines, program, 1, machines.hosts, machines.ranks), quiet=True)
    with stopped.ending(start):
        status = start.wait(limit)
        if late := status is None:
            start.end(KILL)
    start.clean()
    text = start.text()
    if not late and f"hello from {machines.ranks} ranks" in text:
        return ""
    known = next((words for words in KNOWN if words in text), "")
    how = f"did not end within {limit:g} s" if late else f"ended with status {status}"
    return f"{how} ({known or last_line(text.encode()) or 'without a word'})"
