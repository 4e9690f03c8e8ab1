"""StartCommand: the command line and the environment of one start, for each MPI."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mpicoded.cluster_tools.doctor.probe import cores
from mpicoded.cluster_tools.launch.hostfile import ALLOCATIONS, alone, check_name, check_ranks
from mpicoded.cluster_tools.launch.machines import Host, Machines
from mpicoded.cluster_tools.launch.mpi import Mpi
from mpicoded.cluster_tools.launch.nodes import SSH, before, placed
from mpicoded.errors import JobError

Hosts = Sequence[Host]
Words = Sequence[str]
STAND_INS = "MPICODED_RANKS"
STARTS = "MPICODED_STARTS"  # how often the job was started before, if it was
ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")
INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@,-]*")  # eth0, wlan0.5, 192.168.0.0/16
LOOPBACK = "lo"  # Open MPI's daemons take no part in a network that is only this


@dataclass(frozen=True)
class StartCommand:
    """A command line and what joins the environment; no ``hosts``: mpirun finds them itself."""

    words: tuple[str, ...]
    env: dict[str, str]
    ranks: int
    hosts: tuple[Host, ...] = ()

    def __str__(self) -> str:
        return shlex.join(self.words)


def of_program(
    mpi: Mpi, machines: Machines, program: Words, threads: int, hosts: Hosts, ranks: int
) -> StartCommand:
    """Return the start of any program under mpirun."""
    shared = variables(mpi, machines, threads, sys.stdout.isatty(), alone(hosts))
    command = [*words(mpi, machines, hosts, ranks, list(shared)), *program]
    return StartCommand(tuple(command), {**shared, **for_root()}, ranks, tuple(hosts))


def again(machines: Machines, hosts: Hosts, ranks: int, starts: int) -> Machines:
    """Let the machines tell all ranks of earlier starts, and of hosts that were left out."""
    env = dict(machines.env)
    if ranks < machines.ranks or tuple(hosts) != machines.hosts:
        env |= _stand_ins(machines, hosts, ranks)
    if starts:
        env[STARTS] = str(starts)
    return replace(machines, env=env)


def _stand_ins(machines: Machines, hosts: Hosts, ranks: int) -> dict[str, str]:
    """Return the variable that maps each rank to its number before hosts were left out.

    "9:0,1,3" reads: there were 9 ranks, and rank 2 was rank 3 then; so a fault that the job names
    for a rank stays with its node. Where mpirun places the ranks itself they are counted.
    """
    then, now = placed(machines.hosts, machines.ranks), placed(hosts, ranks)
    same = before(now, then) if then and now else range(ranks)
    return {STAND_INS: f"{machines.ranks}:{','.join(map(str, same))}"}


def check(machines: Machines) -> None:
    """Raise JobError where a word would not reach mpirun or ssh as it was meant."""
    check_ranks(machines.ranks, len(machines.hosts))
    for host in machines.hosts:
        check_name("hosts", host.name)
    if machines.interface is not None and INTERFACE.fullmatch(machines.interface) is None:
        why = "is no name of a network interface, such as eth0"
        raise JobError(f"--interface {machines.interface!r} {why}")
    if machines.agent is not None:
        _check_agent(machines.agent)


def _check_agent(agent: str) -> None:
    try:
        program = shlex.split(agent)[0]
    except (ValueError, IndexError):
        raise JobError(f"--agent {agent!r} is no command: give AGENT, such as ssh") from None
    if program.startswith("-") or shutil.which(program) is None:
        raise JobError(
            f"--agent {agent!r}: there is no program {program!r} that can be executed; name one, "
            "such as ssh"
        )


def words(mpi: Mpi, machines: Machines, hosts: Hosts, ranks: int, names: Words) -> list[str]:
    """Return everything before the program; ``names`` are variables that every rank is to have."""
    make = _openmpi if mpi.kind == "openmpi" else _mpich
    made = make(mpi, machines, hosts, ranks > slots(hosts), names)
    return [*machines.prefix, mpi.mpirun, *made, "-n", str(ranks)]


def _openmpi(mpi: Mpi, machines: Machines, hosts: Hosts, crowded: bool, names: Words) -> list[str]:
    command = ["--with-ft", "ulfm"] if mpi.survives else []
    command += ["--bind-to", "none"]
    if "OMPI_MCA_btl" not in {**os.environ, **machines.env}:
        # ofi waits 1 s for hardware that is not there; on one machine no rank listens on a network
        command += ["--mca", "btl", "^ofi,tcp" if alone(hosts) else "^ofi"]
    if crowded:
        command.append("--oversubscribe")
    if hosts:
        tools, agent, fqdn = ("--mca", "plm_rsh_agent", "orte_keep_fqdn_hostnames")
        if mpi.survives:
            tools, agent, fqdn = ("--prtemca", "plm_ssh_agent", "prte_keep_fqdn_hostnames")
        command += [tools, agent, machines.agent or SSH, tools, fqdn, "1"]
        command += ["--host", _listed(hosts), "--map-by", "node"]
    if machines.interface:
        command += ["--mca", "btl_tcp_if_include", machines.interface]
        if machines.interface != LOOPBACK and mpi.survives:
            command += ["--prtemca", "prte_if_include", machines.interface]
    return [*command, *(word for name in names for word in ("-x", name))]


def _mpich(mpi: Mpi, machines: Machines, hosts: Hosts, crowded: bool, names: Words) -> list[str]:
    command = ["-bind-to", "none"]
    if hosts:
        command += ["-hosts", _listed(hosts)]
        if machines.agent:
            command += ["-launcher", "ssh", "-launcher-exec", machines.agent]
    if machines.interface:
        command += ["-iface", machines.interface]
    return [*command, *(["-genvlist", ",".join(names)] if names else [])]


def _listed(hosts: Hosts) -> str:
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)


def slots(hosts: Hosts) -> float:
    """Return how many ranks fit; in a batch system's allocation that is for mpirun to know."""
    if hosts:
        return sum(host.slots for host in hosts)
    return float("inf") if any(name in os.environ for name in ALLOCATIONS) else cores()


def variables(
    mpi: Mpi, machines: Machines, threads: int, terminal: bool, alone: bool = False
) -> dict[str, str]:
    """Return the variables that every rank is to have, ``alone`` if all are on one machine."""
    found = {"OMP_NUM_THREADS": str(threads)}
    if terminal:
        found["COLUMNS"] = str(shutil.get_terminal_size().columns)
    else:  # mpirun gives each rank a terminal, also when its own output goes to a file
        found["TERM"] = "dumb"
    if alone and mpi.kind == "mpich" and "UCX_TLS" not in os.environ:
        found["UCX_TLS"] = "self,sm"  # no rank listens on a network
    if mpi.library:
        found["MPI4PY_LIBMPI"] = mpi.library
    return found | dict(machines.env)


def for_root() -> Mapping[str, str]:
    """Return the variables by which Open MPI lets root start it; none for ordinary users."""
    names = [name + end for name in ROOT for end in ("", "_CONFIRM")]
    return dict.fromkeys(names, "1") if os.getuid() == 0 else {}
