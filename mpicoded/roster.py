"""The ranks as the leader sees them: alive, suspect or failed, and what each still owes.

No MPI, no clock: the caller says what time it is. A rank that owes an answer and is silent for
half of ``suspect_after`` is asked for a sign of life; one that is only slow gives it. If it is
silent for the other half too, it is suspect: it gets no new unit until it speaks. A failed rank
never comes back.

Messages between two ranks keep their order, and a worker answers in the order in which it was
asked: so what it skipped was lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
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


@dataclass(eq=False)
class Rank:
    """One worker. ``owes`` maps each debt to when it was posted, oldest first."""

    number: int
    homes: int  # units a stage that are its own
    state: State = State.ALIVE
    owes: dict[Debt, float] = field(default_factory=dict)
    heard: float = 0.0
    asked: float | None = None  # when it was asked for a sign of life, if it has not spoken since
    sent: int = 0


class Roster:
    """All workers; ``home[unit]`` is the rank that computes a unit when nothing is wrong.

    ``suspect_after`` is in seconds. ``depth`` is how many debts a rank may have, for each of its
    own units, before its units go to others.
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

    def alive(self) -> list[Rank]:
        """Return the ranks that have neither failed nor are suspect."""
        return [rank for rank in self.ranks.values() if rank.state is State.ALIVE]

    def place(self, debt: Debt, tried: Collection[int] = ()) -> int | None:
        """Choose a rank for a unit: its home, else a spare, else the least loaded; None if none.

        A rank that owes this very unit is not asked twice; a suspect one, or one of ``tried``, that
        was asked for it before, only if there is no other.
        """
        if self.at_home(debt, tried):
            return self.home[debt.unit]
        able = [rank for rank in self.living() if debt not in rank.owes]
        chosen = min(able, key=lambda rank: _reluctance(rank, tried), default=None)
        return chosen.number if chosen is not None else None

    def at_home(self, debt: Debt, tried: Collection[int] = ()) -> bool:
        """Whether the unit's own rank can take it."""
        rank = self.ranks[self.home[debt.unit]]
        can = rank.state is State.ALIVE and len(rank.owes) < self.depth * rank.homes
        return can and debt not in rank.owes and rank.number not in tried

    def post(self, number: int, debt: Debt, now: float) -> None:
        """A unit was sent to a rank."""
        rank = self.ranks[number]
        rank.owes[debt] = now
        rank.sent += 1

    def hear(self, number: int, now: float) -> bool:
        """A rank spoke; return True if it was suspect and is now alive again."""
        rank = self.ranks[number]
        rank.heard, rank.asked = now, None
        if rank.state is not State.SUSPECT:
            return False
        rank.state = State.ALIVE
        return True

    def settle(self, number: int, debt: Debt) -> list[Debt]:
        """A rank answered ``debt``: strike it and all older ones, which were lost; return them."""
        owes = self.ranks[number].owes
        debts = list(owes)
        settled = debts[: debts.index(debt) + 1] if debt in owes else []
        for done in settled:
            del owes[done]
        return settled

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

    def silent(self, now: float) -> list[int]:
        """Return the ranks to be asked now for a sign of life."""
        half = self.suspect_after / 2
        silent = [
            rank
            for rank in self.alive()
            if rank.owes and rank.asked is None and now - _waiting_since(rank) > half
        ]
        for rank in silent:
            rank.asked = now
        return [rank.number for rank in silent]

    def overdue(self, now: float) -> list[int]:
        """Mark the ranks that were asked and have not spoken as suspect and return them."""
        half = self.suspect_after / 2
        overdue = [p for p in self.alive() if p.asked is not None and now - p.asked > half]
        for rank in overdue:
            rank.state = State.SUSPECT
        return [rank.number for rank in overdue]


def _waiting_since(rank: Rank) -> float:
    return max(next(iter(rank.owes.values())), rank.heard)


def _reluctance(rank: Rank, tried: Collection[int]) -> tuple[bool, bool, int, int, int, int]:
    """Least debts first, then spare ranks, then those asked least; ties by the rank's number."""
    hopeful = (rank.state is State.SUSPECT, rank.number in tried)
    return (*hopeful, len(rank.owes), rank.homes, rank.sent, rank.number)
