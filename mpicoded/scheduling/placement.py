"""Which ranks compute the units of one stage: the fastest have the data.

    all about equally fast     every unit at home, stage after stage
    a slow rank                has a parity unit: what it answers is not waited for
    k <= ranks < n             a data unit each; parity as far as there are ranks without a unit
    ranks < k                  two data units on the fastest, no parity
    sharing                    every unit where it is done first (ADCNN's min max x_i/s_i: Zhang
                               et al., ICPP 2020), so that slow ranks get fewer

A parity unit on a rank that has a data unit already would only make the next stage wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf
from statistics import median

from mpicoded.scheduling.roster import Debt, Rank, Roster, State

SLOW = 1.3  # times what another rank would take: then the unit moves there
NEAR = 1.25  # the same where a unit may go anywhere, and to leave a parity unit at its home
GAIN, LEAST = 0.1, 0.005  # of a stage's usual time, and seconds: what a unit must gain by that
LATE, HICCUP = 2.0, 0.05  # times the usual time of a stage, and seconds
PROBE = 2.0  # s; a slow rank that had nothing to do for so long may have recovered


class Placement:
    """Ranks for the units of a stage, ``k`` of them data; units are to be placed once each.

    ``busy`` is how many seconds of work every rank has. With ``owed`` that includes what it owes
    from before, but not what it will skip: the units of queries before ``oldest``. ``given``
    names the ranks that have a unit of this stage. ``usual`` is how long a stage takes from
    posting until its data is here, in seconds, if that is known.
    """

    def __init__(
        self,
        roster: Roster,
        key: tuple[int, int],
        k: int,
        oldest: int,
        now: float = 0.0,
        usual: float | None = None,
        owed: bool = True,
    ) -> None:
        self.roster, self.key, self.k = roster, key, k
        living = roster.living()
        timed = [rank.pace for rank in living if rank.timed is not None]
        self.middle = median(timed) if timed else 1.0
        self.usual = usual or 0.0
        self.pace = {p.number: self._pace(p, now) if roster.adaptive else 1.0 for p in living}
        self.alive = [rank for rank in living if rank.state is State.ALIVE]
        self.ready = [rank for rank in self.alive if roster.ready(rank)]
        self.able = self.ready or self.alive or living
        self.busy = dict.fromkeys(self.pace, 0.0)
        self.given: set[int] = set()
        self.dealt: dict[int, int] = {}  # unit: rank
        if owed or roster.sharing:
            self._add_owed(living, oldest)

    def _pace(self, rank: Rank, now: float) -> float:
        """Return a rank's pace; one that owes something for long is slow before it is measured."""
        pace = self.middle if rank.timed is None else rank.pace
        waited = now - next(iter(rank.owes.values())) if rank.owes else 0.0
        if not self.usual or waited < LATE * self.usual + HICCUP:
            return pace
        return max(pace, waited / self.roster.takes(self.key[1], 0, parity=False))

    def _add_owed(self, living: Iterable[Rank], oldest: int) -> None:
        for rank in living:
            for debt in rank.owes:
                if debt.query >= oldest:
                    seconds = self.roster.takes(debt.stage, debt.unit, debt.unit >= self.k)
                    self.busy[rank.number] += seconds * self.pace[rank.number]
                if debt[:2] == self.key:
                    self.given.add(rank.number)

    def deal(self) -> list[tuple[int, int]]:
        """Place all units for the first time: (unit, rank), data first."""
        home = self.roster.home
        if not self.able:
            return []
        if self.roster.sharing:
            return [(unit, self._share(unit)) for unit in range(len(home))]
        good = self._good_homes()
        dealt = [(unit, self._give(unit, home[unit])) for unit in good]
        dealt += [(unit, self._away(unit)) for unit in range(self.k) if unit not in good]
        return dealt + self._parity()

    def again(self, unit: int, tried: Collection[int], unanswered: Collection[int]) -> int | None:
        """Choose a rank for a unit that is missing; None if nobody can be asked (any more).

        A rank that owes this very unit is not asked twice; a suspect one only if there is no other,
        then one that was asked for it or for another missing unit, then one that owes for long.
        """
        debt = Debt(*self.key, unit)
        able = [rank for rank in self.roster.living() if debt not in rank.owes]
        if unit >= self.k and not self.roster.sharing:
            able = [r for r in able if r.state is State.ALIVE and r.number not in self.given]

        def reluctance(rank: Rank) -> tuple[bool, bool, bool, float, tuple[float, int, int]]:
            number, suspect = rank.number, rank.state is State.SUSPECT
            owes = -next(iter(rank.owes.values()), inf)
            return suspect, number in tried, number in unanswered, owes, self._price(rank, unit)

        chosen = min(able, key=reluctance, default=None)
        return None if chosen is None else self._give(unit, chosen.number)

    def probes(self, now: float) -> list[int]:
        """Return the slow ranks that have nothing to do and were not measured for long."""
        fastest = min(self.pace.values(), default=1.0)
        return [
            rank.number
            for rank in self.alive
            if self.roster.adaptive
            and rank.timed is not None
            and now - rank.timed > PROBE
            and rank.pace > NEAR * fastest
            and not (rank.owes or rank.number in self.given)
        ]

    def idle(self) -> list[int]:
        """Return the ranks that have nothing to do and are not slow, the fastest first."""
        limit = SLOW * min((self.pace[rank.number] for rank in self.alive), default=0.0)
        idle = [rank.number for rank in self.alive if not self.busy[rank.number]]
        return sorted((p for p in idle if self.pace[p] <= limit), key=lambda p: self.pace[p])

    def _good_homes(self) -> list[int]:
        """Return the data units whose own ranks can take them and are not clearly slow."""
        home, owners = self.roster.home, set(self.roster.home[: self.k])
        fastest = min((self.pace[r.number] for r in self.able), default=0.0)
        free = [self.pace[r.number] for r in self.able if r.number not in owners]
        best = min([2 * fastest, *free])  # a second unit on the fastest rank, or a free rank
        ready = {rank.number for rank in self.ready}
        return [u for u in range(self.k) if home[u] in ready and not self._slow(home[u], best, u)]

    def _slow(self, number: int, pace: float, unit: int) -> bool:
        """Whether a rank is clearly slower at a unit than one of that pace, and it matters."""
        own, takes = self.pace[number], self.roster.takes(self.key[1], unit, unit >= self.k)
        return own > SLOW * pace and (own - pace) * takes > max(GAIN * self.usual, LEAST)

    def _away(self, unit: int) -> int:
        """Place a data unit that cannot stay at home; if that is for good, it moves."""
        number = min(self.able, key=lambda rank: self._price(rank, unit)).number
        if number not in self.roster.home[: self.k]:
            self._move(unit, number)
        return self._give(unit, number)

    def _parity(self) -> list[tuple[int, int]]:
        """Place the parity units on ranks that have no unit yet, as far as there are any."""
        home, dealt = self.roster.home, list[tuple[int, int]]()
        for unit in range(self.k, len(home)):
            others = {p for p in home[self.k :] if p != home[unit]} | self.given
            free = {rank.number: rank for rank in self.ready if rank.number not in others}
            if free:
                best = min(free.values(), key=lambda rank: self._price(rank, unit)).number
                if home[unit] in free and not self._slow(home[unit], self.pace[best], unit):
                    best = home[unit]
                elif best not in home:
                    self._move(unit, best)
                dealt.append((unit, self._give(unit, best)))
        return dealt

    def _share(self, unit: int) -> int:
        """Place a unit where it is done first; at home if that is within a quarter of a unit."""
        holders = {rank for other, rank in self.dealt.items() if (unit - other) % self.k == 0}
        apart = [rank for rank in self.able if rank.number not in holders] or self.able
        best = min(apart, key=lambda rank: self._price(rank, unit))
        own = self.roster.ranks[self.roster.home[unit]]
        if own in apart and (not self.roster.adaptive or self._about_as_soon(own, best, unit)):
            best = own
        return self._give(unit, best.number)

    def _about_as_soon(self, own: Rank, best: Rank, unit: int) -> bool:
        alone = self._bid(best, unit) - self.busy[best.number]
        return self._bid(own, unit) <= self._bid(best, unit) + (NEAR - 1) * alone

    def _move(self, unit: int, number: int) -> None:
        """Make another rank a unit's home, unless its own one may soon be there again."""
        old = self.roster.ranks[self.roster.home[unit]]
        if old.state is State.FAILED or old in self.ready:
            self.roster.move(unit, number)

    def _bid(self, rank: Rank, unit: int) -> float:
        """Return in how many seconds a rank would be done with a unit."""
        takes = self.roster.takes(self.key[1], unit, unit >= self.k)
        return self.busy[rank.number] + takes * self.pace[rank.number]

    def _price(self, rank: Rank, unit: int) -> tuple[float, int, int]:
        """Spare ranks before others that are about as fast; ties by what they were sent."""
        own_units = NEAR if rank.homes else 1.0
        return self._bid(rank, unit) * own_units, rank.sent, rank.number

    def _give(self, unit: int, number: int) -> int:
        self.busy[number] = self._bid(self.roster.ranks[number], unit)
        self.given.add(number)
        self.dealt[unit] = number
        return number
