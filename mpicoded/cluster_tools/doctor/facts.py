"""Facts of a host, as its probe tells them, and findings: what would stop a run, or spoil it."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, Self

Interface = tuple[str, str, int]  # name, address, bits of its network's prefix


@dataclass(frozen=True)
class Finding:
    """One line: where, what with both values, and the way out; ``stops``: a run would fail."""

    where: str
    what: str
    stops: bool = True

    def __str__(self) -> str:
        text = f"{'error' if self.stops else 'warning'}: {self.where}: {self.what}"
        return "".join(c if c.isprintable() else "?" for c in text)  # it may hold a host's words


@dataclass(frozen=True)
class Software:
    """What the environment's python imported and computed until it ended with ``status``.

    ``at`` is where it was then, ``last`` its last line on stderr, ``peak`` its memory in bytes;
    ``failed`` holds modules and their messages; ``status`` is None if it took too long.
    """

    status: int | None
    failed: list[tuple[str, str]]
    last: str
    peak: int
    at: str = ""
    python: str = ""
    bits: int = 64
    mpi4py: str = ""
    library: str = ""
    mpicoded: str = ""
    numpy: str = ""
    torch: str = ""
    cuda: str | None = None
    seconds: float = 0.0
    sum: float | None = None


@dataclass(frozen=True)
class Facts:
    """A host; ``memory`` in all and free, in bytes; ``mpirun``: what its --version printed."""

    name: str
    machine: str
    cpu: str
    instructions: list[str]
    cores: int
    memory: tuple[int, int]
    interfaces: list[Interface]
    mpirun: str | None
    software: Software | None = None

    @classmethod
    def of(cls, answer: dict[str, Any]) -> Self:
        """Return the facts in a probe's answer."""
        software = answer.pop("software", None)
        found = cls(**answer, software=Software(**software) if software else None)
        found.interfaces[:] = [tuple(each) for each in found.interfaces]  # type: ignore[misc]
        return found

    @property
    def processor(self) -> str:
        """Its processor, with those of the instructions that programs look for."""
        return f"{self.machine} {self.cpu} ({', '.join(self.instructions) or 'no vectors'})"

    @property
    def slots(self) -> int:
        """How many ranks it has cores and memory for; one at least."""
        peak = self.software.peak if self.software else 0
        room = self.memory[1] // peak if peak else self.cores
        return max(1, min(self.cores, room))


def chosen(interfaces: Iterable[Interface], wanted: str | None) -> list[Interface]:
    """Return the interfaces that --interface (names and networks, by commas) lets MPI use."""
    if wanted is None:
        return list(interfaces)
    words = wanted.split(",")
    return [each for each in interfaces if any(_matches(each, word) for word in words)]


def _matches(interface: Interface, word: str) -> bool:
    if "/" not in word:
        return interface[0] == word
    try:
        return ip_address(interface[1]) in ip_network(word, strict=False)
    except ValueError:
        return False


def network(interface: Interface) -> str:
    """Return the network of an interface, such as 192.168.0.0/24."""
    return str(ip_interface(f"{interface[1]}/{interface[2]}").network)


def is_ipv4(address: str) -> bool:
    """True for an address of IPv4."""
    return ip_address(address).version == 4


def megabytes(size: int) -> str:
    """Return a size in words."""
    return f"{size / 1e9:.1f} GB" if size >= 10**9 else f"{size / 1e6:.0f} MB"
