"""Faults as data: what happens to which rank in which queries, drawn from the seed.

A worker applies its own kinds to itself, for real: a crash is SIGKILL, a freeze is SIGSTOP, silence
is an answer that is never sent. What befalls a node or its link is done by the lab (:mod:`lab`).
"""

from __future__ import annotations  # or the annotation of a generator would import numpy.random

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from mpicoded.errors import JobError
from mpicoded.trace import Action


@dataclass(frozen=True)
class Kind:
    """One kind of fault: a sentence on it, its event in the trace, and its keys in [[faults]].

    ``names`` are those beside kind and start; ``seconds`` is how long it lasts if the job does not
    say it. ``value`` says which number the lab needs, ``word`` what a picture calls it.
    """

    doc: str
    action: Action
    names: str
    by_lab: bool = False
    once: bool = False  # it has happened for good once its first query was asked
    moment: bool = False  # it has no end
    silent: bool = True  # no answer may come
    seconds: float = 0.0
    value: str = ""
    word: str = ""

    @property
    def keys(self) -> set[str]:
        """Its keys in [[faults]], beside kind and start."""
        return set(self.names.split())


KINDS = {
    "slow": Kind("A worker computes `factor` times slower.",
                 Action.SLOW, "rank stop factor", silent=False),
    "crash": Kind("A worker kills itself with SIGKILL.",
                  Action.CRASH, "rank", once=True, moment=True),
    "silence": Kind("A worker sends no answer, each time with `probability`.",
                    Action.SILENCE, "rank stop probability", moment=True),
    "delay": Kind("A worker sends its answer `seconds` later, each time with `probability`.",
                  Action.DELAY, "rank stop seconds probability tail", silent=False, seconds=0.05),
    "freeze": Kind("A worker stops itself with SIGSTOP for `seconds`.",
                   Action.FREEZE, "rank seconds", once=True, seconds=2.0),
    "pattern": Kind("Of all workers `missing` send no answer, others in every query.",
                    Action.SILENCE, "stop missing", moment=True),
    "reboot": Kind("A node goes away with its MPI daemon, and comes back after `seconds`.",
                   Action.REBOOT, "rank seconds", by_lab=True, once=True, seconds=10.0),
    "cpu": Kind("A node keeps `share` of its CPU limit.",
                Action.CPU, "rank stop share seconds", by_lab=True, silent=False, word="less CPU",
                value="the share of the node's own CPU limit that is left, such as 0.1"),
    "rate": Kind("The link of a node has `mbit`.",
                 Action.RATE, "rank stop mbit seconds", by_lab=True, silent=False, word="link rate",
                 value="the new rate of its link, such as 5mbit"),
    "link": Kind("The link of a node is down.",
                 Action.LINK, "rank stop seconds", by_lab=True, word="link down"),
    "loss": Kind("The link of a node loses `share` of its packets.",
                 Action.LOSS, "rank stop share seconds", by_lab=True,
                 value="the share of packets that are lost, such as 0.05"),
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """A fault of ``rank`` (None: any, drawn from the seed) in queries [first, last).

    ``factor`` is how many times slower a slow rank computes, ``probability`` the share of queries
    in which silence or delay strikes. ``seconds`` is the delay of an answer (with ``tail`` the mean
    of an exponential one), or how long a freeze, a reboot or another fault of the lab lasts. In a
    pattern ``missing`` of ``workers`` are silent: all sets of them take turns, query by query.
    ``value`` is for the lab: the share of the CPU that is left, bit/s, the share of packets lost.
    """

    kind: str  # of KINDS
    rank: int | None
    first: int
    last: int
    factor: float = 1.0
    seconds: float = 0.0
    probability: float = 1.0
    tail: bool = False
    missing: int = 0
    workers: tuple[int, ...] = ()
    value: float = 0.0

    @property
    def by_lab(self) -> bool:
        """True if the lab injects the fault."""
        return KINDS[self.kind].by_lab

    @property
    def once(self) -> bool:
        """True if the fault has happened for good once its first query was asked."""
        return KINDS[self.kind].once or (self.by_lab and self.seconds > 0)


@dataclass(frozen=True)
class Effect:
    """What happens to one rank in one query; a freeze is (number of its fault, seconds)."""

    crash: bool = False
    silent: bool = False
    factor: float = 1.0
    seconds: float = 0.0
    freezes: tuple[tuple[int, float], ...] = ()

    def of_unit(self, answers: bool, skipped: bool) -> Effect:
        """Return the effect on a unit: delay and silence befall those that answer the leader.

        A skipped unit is not delayed: a rank that is behind could never catch up.
        """
        seconds = self.seconds if answers and not skipped else 0.0
        return replace(self, seconds=seconds, silent=self.silent and answers)


NO_EFFECT = Effect()


@dataclass(frozen=True)
class Schedule:
    """The faults of one rank."""

    rank: int
    faults: tuple[Fault, ...]
    seed: int

    def at(self, query: int) -> Effect:
        """Return the effects in ``query``; the same for the same seed, rank and query."""
        if not self.faults:
            return NO_EFFECT
        struck = [(i, f) for i, f in enumerate(self.faults) if self._strikes(i, f, query)]
        kinds = [f.kind for _, f in struck]
        return Effect(
            crash="crash" in kinds,
            silent="silence" in kinds or "pattern" in kinds,
            factor=float(np.prod([f.factor for _, f in struck if f.kind == "slow"])),
            seconds=sum(self._delay(i, f, query) for i, f in struck if f.kind == "delay"),
            freezes=tuple((i, f.seconds) for i, f in struck if f.kind == "freeze"),
        )

    def _strikes(self, index: int, fault: Fault, query: int) -> bool:
        if not fault.first <= query < fault.last or fault.by_lab:
            return False
        if fault.kind == "pattern":
            return self.rank in pattern(fault, query)
        if fault.probability >= 1:
            return True
        return bool(self._generator(index, query).random() < fault.probability)

    def _delay(self, index: int, fault: Fault, query: int) -> float:
        if not fault.tail:
            return fault.seconds
        generator = self._generator(index, query)
        generator.random()  # the draw that decided whether it strikes
        return float(generator.exponential(fault.seconds))

    def _generator(self, index: int, query: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.rank, query, index))


def pattern(fault: Fault, query: int) -> tuple[int, ...]:
    """Return the ranks that are silent in ``query``: all sets of that size take turns."""
    patterns = list(combinations(fault.workers, fault.missing))
    return patterns[(query - fault.first) % len(patterns)]


def assign(faults: Sequence[Fault], workers: Iterable[int], seed: int) -> tuple[Fault, ...]:
    """Give every fault without a rank one of ``workers``, drawn from the seed, none twice.

    Without any worker there is nobody to strike, and the faults are left out. Raises JobError if a
    fault names a rank that is no worker, or there are more faults than workers.
    """
    known = sorted(workers)
    if not known:
        return ()
    everywhere = [f for f in faults if f.kind == "pattern"]
    faults = [f for f in faults if f.kind != "pattern"]
    named = {fault.rank for fault in faults if fault.rank is not None}
    for rank in sorted(named.difference(known)):
        raise JobError(
            f"[[faults]] rank = {rank} is no worker: name one of ranks {known[0]} to {known[-1]}, "
            "or none to have it drawn"
        )
    drawn = sum(fault.rank is None for fault in faults)
    free = [int(p) for p in np.random.default_rng(seed).permutation(known) if p not in named]
    if drawn > len(free):
        raise JobError(
            f"[[faults]] {drawn} without a rank are to strike one worker each, {len(free)} are "
            "free: leave some out, or give several the same rank"
        )
    struck = [replace(f, rank=free.pop(0)) if f.rank is None else f for f in faults]
    every = tuple(known)
    return (*struck, *(replace(f, rank=p, workers=every) for f in everywhere for p in known))


def moved(faults: Iterable[Fault], before: Sequence[int]) -> tuple[Fault, ...]:
    """Return the faults by today's ranks: rank i was ``before[i]``; those that left have none."""
    now = {then: rank for rank, then in enumerate(before) if rank}
    return tuple(
        replace(f, rank=now[f.rank], workers=tuple(now[p] for p in f.workers if p in now))
        for f in faults
        if f.rank in now
    )


def schedule(faults: Iterable[Fault], rank: int, seed: int) -> Schedule:
    """Return the faults of one rank."""
    return Schedule(rank, tuple(f for f in faults if f.rank == rank), seed)
