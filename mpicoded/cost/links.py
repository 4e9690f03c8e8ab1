"""Links between ranks on a virtual clock: messages in order, rates shared, latencies.

    source ---- out: its messages share the rate ----> switch ---- in: one by one ----> target

A message passes both at once, and comes when the slower is done with it; a link that has rested
lets its burst pass in no time. On a shared medium all messages share the air. Those between two
ranks keep their order.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Protocol

from mpicoded.cluster import Cluster

Act = Callable[[], None]
TINY = 1e-12  # s


class Clock(Protocol):
    """Virtual time."""

    @property
    def now(self) -> float:
        """Seconds since the begin."""

    def after(self, delay: float, act: Act) -> None:
        """Let ``act`` happen ``delay`` seconds from now."""


class _Shared:
    """A link of which every message in transfer has an even share."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._served = self._since = 0.0  # seconds of work that each message has had, until when
        self._heap: list[tuple[float, int, Act]] = []
        self._count = 0

    def add(self, seconds: float, done: Act) -> None:
        """Transfer a message that takes so many seconds when alone."""
        if seconds <= 0 and not self._heap:
            done()
            return
        self._advance()
        self._count += 1
        heappush(self._heap, (self._served + seconds, self._count, done))
        self._wake()

    def _advance(self) -> None:
        now = self._clock.now
        self._served += (now - self._since) / max(1, len(self._heap))
        self._since = now

    def _wake(self) -> None:
        self._count += 1  # what was to ring before is void
        count = self._count
        left = (self._heap[0][0] - self._served) * len(self._heap)
        self._clock.after(max(0.0, left), lambda: self._ring(count))

    def _ring(self, count: int) -> None:
        if count != self._count:
            return
        self._advance()
        over = list[Act]()
        while self._heap and (self._heap[0][0] <= self._served + TINY or not over):
            over.append(heappop(self._heap)[2])
        if self._heap:
            self._wake()
        for done in over:
            done()


@dataclass
class _Bucket:
    """What lets up to ``burst`` bytes pass at once; it is full again at second ``full``."""

    burst: float
    full: float = 0.0

    def rest(self, nbytes: float, now: float, rate: float) -> float:
        """Return the bytes of a message that have to wait for their turn."""
        if not self.burst:
            return nbytes
        there = max(0.0, self.burst - max(0.0, self.full - now) * rate)
        self.full = max(self.full, now) + nbytes / rate
        return max(0.0, nbytes - there)


@dataclass
class _Line:
    """Messages from one rank to another: bytes, delay, and what happens when each has come."""

    messages: deque[tuple[float, float, Act]] = field(default_factory=deque)
    last: float = 0.0


class Links:
    """Links of a cluster; ``slower[rank]`` is how many times slower than measured one is now."""

    def __init__(self, cluster: Cluster, clock: Clock) -> None:
        self._cluster, self._clock = cluster, clock
        self.slower: dict[int, float] = {}
        self._away: dict[int, list[tuple[int, int, Act]]] = {}  # what waits for a rank's link
        self._out: defaultdict[int, _Shared] = defaultdict(lambda: _Shared(clock))
        self._free: dict[int, float] = {}  # when a rank's incoming link is
        self._lines: defaultdict[tuple[int, int], _Line] = defaultdict(_Line)
        self._buckets = [(_Bucket(link.burst), _Bucket(link.burst)) for link in cluster.links]

    def latency(self, a: int, b: int) -> float:
        """Return the seconds that a message without bytes takes."""
        return self._cluster.links[a].latency + self._cluster.links[b].latency

    def rate(self, rank: int) -> float:
        """Return the byte/s of a rank's link as it was measured."""
        return max(self._cluster.links[rank].sends, self._cluster.links[rank].receives)

    def seconds(self, source: int, target: int, nbytes: float) -> float:
        """Return how long a message takes two links that are free."""
        return nbytes / min(self._sends(source), self._receives(target))

    def send(self, source: int, target: int, nbytes: float, come: Act, late: float = 0.0) -> None:
        """Send a message; ``come`` happens when it is there, ``late`` seconds later than usual."""
        line = self._lines[source, target]
        line.messages.append((nbytes, late, come))
        if len(line.messages) == 1:
            self._begin(source, target, line)

    def unplug(self, rank: int) -> None:
        """Let nothing pass a rank's link."""
        self._away.setdefault(rank, [])

    def plug(self, rank: int) -> None:
        """Let all pass again, with what was on its way."""
        for source, target, come in self._away.pop(rank, []):
            self._deliver(source, target, come)

    def _begin(self, source: int, target: int, line: _Line) -> None:
        now, nbytes = self._clock.now, line.messages[0][0]
        sends, receives = self._sends(source), self._receives(target)
        if self._cluster.shared:
            work, free = nbytes / min(sends, receives), 0.0
        else:
            free = now
            work = self._buckets[source][0].rest(nbytes, now, sends) / sends
            if nbytes:
                rest = self._buckets[target][1].rest(nbytes, now, receives)
                self._free[target] = free = max(self._free.get(target, 0.0), now) + rest / receives
        if not nbytes:
            self._passed(source, target, line, free)
            return
        out = self._out[-1 if self._cluster.shared else source]
        out.add(work, lambda: self._passed(source, target, line, free))

    def _sends(self, rank: int) -> float:
        return self._cluster.links[rank].sends / self.slower.get(rank, 1.0)

    def _receives(self, rank: int) -> float:
        return self._cluster.links[rank].receives / self.slower.get(rank, 1.0)

    def _passed(self, source: int, target: int, line: _Line, free: float) -> None:
        now, (_, late, come) = self._clock.now, line.messages.popleft()
        line.last = max(line.last, max(now, free) + late)
        delay = line.last - now + self.latency(source, target)
        self._clock.after(delay, lambda: self._deliver(source, target, come))
        if line.messages:
            self._begin(source, target, line)

    def _deliver(self, source: int, target: int, come: Act) -> None:
        for rank in (source, target):
            if rank in self._away:
                self._away[rank].append((source, target, come))
                return
        come()
