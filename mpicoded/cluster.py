"""The ranks that a plan can use: their hosts and, where it is known, how fast they and links are.

A block of work Φ takes t = Φ / speed + fixed seconds on a device (EdgeLD, HPCC 2020: t = a·Φ + b);
m bytes take latency + m / rate on a link. Work is counted in FLOPs (1 multiply-add = 2), and where
there are none, as in a pool, in values written.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf, log
from statistics import median
from typing import Self


@dataclass(frozen=True)
class Work:
    """The work of a device: FLOPs, and values written."""

    flops: int
    values: int

    @property
    def amount(self) -> int:
        """FLOPs, or values written where there are none."""
        return self.flops or self.values


@dataclass(frozen=True)
class Rate:
    """Work a second, and seconds that go by whatever the work is."""

    speed: float
    fixed: float = 0.0

    def seconds(self, work: float) -> float:
        """Return how long ``work`` takes."""
        return work / self.speed + self.fixed


SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)  # at which quantiles are told


def quantile(values: Sequence[float], u: float) -> float:
    """Return the quantile at share ``u`` of what has these ``values`` at SHARES."""
    i = min(bisect(SHARES, u), len(SHARES) - 1)
    share = (u - SHARES[i - 1]) / (SHARES[i] - SHARES[i - 1])
    return values[i - 1] + share * (values[i] - values[i - 1])


@dataclass(frozen=True)
class Device:
    """The speed of one rank; what was not measured and is left out costs nothing.

    ``flops`` is FLOP/s of blocks that can be cut, ``dense`` of the head (the same if None), and
    ``values`` values/s of blocks without FLOPs. ``pack`` and ``unpack`` are values/s into a message
    and out of one, with their conversion. ``blocks`` holds what was measured of a block by its name
    ("head": the head), and goes before those. ``spread`` says how times vary: of work that usually
    takes its first number of seconds, what it took over that, at SHARES; short work first.
    ``watts`` and ``radio`` are its power when it computes and when its link is at work.
    """

    flops: float = inf
    dense: float | None = None
    values: float = inf
    pack: float = inf
    unpack: float = inf
    memory: float = inf
    blocks: Mapping[str, Rate] = field(default_factory=dict)
    spread: tuple[tuple[float, ...], ...] = ()
    watts: float = 0.0
    radio: float = 0.0

    def seconds(self, block: str, work: Work) -> float:
        """Return how long ``work`` of the block ``block`` takes."""
        if block in self.blocks:
            return self.blocks[block].seconds(work.amount)
        if block == HEAD:
            return work.amount / (self.dense or self.flops)
        return work.amount / (self.flops if work.flops else self.values)

    def slowness(self, seconds: float, u: float) -> float:
        """Return how many times its usual ``seconds`` work takes, at share ``u`` of all times."""
        if not self.spread:
            return 1.0
        i = bisect([length for length, *_ in self.spread], seconds)
        if i in (0, len(self.spread)):
            return quantile(self.spread[min(i, len(self.spread) - 1)][1:], u)
        (short, *few), (long, *many) = self.spread[i - 1 : i + 1]
        share = log(seconds / short) / log(long / short)
        return (1 - share) * quantile(few, u) + share * quantile(many, u)


HEAD = "head"  # the name of what follows the last block


@dataclass(frozen=True)
class Link:
    """One rank's link: bytes a second in each direction, and seconds a message besides.

    ``late`` are the seconds by which messages from here come later than usual, at SHARES. After a
    pause ``burst`` bytes pass at once, as shapers of traffic have it.
    """

    sends: float = inf
    receives: float = inf
    latency: float = 0.0
    late: tuple[float, ...] = ()
    burst: float = 0.0


@dataclass(frozen=True)
class Cluster:
    """``hosts[p]`` is the host name of rank p; rank 0 is the group leader.

    ``devices`` and ``links`` have one entry a rank, or none where nothing is known. ``shared``: all
    links are one medium, as WiFi is; otherwise each rank has its own to a switch. At most
    ``abreast`` messages leave the leader at a time, and share its link; the others wait their turn.
    """

    hosts: tuple[str, ...]
    devices: tuple[Device, ...] = ()
    links: tuple[Link, ...] = ()
    shared: bool = False
    abreast: int = 2

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks of the workers."""
        return tuple(range(1, len(self.hosts)))

    @property
    def paces(self) -> dict[int, float]:
        """Pace of every worker by its speed: 2 takes twice as long as the middle one."""
        speeds = {p: self.devices[p].flops for p in self.workers[: max(0, len(self.devices) - 1)]}
        middle = median(speeds.values()) if speeds else 1.0
        return {p: middle / speed for p, speed in speeds.items() if 0 < speed < inf}

    def only(self, ranks: Iterable[int]) -> Self:
        """Return these ranks, as far as they are known, numbered anew."""
        known = [p for p in ranks if p < len(self.hosts)]
        return replace(
            self,
            hosts=tuple(self.hosts[p] for p in known),
            devices=tuple(self.devices[p] for p in known if self.devices),
            links=tuple(self.links[p] for p in known if self.links),
        )

    def timed(self, measured: Cluster | None) -> Self:
        """Return the ranks with the speeds and links that were measured, if any."""
        if measured is None:
            return self
        return replace(self, devices=measured.devices, links=measured.links)

    @classmethod
    def local(cls, ranks: int) -> Self:
        """Return ``ranks`` nameless ranks: for plans that are only looked at."""
        return cls(("",) * ranks)

    @classmethod
    def alike(
        cls, ranks: int, device: Device, link: Link, shared: bool = False, abreast: int = 2
    ) -> Self:
        """Return ``ranks`` nameless ranks that are all the same."""
        return cls(("",) * ranks, (device,) * ranks, (link,) * ranks, shared, abreast)
