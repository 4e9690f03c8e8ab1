"""Which hosts can be used now: all are asked at the same time."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from mpicoded.launch.command import SSH
from mpicoded.launch.target import Host, Target


def usable(target: Target, hosts: Sequence[Host], limit: float) -> tuple[Host, ...]:
    """Return the hosts that answer within ``limit`` seconds, in their order."""
    if not hosts:
        return ()
    ask = target.reachable or probe(target, limit)
    with ThreadPoolExecutor(len(hosts)) as pool:
        answers = list(pool.map(ask, [host.name for host in hosts]))
    return tuple(host for host, answer in zip(hosts, answers, strict=True) if answer)


def probe(target: Target, limit: float) -> Callable[[str], bool]:
    """Return a function that has the agent run ``true`` on a host."""
    agent = shlex.split(target.agent or SSH)
    # the words may stand for machines of their own (a network namespace), where no name is ours
    here = set() if target.prefix or target.agent else names_of_this_machine()

    def answers(host: str) -> bool:
        if host in here:
            return True
        words = [*target.prefix, *agent, host, "true"]
        try:
            done = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limit,
                check=False,
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    return answers


def names_of_this_machine() -> set[str]:
    """Return the names by which mpirun does not need ssh."""
    name = socket.gethostname()
    return {"localhost", "127.0.0.1", name, name.split(".")[0], os.uname().nodename}


def placed(hosts: Sequence[Host], ranks: int) -> tuple[str, ...]:
    """Return the host of each rank, as `--map-by node` deals them out; () if they do not fit."""
    rounds = range(max((host.slots for host in hosts), default=0))
    dealt = [host.name for i in rounds for host in hosts if i < host.slots]
    return tuple(dealt[:ranks]) if ranks <= len(dealt) else ()


def before(hosts: Sequence[str], all_hosts: Sequence[str]) -> tuple[int, ...]:
    """Return which rank each rank was when no host was missing, by the hosts of both starts.

    Ranks of one host keep their order; the others stand in for ranks that are gone.
    """
    left = dict(enumerate(all_hosts))
    found: dict[int, int] = {}
    for rank, host in enumerate(hosts):
        same = [p for p, name in left.items() if name == host]
        if same:
            found[rank] = same[0]
            del left[same[0]]
    spare = iter(left)
    return tuple(found[rank] if rank in found else next(spare) for rank in range(len(hosts)))


def fit(ranks: int, hosts: Sequence[Host], all_hosts: Sequence[Host]) -> int:
    """Return how many ranks to start: as many as were asked for, if there is room for them.

    Who asked for more ranks than slots from the start gets that again.
    """
    room, wanted = sum(h.slots for h in hosts), sum(h.slots for h in all_hosts)
    return ranks if not hosts or ranks > wanted else min(ranks, room)
