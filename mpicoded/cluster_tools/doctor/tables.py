"""Tables of hosts and links."""

from rich.table import Table

from mpicoded.cluster_tools.doctor.doctor import Examination
from mpicoded.cluster_tools.doctor.facts import Facts, Software, is_ipv4, megabytes
from mpicoded.cluster_tools.doctor.group_checks import Clock
from mpicoded.cluster_tools.doctor.host_checks import named
from mpicoded.cluster_tools.launch.mpi import identify

NOTHING = Software(None, [], "", 0)


def hosts(found: Examination) -> Table:
    """Return a row a host; its clock is compared with the first host's."""
    table = _table("host processor cores memory free python torch numpy mpi4py MPI conv clock")
    for name, facts in found.facts.items():
        table.add_row(
            name, *_host(facts), _ahead(next(iter(found.clocks.values())), found.clocks[name])
        )
    return table


def _host(facts: Facts) -> tuple[str, ...]:
    made, (total, free) = facts.software or NOTHING, map(megabytes, facts.memory)
    mpi = named(identify(facts.mpirun or ""))
    taken = f"{1e3 * made.seconds:.1f} ms" if made.seconds else ""
    versions = made.python, made.torch, made.numpy, made.mpi4py
    return facts.processor, str(facts.cores), total, free, *versions, mpi, taken


def _ahead(first: Clock, clock: Clock) -> str:
    if first is clock:
        return ""
    return f"{clock.ahead - first.ahead:+.3f} ± {clock.error + first.error:.3f} s"


def links(found: Examination) -> Table:
    """Return a row for each direction of each pair, by the address that MPI would take first."""
    table = _table("from to interface address family round-trip rate")
    for link in sorted(found.links, key=lambda link: sorted((link.a, link.b))):
        if best := link.best:
            name, address, _ = best.interface
            family = "IPv4" if is_ipv4(address) else "IPv6"
            times = f"{1e3 * best.seconds:.2f} ms", f"{8e-6 * best.rate:,.0f} Mbit/s"
            table.add_row(link.a, link.b, name, address, family, *times)
        else:
            table.add_row(link.a, link.b, "none")
    return table


def _table(columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for name in columns.split():
        table.add_column(name, no_wrap=True)
    return table
