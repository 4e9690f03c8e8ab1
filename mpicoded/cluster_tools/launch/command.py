"""The command line and the environment of one start, for each MPI."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mpicoded.cluster_tools.launch.allocation import ALLOCATIONS, alone
from mpicoded.cluster_tools.launch.hostfile import check_name, check_ranks
from mpicoded.cluster_tools.launch.mpi import Mpi
from mpicoded.cluster_tools.launch.target import Host, Target
from mpicoded.errors import JobError

SSH = "ssh -x -o BatchMode=yes -o ConnectTimeout=5"  # no question, and no long wait for the dead
ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT")
CORES = "cpu[0-9]*/topology"
INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@,-]*")  # eth0, wlan0.5, 192.168.0.0/16
LOOPBACK = "lo"  # Open MPI's daemons take no part in a network that is only this


def check(target: Target) -> None:
    """Raise JobError where a word of the target would not reach mpirun or ssh as what it is."""
    check_ranks(target.ranks, len(target.hosts))
    for host in target.hosts:
        check_name("hosts", host.name)
    if target.interface is not None and INTERFACE.fullmatch(target.interface) is None:
        raise JobError(
            f"--interface {target.interface!r} is no name of a network interface, such as eth0"
        )
    if target.agent is not None:
        _check_agent(target.agent)


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


def words(
    mpi: Mpi, target: Target, hosts: Sequence[Host], ranks: int, names: Sequence[str]
) -> list[str]:
    """Return everything before the program; ``names`` are variables that every rank is to have."""
    make = _openmpi if mpi.kind == "openmpi" else _mpich
    return [*target.prefix, mpi.mpirun, *make(mpi, target, hosts, ranks, names)]


def _openmpi(
    mpi: Mpi, target: Target, hosts: Sequence[Host], ranks: int, names: Sequence[str]
) -> list[str]:
    command = ["--with-ft", "ulfm"] if mpi.survives else []
    command += ["--bind-to", "none"]
    if "OMPI_MCA_btl" not in {**os.environ, **target.env}:
        # ofi waits 1 s for hardware that is not there; on one machine no rank listens on a network
        command += ["--mca", "btl", "^ofi,tcp" if alone(hosts) else "^ofi"]
    if ranks > slots(hosts):
        command.append("--oversubscribe")
    if hosts:
        tools = "--prtemca" if mpi.survives else "--mca"
        agent, fqdn = ("plm_ssh_agent", "prte_keep_fqdn_hostnames")
        if not mpi.survives:
            agent, fqdn = ("plm_rsh_agent", "orte_keep_fqdn_hostnames")
        command += [tools, agent, target.agent or SSH, tools, fqdn, "1"]
        command += ["--host", _listed(hosts), "--map-by", "node"]
    if target.interface:
        command += ["--mca", "btl_tcp_if_include", target.interface]
    if target.interface and target.interface != LOOPBACK and mpi.survives:
        command += ["--prtemca", "prte_if_include", target.interface]
    return [*command, *(word for name in names for word in ("-x", name)), "-n", str(ranks)]


def _mpich(
    mpi: Mpi, target: Target, hosts: Sequence[Host], ranks: int, names: Sequence[str]
) -> list[str]:
    command = ["-bind-to", "none"]
    if hosts:
        command += ["-hosts", _listed(hosts)]
        if target.agent:
            command += ["-launcher", "ssh", "-launcher-exec", target.agent]
    if target.interface:
        command += ["-iface", target.interface]
    return [*command, *(["-genvlist", ",".join(names)] if names else []), "-n", str(ranks)]


def _listed(hosts: Sequence[Host]) -> str:
    return ",".join(f"{host.name}:{host.slots}" for host in hosts)


def slots(hosts: Sequence[Host]) -> float:
    """Return how many ranks fit; in a batch system's allocation that is for mpirun to know."""
    if hosts:
        return sum(host.slots for host in hosts)
    return float("inf") if any(name in os.environ for name in ALLOCATIONS) else cores()


def cores() -> int:
    """Return the number of cores as mpirun counts them: those with two threads once."""
    found = set()
    for folder in Path("/sys/devices/system/cpu").glob(CORES):
        try:
            found.add(tuple((folder / f).read_text() for f in ("physical_package_id", "core_id")))
        except OSError:
            continue
    return min(len(found) or sys.maxsize, len(os.sched_getaffinity(0)))


def variables(
    mpi: Mpi, target: Target, threads: int, terminal: bool, alone: bool = False
) -> dict[str, str]:
    """Return the variables that every rank is to have, ``alone`` if all are on one machine.

    mpirun gives each rank a terminal, also when its own output goes to a file.
    """
    given = {"OMP_NUM_THREADS": str(threads)}
    if terminal:
        given["COLUMNS"] = str(shutil.get_terminal_size().columns)
    else:
        given["TERM"] = "dumb"
    if alone and mpi.kind == "mpich" and "UCX_TLS" not in os.environ:
        given["UCX_TLS"] = "self,sm"  # no rank listens on a network
    if mpi.library:
        given["MPI4PY_LIBMPI"] = mpi.library
    return given | dict(target.env)


def for_root() -> Mapping[str, str]:
    """Return what Open MPI asks of root, that it is meant so; nothing for ordinary users."""
    names = [name + end for name in ROOT for end in ("", "_CONFIRM")]
    return dict.fromkeys(names, "1") if os.getuid() == 0 else {}
