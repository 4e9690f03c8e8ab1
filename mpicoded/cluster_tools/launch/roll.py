"""The roll of a start: which of its ranks are there, as far as this machine can see them."""

from __future__ import annotations

import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from mpicoded.cluster_tools.launch.nodes import names_of_this_machine
from mpicoded.processes import fields, rank, read

DAEMON = b"prted\n"  # Open MPI's, one on every other host


@dataclass
class Roll:
    """``places`` is the host of each of the ``ranks``, () if unknown; ``hosts`` are so many.

    ``whole``: all ranks are on this machine, under whatever names. Ranks of other machines are not
    seen here, and nothing is concluded from that.
    """

    ranks: int
    places: Sequence[str] = ()
    hosts: int = 0
    whole: bool = True
    began: float | None = None  # when a rank was seen for the first time
    last: dict[int, float] = field(default_factory=dict)  # when each was seen last
    stopped: Sequence[int] = ()  # by SIGSTOP, when they were seen last

    def call(self, pids: Collection[int], now: float) -> None:
        """Note which ranks are among the living processes of the start."""
        ranks = {pid: number for pid in pids if (number := rank(pid)) is not None}
        there = set(ranks.values())
        self.stopped = sorted(r for pid, r in ranks.items() if fields(pid)[:1] == ["T"])
        if there and self.began is None:
            self.began = now
        daemons = sum(read(pid, "comm") == DAEMON for pid in pids)
        self.whole = self.whole or daemons >= self.hosts - 1 > 0
        self.last |= dict.fromkeys(there, now)

    def gone(self, now: float, grace: float) -> list[int]:
        """Return the ranks that should be here and were not for ``grace`` seconds."""
        if self.began is None:
            return []
        here = names_of_this_machine()
        known = {rank for rank, host in enumerate(self.places) if host in here} | self.last.keys()
        known |= set(range(self.ranks)) if self.whole else set()
        return sorted(p for p in known if now - self.last.get(p, self.began) > grace)

    def place(self, rank: int) -> str:
        """Return the host of a rank as far as it is known."""
        return self.places[rank] if self.places else socket.gethostname()
