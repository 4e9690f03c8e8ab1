"""Links: every host tests all addresses of every other one, by TCP; findings about them."""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from mpicoded.cluster_tools.doctor.facts import Facts, Finding, Interface, chosen, is_ipv4, network
from mpicoded.cluster_tools.doctor.group_checks import shared_addresses
from mpicoded.cluster_tools.doctor.hello import NO_IPV6
from mpicoded.cluster_tools.doctor.session import NoAnswer, Session

CONNECT = 2.0  # s that a connection may take
LIMIT = 20.0  # s for one host's test of another
PORTS = ("OMPI_MCA_btl_tcp_port_min_v4", "OMPI_MCA_btl_tcp_port_range_v4")


@dataclass(frozen=True)
class Answer:
    """The test of one address: round trip in s and bytes/s, or why there is none."""

    interface: Interface
    seconds: float = 0.0
    rate: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Link:
    """All that host ``a`` found out about host ``b``, IPv4 first."""

    a: str
    b: str
    answers: tuple[Answer, ...]

    @property
    def best(self) -> Answer | None:
        """The first address that answers."""
        return next((answer for answer in self.answers if not answer.error), None)


def measure(
    pool: Executor, sessions: Mapping[str, Session], hosts: Mapping[str, Facts], wanted: str | None
) -> list[Link]:
    """Test every pair in both directions, in rounds in which each host sends to one other."""
    token, names = secrets.token_hex(8), list(hosts)
    first, count = (int(os.environ.get(name, 0)) for name in PORTS)
    both = {"first": first, "count": count or 1, "token": token}
    shared = shared_addresses(hosts)
    targets = {
        name: sorted(
            (each for each in chosen(facts.interfaces, wanted) if each[1] not in shared),
            key=lambda each: not is_ipv4(each[1]),
        )
        for name, facts in hosts.items()
    }

    def listen(i: int) -> int:
        return int(sessions[names[i]].ask("listen", LIMIT, who=str(i), **both))

    ports = dict(zip(names, pool.map(listen, range(len(names))), strict=True))

    def test(pair: tuple[str, str]) -> Link:
        a, b = pair
        return _link(sessions[a], a, b, targets[b], ports[b], token, str(names.index(b)))

    found: list[Link] = []
    for step in range(1, len(names)):
        pairs = [(a, names[(i + step) % len(names)]) for i, a in enumerate(names)]
        found += pool.map(test, pairs)
    return found


def _link(
    session: Session, a: str, b: str, to: Sequence[Interface], port: int, token: str, who: str
) -> Link:
    addresses = [(address, port) for _, address, _ in to]
    try:
        tested = session.ask("links", LIMIT, to=addresses, token=token, limit=CONNECT)
    except NoAnswer as why:
        return Link(a, b, tuple(Answer(each, error=str(why)) for each in to))
    answers = []
    for each, one in zip(to, tested, strict=True):
        error = one.get("error", "")
        if not error and one["who"] != who:
            error = "another host answers there"
        answers.append(Answer(each, one.get("seconds", 0.0), one.get("rate", 0.0), error))
    return Link(a, b, tuple(answers))


def advised(hosts: Mapping[str, Facts], links: Iterable[Link]) -> str | None:
    """Return the interface, or the network, by which every host reaches every other one."""
    links, shared = list(links), shared_addresses(hosts)
    ways: tuple[Callable[[Interface], str], ...] = (lambda each: each[0], network)
    for way in ways:
        for value in dict.fromkeys(way(i) for f in hosts.values() for i in f.interfaces):
            own = [way(i) for f in hosts.values() for i in f.interfaces if i[1] in shared]
            reached = bool(links) and all(
                any(way(answer.interface) == value and not answer.error for answer in link.answers)
                for link in links
            )
            if reached and value not in own:
                return value
    return None


def of_links(links: Sequence[Link], advice: str) -> Iterator[Finding]:
    """Yield what keeps hosts apart, or may."""
    best = {(link.a, link.b): link for link in links}
    for (a, b), link in best.items():
        back = best[b, a]
        if link.best is None and (back.best is not None or a < b):
            yield _apart(link, back)
    for b in dict.fromkeys(link.b for link in links):
        found = [
            one for one in links if one.b == b and one.best and not is_ipv4(one.best.interface[1])
        ]
        if found:
            who = ", ".join(one.a for one in found)
            why = f"answers {who} by IPv6 only, which an MPI may be built without"
            yield Finding(b, f"{why}; give it an address of IPv4", stops=False)
    for (host, (name, address, _)), failed in silent(links).items():
        way = advice if is_ipv4(address) else f"export {NO_IPV6}=6, or give all hosts IPv6"
        why = f"{', '.join(failed)} cannot reach {address} on {name} ({min(failed.values())})"
        yield Finding(host, f"{why}, which MPI may try; {way}", stops=False)


def _apart(link: Link, back: Link) -> Finding:
    tried = ", ".join(f"{one.interface[1]}: {one.error}" for one in link.answers)
    tried = tried or "it has no address of its own there"
    if back.best is None:
        why = f"do not reach each other ({tried}); put them in one network, without a firewall "
        return Finding(f"{link.a}, {link.b}", why + "between them or a WiFi that isolates clients")
    why = f"does not reach {link.b} ({tried}), which reaches it at {back.best.interface[1]}"
    return Finding(link.a, f"{why}; look for a firewall on {link.b}, or a route that is missing")


def silent(links: Sequence[Link]) -> dict[tuple[str, Interface], dict[str, str]]:
    """Return addresses (of a host) that hosts do not reach, though another one there, and why."""
    found: dict[tuple[str, Interface], dict[str, str]] = {}
    for link in links:
        for answer in link.answers:
            if link.best and answer.error:
                found.setdefault((link.b, answer.interface), {})[link.a] = answer.error
    return found
