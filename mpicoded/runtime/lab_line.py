"""The leader's line to the lab: when limits begin, which faults the job asks for, which came.

The lab (``mpicoded lab run``) listens on a Unix socket and names it in the environment; outside it
there is nobody to talk to, and nothing is said. Both sides write one JSON object a line.

    leader                                      lab
    {"do": "ready"}                        ->   puts the limits of all nodes in force
                                           <-   {"at": seconds}
    {"do": "begin", "number": 3, …}        ->   does it
                                           <-   {"at": seconds}, or {"error": "why not"}
    {"do": "end", "number": 3}             ->   undoes it
                                           <-   {"at": seconds}
                                           <-   {"event": "link", "rank": 2, "from": …, "to": …}

Seconds are of CLOCK_MONOTONIC, the same for all processes of a machine, as time.perf_counter is.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mpicoded.errors import RemoteError
from mpicoded.faults import KINDS, Fault
from mpicoded.trace import Action

LAB_LINE = "MPICODED_LAB"  # names the socket
READY_LIMIT = 10.0  # s
LONGEST = 65536  # bytes of a line
# what a line can be that no lab says
WRONG = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
Note = Callable[[Action, int, float, float], None]  # what, to which rank, from when, until when


class LabLine:
    """Asks for the faults of a job as its queries come, and notes down what the lab did."""

    def __init__(self, faults: Sequence[Fault], hosts: Sequence[str], note: Note) -> None:
        self.faults = [f for f in faults if f.by_lab]
        self._hosts = hosts
        self._note = note
        self._seen: set[int] = set()  # numbers of the faults whose first query has come
        self._on: set[int] = set()  # those that we have to end
        self._since: dict[int, float] = {}
        self._asked: deque[tuple[str, int]] = deque()  # requests without an answer
        self._rest = b""
        self._socket = _connect(os.environ.get(LAB_LINE))

    def ready(self) -> None:
        """Let the limits of the nodes begin: all ranks are there."""
        if self._socket is None:
            return
        self._say({"do": "ready"}, ("ready", -1))
        self._socket.settimeout(READY_LIMIT)
        while self._asked:
            self._listen()
        self._socket.settimeout(0.0)

    def reach(self, query: int) -> None:
        """Begin and end the faults that are due when ``query`` is asked."""
        for number, fault in enumerate(self.faults):
            if fault.first <= query and number not in self._seen:
                self._seen.add(number)
                if query < fault.last:
                    self._begin(number, fault)
            if number in self._on and query >= fault.last:
                self._end(number)

    def poll(self) -> None:
        """Take in the lab's replies."""
        if self._socket is not None:
            with suppress(BlockingIOError):
                self._listen()

    def close(self) -> None:
        """End every fault that is still on: a later run begins without it."""
        self._finish_asking()
        for number in sorted(self._on):
            self._end(number)
        self._finish_asking()
        self._hang_up()

    def _finish_asking(self) -> None:
        """Wait, not for long, for the replies to all requests."""
        if self._socket is not None:
            self._socket.settimeout(1.0)
            with suppress(OSError, RemoteError):
                while self._asked:
                    self._listen()

    def _begin(self, number: int, fault: Fault) -> None:
        if not fault.once:
            self._on.add(number)
        about = {"kind": fault.kind, "rank": fault.rank, "value": fault.value}
        host, seconds = self._hosts[fault.rank or 0], fault.seconds or None
        say = {"do": "begin", "number": number, "host": host, "seconds": seconds, **about}
        self._say(say, ("begin", number))

    def _end(self, number: int) -> None:
        self._on.discard(number)
        self._say({"do": "end", "number": number}, ("end", number))

    def _say(self, what: dict[str, Any], asked: tuple[str, int]) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendall(json.dumps(what).encode() + b"\n")
            self._asked.append(asked)
        except OSError as error:
            print(f"r0 | lab: does not listen ({error}); no more faults", file=sys.stderr)
            self._hang_up()

    def _listen(self) -> None:
        """Read once; handle every whole line."""
        assert self._socket is not None
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            raise RemoteError(f"the lab did not answer within {READY_LIMIT:g} s") from None
        except ConnectionError:
            data = b""
        if not data:
            self._hang_up()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            for line in lines:
                self._hear(json.loads(line))
            if len(self._rest) > LONGEST:
                raise ValueError(f"a line of more than {LONGEST} bytes")
        except WRONG as error:
            print(
                f"r0 | lab: says what is not understood ({error}); no more faults", file=sys.stderr
            )
            self._hang_up()

    def _hear(self, said: dict[str, Any]) -> None:
        if "event" in said:
            start = float(said["from"])
            stop = said.get("to")
            rank = int(said.get("rank") or 0)
            self._note(
                KINDS[said["event"]].action, rank, start, start if stop is None else float(stop)
            )
            return
        what, number = self._asked.popleft()
        if "error" in said:
            self._on.discard(number)  # nothing to end
            print(f"r0 | lab: {said['error']}", file=sys.stderr)
        elif number >= 0:
            self._happened(what, number, float(said["at"]))

    def _happened(self, what: str, number: int, at: float) -> None:
        fault = self.faults[number]
        start = self._since.setdefault(number, at)
        self._note(KINDS[fault.kind].action, fault.rank or 0, start, at if what == "end" else start)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._asked.clear()


def _connect(path: str | None) -> socket.socket | None:
    """Return the line to the lab; None if this job does not run in one."""
    if not path:
        return None
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.connect(path)
    except OSError as error:
        raise RemoteError(f"the lab at {path} is not there: {error.strerror}") from None
    line.settimeout(0.0)
    return line
