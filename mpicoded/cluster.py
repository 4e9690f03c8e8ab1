"""The ranks that a plan can use: how many workers there are, and which host each is on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cluster:
    """``hosts[p]`` is the host name of rank p; rank 0 is the group leader."""

    hosts: tuple[str, ...]

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks of the workers."""
        return tuple(range(1, len(self.hosts)))

    @classmethod
    def local(cls, ranks: int) -> Cluster:
        """Return ``ranks`` nameless ranks: for plans that are only looked at."""
        return cls(("",) * ranks)
