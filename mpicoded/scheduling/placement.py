"""Placement of one stage's units on ranks: the fastest have the data.

    all about equally fast     every unit at home, stage after stage
    a slow rank                has a parity unit: what it answers is not waited for
    k <= ranks < n             a data unit each; parity as far as there are ranks without a unit
    ranks < k                  two data units on the fastest, no parity
    unequal shares             a slow rank keeps one that is small enough for it
    sharing, replicas          every unit where it is done first (ADCNN's min max x_i/s_i: Zhang
                               et al., ICPP 2020), so that slow ranks get fewer

A parity unit on a rank that has a data unit already would only make the next stage wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf
from statistics import median

from mpicoded.scheduling.ranks import Ranks, State, Task, WorkerState

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
        ranks: Ranks,
        key: tuple[int, int],
        k: int,
        oldest: int,
        now: float = 0.0,
        usual: float | None = None,
        owed: bool = True,
    ) -> None:
        self.ranks, self.key, self.k = ranks, key, k
        self.home, self.sharing = ranks.home_of(key[1]), ranks.shares(key[1])
        self.living = living = ranks.concerned()
        timed = [rank.pace for rank in living if rank.timed is not None]
        self.middle = median(timed) if timed else 1.0
        self.usual = usual or 0.0
        self.pace = {p.number: self._pace(p, now) if ranks.adaptive else 1.0 for p in living}
        self.alive = [rank for rank in living if rank.state is State.ALIVE]
        self.ready = [rank for rank in self.alive if ranks.ready(rank)]
        self.replicas = set(self.home) if ranks.replicated(key[1]) else set[int]()
        self.candidates = self._able(self.ready) or self._able(self.alive) or self._able(living)
        self.busy = dict.fromkeys(self.pace, 0.0)
        self.given: set[int] = set()
        self.assigned: dict[int, int] = {}  # unit: rank
        if owed or self.sharing:
            self._add_owed(living, oldest)

    def _able(self, ranks: list[WorkerState]) -> list[WorkerState]:
        """Return those of some ranks that have a replica; all if there is none."""
        return [rank for rank in ranks if rank.number in self.replicas] or ranks

    def _pace(self, rank: WorkerState, now: float) -> float:
        """Return a rank's pace; one with an old task is slow before it is measured."""
        pace = self.middle if rank.timed is None and rank.planned is None else rank.pace
        waited = now - next(iter(rank.outstanding.values())) if rank.outstanding else 0.0
        if not self.usual or waited < LATE * self.usual + HICCUP:
            return pace
        return max(pace, waited / self.ranks.takes(self.key[1], 0, parity=False))

    def _add_owed(self, living: Iterable[WorkerState], oldest: int) -> None:
        for rank in living:
            for task in rank.outstanding:
                if task.query >= oldest:
                    parity = task.unit >= self.ranks.data.get(task.stage, self.k)
                    seconds = self.ranks.takes(task.stage, task.unit, parity)
                    self.busy[rank.number] += seconds * self.pace[rank.number]
                if task[:2] == self.key:
                    self.given.add(rank.number)

    def assign(self) -> list[tuple[int, int]]:
        """Place all units for the first time: (unit, rank), data first."""
        if not self.candidates:
            return []
        if self.sharing:
            return [(u, self._share(u)) for u in range(self.ranks.units_of(self.key[1]))]
        good = self._good_homes()
        assigned = [(unit, self._give(unit, self.home[unit])) for unit in good]
        assigned += [(unit, self._away(unit)) for unit in range(self.k) if unit not in good]
        return assigned + self._parity()

    def again(self, unit: int, tried: Collection[int], unanswered: Collection[int]) -> int | None:
        """Choose a rank for a unit that is missing; None if no rank can be asked (any more).

        A rank that owes this very unit is not asked twice; a suspect one only if there is no other,
        then one that was asked for it or for another missing unit, then one that owes for long.
        """
        task = Task(*self.key, unit)
        able = self._able([rank for rank in self.living if task not in rank.outstanding])
        if unit >= self.k and not self.sharing:
            able = [r for r in able if r.state is State.ALIVE and r.number not in self.given]

        def reluctance(rank: WorkerState) -> tuple[bool | float | tuple[float, int, int], ...]:
            number, suspect = rank.number, rank.state is State.SUSPECT
            longest = -next(iter(rank.outstanding.values()), inf)
            return (
                suspect,
                number in tried,
                rank.lossy,
                number in unanswered,
                longest,
                self._cost(rank, unit),
            )

        chosen = min(able, key=reluctance, default=None)
        return None if chosen is None else self._give(unit, chosen.number)

    def probes(self, now: float) -> list[int]:
        """Return the slow ranks that have nothing to do and were not measured for long."""
        fastest = min(self.pace.values(), default=1.0)
        return [
            rank.number
            for rank in self.alive
            if self.ranks.adaptive
            and rank.timed is not None
            and now - rank.timed > PROBE
            and rank.pace > NEAR * fastest
            and not (rank.outstanding or rank.number in self.given)
        ]

    def idle(self) -> list[int]:
        """Return ranks without a task that are neither slow nor lossy, the fastest first."""
        limit = SLOW * min((self.pace[rank.number] for rank in self.alive), default=0.0)
        idle = [rank.number for rank in self.alive if not (rank.lossy or self.busy[rank.number])]
        return sorted((p for p in idle if self.pace[p] <= limit), key=lambda p: self.pace[p])

    def _good_homes(self) -> list[int]:
        """Return the data units whose own ranks can take them and are not clearly slow."""
        ready, busy = {rank.number for rank in self.ready}, dict.fromkeys(self.pace, 0.0)
        for unit in range(self.k):
            if self.home[unit] in busy:
                busy[self.home[unit]] += self._takes(unit) * self.pace[self.home[unit]]
        fastest = min((self.pace[r.number] for r in self.candidates), default=0.0)

        def good(unit: int) -> bool:
            """Compare with the rank that would be done first with the unit and with its own."""
            rank, takes = self.home[unit], self._takes(unit)
            if rank not in ready or self.pace[rank] <= SLOW * fastest:
                return rank in ready
            others = (r.number for r in self.candidates if r.number != rank)
            best = min((busy[p] + takes * self.pace[p] for p in others), default=inf)
            return not self._matters(busy[rank], best)

        return [unit for unit in range(self.k) if good(unit)]

    def _takes(self, unit: int) -> float:
        """Return the seconds that a unit takes a rank of pace 1."""
        return self.ranks.takes(self.key[1], unit, unit >= self.k)

    def _matters(self, seconds: float, best: float) -> bool:
        """True if so many seconds are clearly more than the best, and that matters to the stage."""
        return seconds > SLOW * best and seconds - best > max(GAIN * self.usual, LEAST)

    def _away(self, unit: int) -> int:
        """Place a data unit that cannot stay at home; if that is for good, it moves."""
        number = min(self.candidates, key=lambda rank: self._cost(rank, unit)).number
        if number not in self.home[: self.k]:
            self._move(unit, number)
        return self._give(unit, number)

    def _parity(self) -> list[tuple[int, int]]:
        """Place the parity units on ranks that have no unit yet, as far as there are any."""
        home, assigned = self.home, list[tuple[int, int]]()
        ready, spares = {rank.number: rank for rank in self.ready}, self._spares()
        for unit in range(self.k, len(home)):
            own = [ready[home[unit]]] if home[unit] in ready else []
            free = [rank for rank in (*spares, *own) if rank.number not in self.given]
            if free:
                best = min(free, key=lambda rank: self._cost(rank, unit)).number
                takes = self._takes(unit)
                mine, least = (takes * self.pace.get(p, inf) for p in (home[unit], best))
                if own and own[0] in free and not self._matters(mine, least):
                    best = home[unit]
                elif best not in home:
                    self._move(unit, best)
                    spares = self._spares()
                assigned.append((unit, self._give(unit, best)))
        return assigned

    def _spares(self) -> list[WorkerState]:
        """Return the ready ranks without a unit at which no parity unit is at home."""
        taken = {*self.home[self.k :], *self.given}
        return [rank for rank in self.ready if rank.number not in taken]

    def _share(self, unit: int) -> int:
        """Place a unit where it is done first; at home if that is within a quarter of a unit."""
        holders = {rank for other, rank in self.assigned.items() if (unit - other) % self.k == 0}
        apart = [rank for rank in self.candidates if rank.number not in holders] or self.candidates
        best = min(apart, key=lambda rank: self._cost(rank, unit))
        own = self.ranks.workers[self.home[unit]]
        fixed = not (self.ranks.adaptive or self.replicas)
        if own in apart and (fixed or self._about_as_soon(own, best, unit)):
            best = own
        return self._give(unit, best.number)

    def _about_as_soon(self, own: WorkerState, best: WorkerState, unit: int) -> bool:
        alone = self._finish_time(best, unit) - self.busy[best.number]
        return self._finish_time(own, unit) <= self._finish_time(best, unit) + (NEAR - 1) * alone

    def _move(self, unit: int, number: int) -> None:
        """Make another rank a unit's home, unless its own one may soon be there again."""
        old = self.ranks.workers[self.home[unit]]
        if old.state is State.FAILED or old in self.ready:
            self.ranks.move(unit, number, self.key[1])

    def _finish_time(self, rank: WorkerState, unit: int) -> float:
        """Return in how many seconds a rank would be done with a unit."""
        return self.busy[rank.number] + self._takes(unit) * self.pace[rank.number]

    def _cost(self, rank: WorkerState, unit: int) -> tuple[float, int, int]:
        """Return the sort key of a rank: spares before others about as fast; ties by tasks sent."""
        own_units = NEAR if rank.homes else 1.0
        return self._finish_time(rank, unit) * own_units, rank.sent, rank.number

    def _give(self, unit: int, number: int) -> int:
        self.busy[number] = self._finish_time(self.ranks.workers[number], unit)
        self.given.add(number)
        self.assigned[unit] = number
        return number
