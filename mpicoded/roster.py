"""The ranks as the leader sees them: alive, suspect or failed, and what each still owes.

No MPI, no clock: the caller says what time it is. A rank that owes an answer and says nothing for
too long is suspect: it gets no new unit until it speaks again. A failed rank never comes back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class State(Enum):
    """What is known of a rank."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    FAILED = "failed"


class Debt(NamedTuple):
    """A unit that a rank was sent and has not answered."""

    query: int
    stage: int
    unit: int


@dataclass
class Rank:
    """One worker. ``owes`` maps each debt to when it was posted, oldest first."""

    number: int
    homes: int  # units a stage that are its own
    state: State = State.ALIVE
    owes: dict[Debt, float] = field(default_factory=dict)
    heard: float = 0.0
    sent: int = 0


class Roster:
    """All workers; ``home[unit]`` is the rank that computes a unit when nothing is wrong.

    ``suspect_after`` is in seconds. ``depth`` is how many units of its own a rank may owe before
    its units go to others.
    """

    def __init__(
        self, workers: Iterable[int], home: tuple[int, ...], suspect_after: float, depth: int
    ) -> None:
        self.home = home
        self.suspect_after = suspect_after
        self.depth = depth
        self.ranks = {p: Rank(p, home.count(p)) for p in workers}

    def living(self) -> list[Rank]:
        """Return the ranks that have not failed."""
        return [rank for rank in self.ranks.values() if rank.state is not State.FAILED]

    def place(self, debt: Debt) -> int | None:
        """Choose a rank for a unit: its home, else a spare, else the least loaded; None if none.

        A rank that owes this very unit is not asked twice.
        """
        able = [rank for rank in self.living() if debt not in rank.owes]
        alive = [rank for rank in able if rank.state is State.ALIVE]
        at_home = self.ranks[self.home[debt.unit]]
        if at_home in alive and len(at_home.owes) < self.depth * max(1, at_home.homes):
            return at_home.number
        if not (alive or able):
            return None
        return min(alive or able, key=_load).number

    def post(self, number: int, debt: Debt, now: float) -> None:
        """A unit was sent to a rank."""
        rank = self.ranks[number]
        rank.owes[debt] = now
        rank.sent += 1

    def hear(self, number: int, now: float) -> bool:
        """A rank spoke; return True if it was suspect and is now alive again."""
        rank = self.ranks[number]
        rank.heard = now
        if rank.state is not State.SUSPECT:
            return False
        rank.state = State.ALIVE
        return True

    def settle(self, number: int, debt: Debt) -> list[Debt]:
        """A rank answered ``debt``; return older debts that will never be answered.

        A worker answers in the order in which it was asked, so what it skipped was lost.
        """
        owes = self.ranks[number].owes
        if debt not in owes:
            return []
        older = list(owes)[: list(owes).index(debt)]
        for done in (*older, debt):
            del owes[done]
        return older

    def forgive(self, number: int, before: float) -> list[Debt]:
        """A rank says that nothing is left to do: what was posted before ``before`` was lost."""
        owes = self.ranks[number].owes
        lost = [debt for debt, posted in owes.items() if posted < before]
        for debt in lost:
            del owes[debt]
        return lost

    def fail(self, number: int) -> list[Debt]:
        """A rank is dead; return what it owed."""
        rank = self.ranks[number]
        rank.state = State.FAILED
        debts, rank.owes = list(rank.owes), {}
        return debts

    def overdue(self, now: float) -> list[int]:
        """Mark ranks that have been silent too long as suspect and return them."""
        late = [
            rank
            for rank in self.ranks.values()
            if rank.state is State.ALIVE and now - self._waiting_since(rank, now) > self.suspect_after
        ]
        for rank in late:
            rank.state = State.SUSPECT
        return [rank.number for rank in late]

    def _waiting_since(self, rank: Rank, now: float) -> float:
        oldest = next(iter(rank.owes.values()), now)
        return max(oldest, rank.heard)


def _load(rank: Rank) -> tuple[int, int, int, int]:
    """Least debts first, then spare ranks, then those asked least; ties by the rank's number."""
    return (len(rank.owes), rank.homes, rank.sent, rank.number)
