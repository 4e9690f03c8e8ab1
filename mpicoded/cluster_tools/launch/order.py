"""Order: one start in full, on which hosts, with how many ranks, and of which program."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpicoded.cluster_tools.launch.allocation import alone
from mpicoded.cluster_tools.launch.command import for_root, variables, words
from mpicoded.cluster_tools.launch.mpi import Mpi
from mpicoded.cluster_tools.launch.nodes import before, placed
from mpicoded.cluster_tools.launch.outline import Outline
from mpicoded.cluster_tools.launch.target import Host, Target

STAND_INS = "MPICODED_RANKS"
STARTS = "MPICODED_STARTS"  # how often the job was started before, if it was


@dataclass(frozen=True)
class Order:
    """``words`` are the whole command line, ``env`` what is added to the environment.

    ``hosts`` are those that are named in it; none: mpirun finds them itself.
    """

    words: tuple[str, ...]
    env: dict[str, str]
    ranks: int
    hosts: tuple[Host, ...] = ()

    def __str__(self) -> str:
        return shlex.join(self.words)


def of_job(
    mpi: Mpi,
    target: Target,
    job: Path,
    outline: Outline,
    sets: Sequence[str],
    flags: Sequence[str],
    hosts: Sequence[Host],
    ranks: int,
    starts: int = 0,
) -> Order:
    """Return the start of a job, after ``starts`` others, on ``ranks`` ranks of ``hosts``.

    Workers that are too few after a host was left out take several units each.
    """
    given = list(sets)
    if ranks < target.ranks and 1 < ranks <= outline.units:
        given.append("runtime.sharing=true")
    if ranks < target.ranks or tuple(hosts) != target.hosts:
        target = replace(target, env={**target.env, **_stand_ins(target, hosts, ranks)})
    if starts:
        target = replace(target, env={**target.env, STARTS: str(starts)})
    name = f"./{job}" if str(job).startswith("-") else str(job)  # no option of `run`
    program = [sys.executable, "-m", "mpicoded", "run", name, *flags]
    program += [word for each in given for word in ("--set", each)]
    return of_program(mpi, target, program, outline.threads, hosts, ranks)


def of_program(
    mpi: Mpi,
    target: Target,
    program: Sequence[str],
    threads: int,
    hosts: Sequence[Host],
    ranks: int,
) -> Order:
    """Return the start of any program under mpirun."""
    shared = variables(mpi, target, threads, sys.stdout.isatty(), alone(hosts))
    command = [*words(mpi, target, hosts, ranks, list(shared)), *program]
    return Order(tuple(command), {**shared, **for_root()}, ranks, tuple(hosts))


def _stand_ins(target: Target, hosts: Sequence[Host], ranks: int) -> dict[str, str]:
    """Return the variable that tells the leader which rank is which after hosts were left out.

    "9:0,1,3" reads: there were 9 ranks, and what is rank 2 now was rank 3 then; so a fault that the
    job names for a rank stays with its node. Where mpirun places the ranks itself they are counted.
    """
    then, now = placed(target.hosts, target.ranks), placed(hosts, ranks)
    same = before(now, then) if then and now else range(ranks)
    return {STAND_INS: f"{target.ranks}:{','.join(map(str, same))}"}
