"""Findings about hosts together: names, versions, addresses that several have, clocks."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mpicoded.cluster_tools.doctor.facts import Facts, Finding, chosen
from mpicoded.cluster_tools.doctor.host_checks import named
from mpicoded.cluster_tools.launch.mpi import identify

LATE = 1.0  # s that two clocks may differ
Hosts = Mapping[str, Facts]
SAME = {  # on all hosts: its name, if a run would fail otherwise, and the way out
    "python": ("python", False, "answers may differ; take one version"),
    "numpy": ("numpy", False, "install one version"),
    "torch": ("torch", False, "answers may differ in their last bits; install one version"),
    "mpi4py": ("mpi4py", False, "install one version"),
    "mpicoded": ("the checkout", True, "copy one checkout to all: rsync -a, or git pull"),
}


class Clock(NamedTuple):
    """How much a host's clock is ahead of ours, and how well that is known, in seconds."""

    ahead: float
    error: float


def of_names(hosts: Hosts) -> Iterator[Finding]:
    """Yield a finding for each host name that several hosts have."""
    for name, where in _by_value({host: facts.name for host, facts in hosts.items()}).items():
        if len(where) > 1:
            why = f"have the same host name, {name}, with which Open MPI hangs; give each its own: "
            yield Finding(", ".join(where), f"{why}sudo hostnamectl set-hostname {where[-1]}")


def of_versions(hosts: Hosts) -> Iterator[Finding]:
    """Yield a finding for everything that should be the same on all hosts and is not."""
    for key, (name, stops, way) in SAME.items():
        made = {host: getattr(f.software, key) for host, f in hosts.items() if f.software}
        yield from _differing(name, made, stops, way)
    mpis = {host: named(identify(facts.mpirun)) for host, facts in hosts.items() if facts.mpirun}
    yield from _differing("MPI", mpis, True, "it has to be one version: install it anew")


def _differing(what: str, values: Mapping[str, str], stops: bool, way: str) -> Iterator[Finding]:
    where = _by_value({host: value for host, value in values.items() if value})
    if len(where) > 1:
        shown = "; ".join(f"{value} on {', '.join(names)}" for value, names in where.items())
        yield Finding(", ".join(values), f"{what} differs: {shown}; {way}", stops)


def _by_value(values: Mapping[str, str]) -> dict[str, list[str]]:
    found = defaultdict[str, list[str]](list)
    for host, value in values.items():
        found[value].append(host)
    return found


def shared_addresses(hosts: Hosts) -> dict[str, list[tuple[str, str]]]:
    """Return the addresses that several hosts have: (host, interface) of each."""
    where = defaultdict[str, list[tuple[str, str]]](list)
    for host, facts in hosts.items():
        for name, address, _ in facts.interfaces:
            where[address].append((host, name))
    return {address: found for address, found in where.items() if len(found) > 1}


def of_addresses(hosts: Hosts, wanted: str | None, advice: str) -> Iterator[Finding]:
    """Yield a finding for each address of several hosts, and each host without --interface."""
    for address, found in shared_addresses(hosts).items():
        names = ", ".join(dict.fromkeys(name for _, name in found))
        inside = any(chosen([(name, address, 32)], wanted) for _, name in found)
        if inside:
            why = f"have the same address, {address} on {names}, by which MPI may look for one and "
            why += f"find another; {advice}"
            yield Finding(", ".join(host for host, _ in found), why)
    for host, facts in hosts.items():
        if wanted and not chosen(facts.interfaces, wanted):
            known = (f"{name} ({address})" for name, address, _ in facts.interfaces)
            has = ", ".join(known) or "none"
            yield Finding(host, f"has no interface {wanted}, only {has}; name one that all have")


def of_clocks(clocks: Mapping[str, Clock]) -> Iterator[Finding]:
    """Yield a finding for each clock that differs from that of the first host."""
    first, *others = clocks
    for host in others:
        ahead = clocks[host].ahead - clocks[first].ahead
        if abs(ahead) > LATE + clocks[host].error + clocks[first].error:
            way = f"is {abs(ahead):,.1f} s {'ahead of' if ahead > 0 else 'behind'} that of {first}"
            why = f"its clock {way}, so that logs and times of files mislead and pip may fail"
            yield Finding(host, f"{why}; sudo timedatectl set-ntp true", stops=False)
