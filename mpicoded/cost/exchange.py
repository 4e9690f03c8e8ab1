"""One stage of one query as events: units go out, are computed, and their answers come home.

The leader's link is the bottleneck: everything passes it. Its two directions are independent,
unless the medium is shared. Three units, one message abreast (`>` unit, `#` computing, `<` answer):

    unit 0   >>####<<
    unit 1     >>####<<
    unit 2       >>####<<

and three abreast, where the units share the link and the answers queue up:

    unit 0   >>>>>>####<<
    unit 1   >>>>>>####  <<
    unit 2   >>>>>>####    <<

Seconds count from the moment at which the leader begins with the stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from mpicoded.cluster import Cluster


@dataclass(frozen=True)
class Load:
    """One unit: its rank, the bytes that travel, the seconds to pack it and to compute it.

    ``compute`` holds all that the worker does: unpack the input, run the program, pack the answer.
    """

    rank: int
    bytes_in: float
    bytes_out: float
    pack: float
    compute: float


@dataclass(frozen=True)
class Times:
    """When a unit was with its worker, was computed, and its answer was with the leader."""

    here: float
    done: float
    arrived: float


def exchange(
    loads: Sequence[Load],
    cluster: Cluster,
    start: float = 0.0,
    halos: Sequence[float] = (),
    back: bool = True,
) -> list[Times]:
    """Return the times of all units, posted in this order from ``start`` on.

    Units that exchange halos have their input at ``halos`` instead; without ``back`` their outputs
    stay with the workers.
    """
    here, free = (list(halos), 0.0) if halos else _send(loads, cluster, start)
    done = _compute(loads, here)
    arrived = done
    if back:
        arrived = _receive(loads, cluster, done, free if cluster.shared else 0.0)
    return [Times(*times) for times in zip(here, done, arrived, strict=True)]


def _send(loads: Sequence[Load], cluster: Cluster, start: float) -> tuple[list[float], float]:
    """Return when each unit is with its worker, and when the leader's link is free again."""
    leader, links = cluster.links[0], [cluster.links[load.rank] for load in loads]
    ready, now = list[float](), start
    for load in loads:  # one thread packs the messages and posts them
        now += load.pack
        ready.append(now)
    sizes = [load.bytes_in for load in loads]
    caps = [link.receives for link in links]
    ends, free = side_by_side(ready, sizes, caps, leader.sends, cluster.abreast)
    delays = [leader.latency + link.latency for link in links]
    return [end + delay for end, delay in zip(ends, delays, strict=True)], free


def _compute(loads: Sequence[Load], here: Sequence[float]) -> list[float]:
    """Return when each unit is computed; a worker takes its units in the order of arrival."""
    done, busy = [0.0] * len(loads), dict[int, float]()
    for i in sorted(range(len(loads)), key=lambda i: here[i]):
        begin = max(here[i], busy.get(loads[i].rank, 0.0))
        done[i] = busy[loads[i].rank] = begin + loads[i].compute
    return done


def _receive(
    loads: Sequence[Load], cluster: Cluster, done: Sequence[float], free: float
) -> list[float]:
    """Return when each answer is with the leader: they pass its link in the order of sending.

    Should they share it instead, the last of them comes at the same time.
    """
    leader, arrived = cluster.links[0], [0.0] * len(loads)
    order = sorted(range(len(loads)), key=lambda i: done[i])
    links = [cluster.links[loads[i].rank] for i in order]
    ready, sizes = [max(done[i], free) for i in order], [loads[i].bytes_out for i in order]
    ends = one_by_one(ready, sizes, [link.sends for link in links], leader.receives)
    for i, end, link in zip(order, ends, links, strict=True):
        arrived[i] = end + leader.latency + link.latency
    return arrived


def one_by_one(
    ready: Sequence[float], sizes: Sequence[float], caps: Sequence[float], rate: float
) -> list[float]:
    """Return when messages have passed a link of ``rate`` byte/s in their order.

    A message with a slower link of its own (``caps``) ends later, and leaves the rest to others.
    """
    ends, free = list[float](), 0.0
    for begin, size, cap in zip(ready, sizes, caps, strict=True):
        begin = max(begin, free)
        free = begin + size / rate
        ends.append(begin + size / min(rate, cap))
    return ends


def side_by_side(
    ready: Sequence[float],
    sizes: Sequence[float],
    caps: Sequence[float],
    rate: float,
    abreast: int,
) -> tuple[list[float], float]:
    """Return the same for messages that share the link, ``abreast`` at a time, and the last use."""
    now, left = min(ready, default=0.0), dict(enumerate(map(float, sizes)))
    ends = list(map(float, ready))
    while left:
        active = [i for i in left if ready[i] <= now][:abreast]
        later = min((ready[i] for i in left if ready[i] > now), default=inf)
        speeds = _shares([caps[i] for i in active], rate)
        step = min([left[i] / v for i, v in zip(active, speeds, strict=True)], default=inf)
        step = min(step, later - now)
        for i, speed in zip(active, speeds, strict=True):
            if left[i] / speed <= step:
                ends[i] = now + step
                del left[i]
            else:
                left[i] -= step * speed
        now = now + step if now + step < later else later
    return ends, now


def _shares(caps: Sequence[float], rate: float) -> list[float]:
    """Deal ``rate`` out evenly; what one cannot use (its cap is lower) goes to the others."""
    if rate == inf:
        return list(caps)
    shares, rest = [0.0] * len(caps), len(caps)
    for i in sorted(range(len(caps)), key=lambda i: caps[i]):
        shares[i] = min(caps[i], rate / rest)
        rate, rest = rate - shares[i], rest - 1
    return shares
