"""Which hosts can be used now: all are asked at the same time."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

from mpicoded.cluster_tools.launch.command import SSH
from mpicoded.cluster_tools.launch.target import Host, Target

ABREAST = 256  # hosts that are asked at the same time
STEP = 0.2  # s between two looks whether it is still to be waited for
LONGEST = 300  # characters that are shown of a line
KEPT = 4096  # bytes that are read of what an agent said
# A host that is off or not yet up: it may be left out, where one that refuses is a mistake.
ABSENT = re.compile(r"timed out|no route to host|network is unreachable|host is down", re.I)


@dataclass(frozen=True)
class Refusal:
    """Why a host cannot be used: it is silent, or the agent ended with ``status`` and ``said``."""

    status: int = 0
    said: str = ""

    @property
    def final(self) -> bool:
        """Whether asking again is of no use: a key, a name or a user is wrong."""
        return self.status != 0 and ABSENT.search(self.said) is None


def refusals(
    target: Target,
    hosts: Sequence[Host],
    limit: float,
    words: Sequence[str] = ("true",),
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Refusal]:
    """Return why which hosts cannot be used: each has ``limit`` seconds to run some words.

    Once it is ``stopped`` nobody is waited for.
    """
    if not hosts:
        return {}
    ask = probe(target, limit, words, stopped)
    with ThreadPoolExecutor(min(len(hosts), ABREAST)) as pool:
        found = zip(hosts, pool.map(ask, [host.name for host in hosts]), strict=True)
        return {host.name: why for host, why in found if why is not None}


def probe(
    target: Target, limit: float, words: Sequence[str], stopped: Callable[[], bool]
) -> Callable[[str], Refusal | None]:
    """Return a function that has the agent run the words on a host."""
    reachable = target.reachable
    if reachable is not None:
        return lambda host: None if reachable(host, stopped) else Refusal()
    agent = shlex.split(target.agent or SSH)
    # the words may stand for machines of their own (a network namespace), where no name is ours
    here = set() if target.prefix or target.agent else names_of_this_machine()

    def ask(host: str) -> Refusal | None:
        if host in here:
            return None
        return _run([*target.prefix, *agent, host, *words], limit, stopped)

    return ask


def _run(words: Sequence[str], limit: float, stopped: Callable[[], bool]) -> Refusal | None:
    null = subprocess.DEVNULL
    with tempfile.TemporaryFile() as said:  # what ssh leaves in the background keeps a pipe open
        try:
            process = subprocess.Popen(
                words, stdin=null, stdout=null, stderr=said, start_new_session=True
            )
        except OSError as error:
            return Refusal(127, f"{words[0]}: {error.strerror}")
        end = time.monotonic() + limit
        while time.monotonic() < end and not stopped():
            with suppress(subprocess.TimeoutExpired):
                if status := process.wait(STEP):
                    said.seek(max(0, said.seek(0, os.SEEK_END) - KEPT))
                    return Refusal(status, last_line(said.read()))
                return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return Refusal()


def last_line(said: bytes) -> str:
    """Return the last line with a word in it, as far as it can be printed."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if any(map(str.isalnum, line))), "")
    return "".join(c if c.isprintable() else "?" for c in last[:LONGEST])


def names_of_this_machine() -> set[str]:
    """Return the names by which mpirun does not need ssh."""
    name = socket.gethostname()
    return {"localhost", "127.0.0.1", name, name.split(".")[0], os.uname().nodename}


def placed(hosts: Sequence[Host], ranks: int) -> tuple[str, ...]:
    """Return the host of each rank, as `--map-by node` deals them out; () if they do not fit."""
    rounds = range(max((host.slots for host in hosts), default=0))
    dealt = (host.name for i in rounds for host in hosts if i < host.slots)
    first = tuple(islice(dealt, ranks))
    return first if len(first) == ranks else ()


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
