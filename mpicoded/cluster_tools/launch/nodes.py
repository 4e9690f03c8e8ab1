"""Find the hosts that can be used now: all are asked at the same time."""

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

from mpicoded.cluster_tools.launch.machines import Host, Machines

SSH = "ssh -x -o BatchMode=yes -o ConnectTimeout=5"  # no question, and no long wait for the dead
ABREAST = 256  # hosts that are asked at the same time
STEP = 0.2  # s between two looks whether it is still to be waited for
LONGEST = 300  # characters that are shown of a line
KEPT = 4096  # bytes that are read of an agent's output
# A host that is off or not yet up: it may be left out, where one that refuses is a mistake.
ABSENT = re.compile(r"timed out|no route to host|network is unreachable|host is down", re.I)


@dataclass(frozen=True)
class Refusal:
    """Why a host cannot be used: it is silent, or the agent failed with a status and a message."""

    status: int = 0
    message: str = ""

    @property
    def final(self) -> bool:
        """True if asking again is of no use: a key, a name or a user is wrong."""
        return self.status != 0 and ABSENT.search(self.message) is None


def refusals(
    machines: Machines,
    hosts: Sequence[Host],
    limit: float,
    words: Sequence[str] = ("true",),
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, Refusal]:
    """Return why which hosts fail to run some words in ``limit`` s; no wait once ``stopped``."""

    def ask(host: str) -> Refusal | None:
        if machines.reachable is not None:
            return None if machines.reachable(host, stopped) else Refusal()
        if is_here(machines, host):
            return None
        return _run(on_host(machines, host, words), limit, stopped)

    with ThreadPoolExecutor(ABREAST) as pool:
        found = zip(hosts, pool.map(ask, [host.name for host in hosts]), strict=True)
        return {host.name: why for host, why in found if why is not None}


def is_here(machines: Machines, host: str) -> bool:
    """True if a host is this machine, and needs no agent."""
    # the words may stand for machines of their own (a network namespace), where no name is ours
    return not (machines.prefix or machines.agent) and host in names_of_this_machine()


def on_host(machines: Machines, host: str, words: Sequence[str]) -> list[str]:
    """Return the command line that runs some words on a host, through a shell if need be."""
    if is_here(machines, host):
        return list(words)
    agent = shlex.split(machines.agent or SSH)
    return [*machines.prefix, *agent, host, *map(shlex.quote, words)]


def _run(words: Sequence[str], limit: float, stopped: Callable[[], bool]) -> Refusal | None:
    null = subprocess.DEVNULL
    with tempfile.TemporaryFile() as output:  # a pipe is kept open by what ssh leaves behind
        try:
            process = subprocess.Popen(
                words, stdin=null, stdout=null, stderr=output, start_new_session=True
            )
        except OSError as error:
            return Refusal(127, f"{words[0]}: {error.strerror}")
        end = time.monotonic() + limit
        while time.monotonic() < end and not stopped():
            with suppress(subprocess.TimeoutExpired):
                if status := process.wait(STEP):
                    output.seek(max(0, output.seek(0, os.SEEK_END) - KEPT))
                    return Refusal(status, last_line(output.read()))
                return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return Refusal()


def last_line(output: bytes) -> str:
    """Return the last line with a word in it, as far as it can be printed."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines()]
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
    """Return the number of each rank when no host was left out, by the hosts of both starts."""
    # ranks of one host keep their order; the others stand in for ranks that are gone
    left = dict(enumerate(all_hosts))
    found: dict[int, int] = {}
    for rank, host in enumerate(hosts):
        same = next((p for p, name in left.items() if name == host), None)
        if same is not None:
            found[rank] = same
            del left[same]
    spare = iter(left)
    return tuple(found[rank] if rank in found else next(spare) for rank in range(len(hosts)))


def fit(ranks: int, hosts: Sequence[Host], all_hosts: Sequence[Host]) -> int:
    """Return how many ranks to start: all, unless they had room before and have none now."""
    room, wanted = sum(h.slots for h in hosts), sum(h.slots for h in all_hosts)
    return ranks if not hosts or ranks > wanted else min(ranks, room)
