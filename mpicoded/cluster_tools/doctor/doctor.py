"""Examine all hosts: what each is and has, how they reach one another, and whether mpirun works."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpicoded.cluster_tools.doctor import group_checks, links
from mpicoded.cluster_tools.doctor.facts import Facts, Finding, is_ipv4, megabytes
from mpicoded.cluster_tools.doctor.group_checks import Clock
from mpicoded.cluster_tools.doctor.hello import NO_IPV6, Cures, of_hello
from mpicoded.cluster_tools.doctor.host_checks import of_host, unreachable
from mpicoded.cluster_tools.doctor.links import Link
from mpicoded.cluster_tools.doctor.session import NoAnswer, Session
from mpicoded.cluster_tools.launch.machines import Host, Machines
from mpicoded.cluster_tools.launch.mpi import Mpi
from mpicoded.cluster_tools.launch.nodes import ABREAST
from mpicoded.cluster_tools.launch.process import stopping

ANSWER = 10.0  # s that a host has to start its probe
CLOCKS = 5  # times that a clock is asked; the fastest answer counts


@dataclass
class Examination:
    """All that was found out, of those hosts that answered."""

    machines: Machines
    facts: dict[str, Facts] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    links: list[Link] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    interface: str | None = None  # by which every host reaches every other one

    @property
    def stopped(self) -> set[str]:
        """The hosts on which a run would fail."""
        return {each.where for each in self.findings if each.stops}


def examine(machines: Machines, mpi: Mpi, limit: float) -> Examination:
    """Examine ``machines.hosts``; importing and starting may take ``limit`` seconds each."""
    found = Examination(machines)
    # the sessions are closed first, so that nothing in the pool waits for an answer any more
    with ThreadPoolExecutor(ABREAST) as pool, ExitStack() as stack:
        sessions = {
            host.name: stack.enter_context(closing(Session(machines, host.name)))
            for host in machines.hosts
        }
        answers = pool.map(lambda each: _ask(each, mpi, limit), sessions.values())
        for host, answer in zip(machines.hosts, answers, strict=True):
            if isinstance(answer, NoAnswer):
                found.findings.append(unreachable(host.name, str(answer)))
            else:
                found.facts[host.name], found.clocks[host.name] = answer
                found.findings += of_host(host, answer[0], mpi, limit)
        if len(found.facts) > 1:
            try:
                found.links = links.measure(pool, sessions, found.facts, machines.interface)
            except NoAnswer as why:  # it did before
                found.findings.append(unreachable(why.host, str(why)))
            _together(found)
    usable = tuple(host for host in machines.hosts if host.name not in found.stopped)
    if usable and not any(group_checks.of_names(found.facts)):  # with which it would hang
        with stopping() as stopped:
            ones = _one_each(machines, usable)
            found.findings += of_hello(ones, mpi, _cures(found), limit, stopped)
        if stopped.number:
            raise KeyboardInterrupt
    return found


def _ask(session: Session, mpi: Mpi, limit: float) -> tuple[Facts, Clock] | NoAnswer:
    env = {"MPI4PY_LIBMPI": mpi.library} if mpi.library else {}
    given = {"python": sys.executable, "mpirun": mpi.mpirun, "folder": os.getcwd(), "env": env}
    try:
        clock = min((_clock(session) for _ in range(CLOCKS)), key=lambda clock: clock.error)
        answer = session.ask("facts", 2 * limit + ANSWER, limit=limit, **given)
    except NoAnswer as why:
        return why
    return Facts.of(answer), clock


def _clock(session: Session) -> Clock:
    began = time.time()
    there = float(session.ask("clock", ANSWER))
    ended = time.time()
    return Clock(there - (began + ended) / 2, (ended - began) / 2)


def _together(found: Examination) -> None:
    """Add what concerns several hosts."""
    facts, wanted = found.facts, found.machines.interface
    found.interface = links.advised(facts, found.links)
    advice = f"give --interface {wanted or found.interface or 'NAME'} to leave it out"
    found.findings += group_checks.of_names(facts)
    found.findings += group_checks.of_versions(facts)
    found.findings += group_checks.of_addresses(facts, wanted, advice)
    found.findings += links.of_links(found.links, advice)
    found.findings += group_checks.of_clocks(found.clocks)


def _cures(found: Examination) -> Cures:
    """Return the changes that would keep mpirun to addresses which all reach."""
    interface, machines, cures = found.interface, found.machines, dict[str, Mapping[str, Any]]()
    if interface and not machines.interface:
        cures[f"--interface {interface}"] = {"interface": interface}
    if any(not is_ipv4(each[1]) for _, each in links.silent(found.links)):
        cures[f"export {NO_IPV6}=6"] = {"env": {**machines.env, NO_IPV6: "6"}}
    return cures


def _one_each(machines: Machines, hosts: Sequence[Host]) -> Machines:
    """Return one rank for each host, two where there is only one."""
    if len(hosts) > 1:
        return replace(machines, hosts=tuple(Host(host.name) for host in hosts), ranks=len(hosts))
    return replace(machines, hosts=(Host(hosts[0].name, 2),), ranks=2)


def hostfile(found: Examination, path: Path) -> str:
    """Return a hostfile for launch: slots for cores and memory; hosts that would fail left out."""
    interface = found.machines.interface or found.interface
    words = f"--hostfile {path}" + (f" --interface {interface}" if interface else "")
    lines = [f"# mpicoded launch JOB {words}"]
    for host in found.machines.hosts:
        facts = found.facts.get(host.name)
        if facts is None:
            lines.append(f"# {host.name} slots={host.slots}  # did not answer")
            continue
        total, free = map(megabytes, facts.memory)
        about = f"{facts.processor}, {facts.cores} cores, {free} of {total} free"
        out = "# " * (host.name in found.stopped)
        lines.append(f"{out}{host.name} slots={facts.slots}  # {about}")
    return "\n".join(lines) + "\n"
