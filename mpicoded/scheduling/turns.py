"""Turns on rank 0's link: which message may leave now. No MPI, no clock.

Large messages share the link one after the other, ``ABREAST`` at a time: all at once they would all
come late, and the last ones (parity) would hold up the first (data). A peer that does not take its
message in about the usual time keeps no other waiting. A ``SHORT`` message is gone before word of
its arrival could come back, and waits for no turn.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Generic, NamedTuple, TypeVar

ABREAST = 2  # so that the link is not idle while word of a message's arrival comes back
SHORT = 16384  # bytes
PATIENCE = 3.0  # times the usual seconds a byte
LEAST = 0.02  # s

T = TypeVar("T")


class Start(NamedTuple, Generic[T]):
    """A message that may leave now; the wire has to say when one that is ``paced`` was taken."""

    message: T
    paced: bool


class _Waiting(NamedTuple, Generic[T]):
    rank: int
    message: T
    nbytes: int
    exclusive: bool


@dataclass
class _Paced:
    rank: int
    nbytes: int
    since: float
    until: float


@dataclass
class Turns(Generic[T]):
    """Messages to ``rank``s in order; those to one rank keep theirs."""

    _line: deque[_Waiting[T]] = field(default_factory=deque)
    _waits: Counter[int] = field(default_factory=Counter)  # how often each rank is in it
    _free: list[T] = field(default_factory=list)  # need no turn
    _in_flight: list[_Paced] = field(default_factory=list)
    _seconds: float = 0.0
    _bytes: float = 0.0  # seconds and bytes of the last paced messages, fading

    def add(self, rank: int, message: T, nbytes: int, exclusive: bool = False) -> None:
        """Queue a message; an ``exclusive`` one (parity) takes nothing of the link from data."""
        if nbytes > SHORT or self._waits[rank]:
            self._waits[rank] += 1
            self._line.append(_Waiting(rank, message, nbytes, exclusive))
        else:
            self._free.append(message)

    def start(self, now: float) -> list[Start[T]]:
        """Return the messages that may leave now, as far as the link is free."""
        if not (self._line or self._free):
            return []
        starts = [Start(message, False) for message in self._free]
        self._free.clear()
        while self._line and self._holding(now) < (1 if self._line[0].exclusive else ABREAST):
            rank, message, nbytes, _ = self._line.popleft()
            self._waits[rank] -= 1
            usual = nbytes * self._seconds / self._bytes if self._bytes else 0.0
            self._in_flight.append(_Paced(rank, nbytes, now, now + max(LEAST, PATIENCE * usual)))
            starts.append(Start(message, True))
        return starts

    def taken(self, rank: int, now: float) -> None:
        """Note that ``rank`` has begun to take the oldest message that was paced to it."""
        sent = next((each for each in self._in_flight if each.rank == rank), None)
        if sent is None:
            return
        self._in_flight.remove(sent)
        took = now - sent.since
        if self._bytes:  # a frozen peer tells little
            took = min(took, LEAST + 4 * sent.nbytes * self._seconds / self._bytes)
        self._seconds, self._bytes = 0.9 * self._seconds + took, 0.9 * self._bytes + sent.nbytes

    def waiting(self, now: float) -> set[int]:
        """Return the ranks for which a message waits that they do not hold up themselves."""
        return {each.rank for each in self._line if not self._stalled(each.rank, now)}

    def next_stall(self, now: float) -> float:
        """Return when a message that waits may leave though the wire says nothing."""
        limits = (each.until for each in self._in_flight if each.until > now)
        return min(limits, default=inf) if self._line else inf

    def withdraw(self, unneeded: Callable[[T], bool]) -> list[T]:
        """Take out the messages that wait and are not needed any more; return them."""
        gone = [each for each in self._line if unneeded(each.message)]
        self._line = deque(each for each in self._line if not unneeded(each.message))
        self._waits -= Counter(each.rank for each in gone)
        return [each.message for each in gone]

    def drop(self, rank: int) -> None:
        """Forget all that goes to a dead rank."""
        del self._waits[rank]
        self._line = deque(each for each in self._line if each.rank != rank)
        self._in_flight = [each for each in self._in_flight if each.rank != rank]

    def _stalled(self, rank: int, now: float) -> bool:
        """True if a paced message to ``rank`` has exceeded its limit."""
        return any(each.rank == rank and now >= each.until for each in self._in_flight)

    def _holding(self, now: float) -> int:
        return sum(not self._stalled(each.rank, now) for each in self._in_flight)
