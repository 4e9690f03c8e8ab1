"""Faults as data: seeded delays, silence, slowness and crashes per (rank, query).

The worker applies them to itself, for real: a crash is SIGKILL, silence is an answer that is never
sent, slowness is time. Silence and crashes are deterministic in the seed, so that a run can be
repeated bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mpicoded.errors import JobError

Kind = Literal["slow", "crash", "silence", "delay"]


@dataclass(frozen=True)
class Fault:
    """What befalls ``rank`` (None: any, drawn from the seed) in queries [first, last).

    ``factor`` is how many times slower a slow rank computes, ``seconds`` the delay of an answer,
    ``probability`` the share of queries in which silence or delay strikes.
    """

    kind: Kind
    rank: int | None
    first: int
    last: int
    factor: float = 1.0
    seconds: float = 0.0
    probability: float = 1.0


@dataclass(frozen=True)
class Effect:
    """What happens to one rank in one query."""

    crash: bool = False
    silent: bool = False
    factor: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Schedule:
    """The faults of one rank."""

    rank: int
    faults: tuple[Fault, ...]
    seed: int

    def at(self, query: int) -> Effect:
        """Return what happens in ``query``; the same for the same seed, rank and query."""
        struck = [f for i, f in enumerate(self.faults) if self._strikes(i, f, query)]
        return Effect(
            crash=any(f.kind == "crash" for f in struck),
            silent=any(f.kind == "silence" for f in struck),
            factor=float(np.prod([f.factor for f in struck if f.kind == "slow"])),
            seconds=sum(f.seconds for f in struck if f.kind == "delay"),
        )

    def _strikes(self, index: int, fault: Fault, query: int) -> bool:
        if not fault.first <= query < fault.last:
            return False
        if fault.probability >= 1:
            return True
        draw = np.random.default_rng((self.seed, self.rank, query, index)).random()
        return bool(draw < fault.probability)


def assign(faults: Sequence[Fault], workers: Iterable[int], seed: int) -> tuple[Fault, ...]:
    """Give every fault without a rank one of ``workers``, drawn from the seed, none twice.

    Without any worker there is nobody to strike, and the faults are left out.

    Raises
    ------
    JobError
        If a fault names a rank that is no worker, or there are more faults than workers.
    """
    known = sorted(workers)
    if not known:
        return ()
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
    return tuple(replace(f, rank=free.pop(0)) if f.rank is None else f for f in faults)


def schedule(faults: Iterable[Fault], rank: int, seed: int) -> Schedule:
    """Return the faults of one rank."""
    return Schedule(rank, tuple(f for f in faults if f.rank == rank), seed)
