"""Decides, for every query in flight, who gets which unit and when a stage is done.

It owns neither a clock nor a communicator: the leader (or a simulator) tells it what happened and
when, and carries out the actions that it returns.

    actions = dispatcher.open(query, stage, now)          # post the units
    actions = dispatcher.answered(rank, debt, now)        # an answer came
    actions = dispatcher.failed(rank, now)                # a rank died
    actions = dispatcher.tick(now)                        # time passed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mpicoded.gather import Deadline, Erasures, Gather, Verdict
from mpicoded.roster import Debt, Roster, State


@dataclass(frozen=True)
class Post:
    """Send this unit to this rank; ``again`` if it was sent to some rank before."""

    rank: int
    debt: Debt
    again: bool


@dataclass(frozen=True)
class Ready:
    """Decode this stage from what arrived; ``rounds`` is how often its units were sent."""

    query: int
    stage: int
    arrived: npt.NDArray[np.bool_]
    rounds: int


@dataclass(frozen=True)
class Lost:
    """Give this query up."""

    query: int
    stage: int
    arrived: npt.NDArray[np.bool_]
    rounds: int


@dataclass(frozen=True)
class Suspect:
    """Ask this rank for a sign of life."""

    rank: int


@dataclass(frozen=True)
class Late:
    """The answer that just came from this rank was not needed any more."""

    rank: int
    debt: Debt


@dataclass(frozen=True)
class Return:
    """A suspect rank spoke again."""

    rank: int


Act = Post | Ready | Lost | Suspect | Late | Return


class Dispatcher:
    """The state of all open stages; ``codes[s]`` is the code of stage s.

    A stage that is not decodable after ``give_up`` seconds is sent again, ``retries`` times, to
    ranks that live; then its query is lost.
    """

    def __init__(
        self,
        codes: Sequence[Erasures],
        roster: Roster,
        deadlines: Sequence[Deadline],
        give_up: float,
        retries: int,
    ) -> None:
        self.codes = codes
        self.roster = roster
        self.deadlines = deadlines
        self.give_up = give_up
        self.retries = retries
        self.gathers: dict[tuple[int, int], Gather] = {}
        self.rounds: dict[tuple[int, int], int] = {}
        self._pinged: dict[int, float] = {}

    def open(self, query: int, stage: int, now: float) -> list[Act]:
        """Post all units of a stage."""
        key = (query, stage)
        gather = Gather(self.codes[stage], now, self.give_up)
        self.gathers[key], self.rounds[key] = gather, 1
        return self._post(key, range(gather.code.n), now, again=False)

    def answered(self, rank: int, debt: Debt, now: float, skipped: bool = False) -> list[Act]:
        """An answer came; ``skipped`` if the worker found that it was not needed any more."""
        acts = self.spoke(rank, now)
        lost = self.roster.settle(rank, debt)
        gather = self.gathers.get(debt[:2])
        if gather is None or skipped or gather.arrived[debt.unit]:
            acts.append(Late(rank, debt))
        else:
            gather.arrive(debt.unit, now)
        return acts + self._written_off([*lost, debt], now)

    def spoke(self, rank: int, now: float) -> list[Act]:
        """A rank showed that it is there."""
        self._pinged.pop(rank, None)
        return [Return(rank)] if self.roster.hear(rank, now) else []

    def nothing_left(self, rank: int, asked: float, now: float) -> list[Act]:
        """A rank says that it had nothing to do when asked at ``asked``: its debts were lost."""
        return self.spoke(rank, now) + self._written_off(self.roster.forgive(rank, asked), now)

    def failed(self, rank: int, now: float) -> list[Act]:
        """A rank died: what it owed is posted to others at once."""
        debts = self.roster.fail(rank)
        acts = [act for debt in debts for act in self._repost(debt, now)]
        return acts + self._written_off(debts, now)

    def tick(self, now: float) -> list[Act]:
        """Time has passed: look for silent ranks and for stages whose time is up."""
        acts: list[Act] = []
        for rank in self.roster.overdue(now):
            acts += self._suspect(rank, now)
        acts += self._ping_again(now)
        for key in list(self.gathers):
            acts += self._judge(key, now)
        return acts

    def oldest(self) -> int:
        """Return the oldest query in flight; workers may skip the units of older ones."""
        return min((query for query, _ in self.gathers), default=2**62)

    def _suspect(self, rank: int, now: float) -> list[Act]:
        self._pinged[rank] = now
        acts: list[Act] = [Suspect(rank)]
        for debt in list(self.roster.ranks[rank].owes):
            gather = self.gathers.get(debt[:2])
            if gather is not None and gather.decodable_after is None:
                acts += self._repost(debt, now)
        return acts

    def _ping_again(self, now: float) -> list[Act]:
        due = [p for p, t in self._pinged.items() if now - t > self.roster.suspect_after]
        due = [p for p in due if self.roster.ranks[p].state is State.SUSPECT]
        self._pinged.update((p, now) for p in due)
        return [Suspect(p) for p in due]

    def _repost(self, debt: Debt, now: float) -> list[Act]:
        gather = self.gathers.get(debt[:2])
        if gather is None or gather.arrived[debt.unit]:
            return []
        return self._post(debt[:2], [debt.unit], now, again=True)

    def _post(
        self, key: tuple[int, int], units: Sequence[int], now: float, again: bool
    ) -> list[Act]:
        acts: list[Act] = []
        for unit in units:
            debt = Debt(*key, unit)
            rank = self.roster.place(debt)
            if rank is not None:
                self.roster.post(rank, debt, now)
                acts.append(Post(rank, debt, again))
        self._count(key)
        return acts

    def _count(self, key: tuple[int, int]) -> None:
        """Count who still owes each unit; a suspect rank may well answer."""
        gather = self.gathers[key]
        gather.expected[:] = 0
        for rank in self.roster.living():
            for debt in rank.owes:
                if debt[:2] == key:
                    gather.expected[debt.unit] += 1

    def _written_off(self, debts: Sequence[Debt], now: float) -> list[Act]:
        acts: list[Act] = []
        for key in dict.fromkeys(debt[:2] for debt in debts):
            if key in self.gathers:
                self._count(key)
                acts += self._judge(key, now)
        return acts

    def _judge(self, key: tuple[int, int], now: float) -> list[Act]:
        gather, deadline = self.gathers[key], self.deadlines[key[1]]
        verdict = gather.verdict(deadline.seconds, now)
        if verdict is Verdict.WAIT:
            return []
        if verdict is Verdict.RESEND and self.rounds[key] <= self.retries:
            return self._send_again(key, now)
        del self.gathers[key]
        rounds = self.rounds.pop(key)
        if verdict is Verdict.RESEND:
            return [Lost(*key, gather.arrived, rounds)]
        if gather.decodable_after is not None:
            deadline.observe(gather.decodable_after)
        return [Ready(*key, gather.arrived, rounds)]

    def _send_again(self, key: tuple[int, int], now: float) -> list[Act]:
        gather = self.gathers[key]
        self.rounds[key] += 1
        gather.posted = now
        missing = [i for i in range(gather.code.n) if not gather.arrived[i]]
        return self._post(key, missing, now, again=True)
