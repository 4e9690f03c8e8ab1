"""The lab's side of the line: a thread that hears the leader, and `lab fault` from other shells.

One JSON object a line, each answered by one line (see :mod:`mpicoded.runtime.lab_line`):

    {"do": "ready"}                                                  -> {"at": seconds}
    {"do": "begin", "number", "kind", "rank", "host", "value", "seconds"}  -> {"at"} or {"error"}
    {"do": "end", "number"}                                          -> {"at"} or {"error"}
    {"do": "fault", "kind", "node", "value", "seconds"}              -> as begin; from `lab fault`
    {"do": "heal", "node"}                                           -> {"at"}; ends all its faults

Leaders hear of faults that they have not asked for, or that ended by themselves:
{"event": kind, "rank": …, "from": seconds, "to": seconds or null, "value": …}.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mpicoded.cluster_tools.lab.fault import Fault
from mpicoded.cluster_tools.lab.fault_manager import FaultManager, shell_key
from mpicoded.errors import LabError

LONGEST = 65536  # bytes of a line; nobody of ours says more
MOST = 64  # on the line at a time; a run needs one
PAUSE = 3600.0  # s that the thread sleeps when nothing is due


@dataclass
class Client:
    """Somebody on the line; ``leads`` once it has spoken as a leader does."""

    line: socket.socket
    number: int
    rest: bytes = b""
    leads: bool = False
    gone: bool = False
    own: set[str] = field(default_factory=set)  # keys of the faults it began


class Server:
    """Serves the line in a thread from :meth:`start` to :meth:`stop`."""

    def __init__(self, manager: FaultManager) -> None:
        self.manager = manager
        self.readies = 0
        self._path = manager.lab.home.line
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, Client] = {}
        self._count = 0
        self._ranks: dict[str, list[int]] = {}  # key of a fault -> ranks on its node
        self._waker, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._serve, name="lab line", daemon=True)

    def start(self) -> None:
        """Listen; the socket is there when this returns."""
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        os.chmod(self._path, 0o600)
        self._listener.listen()
        for line in (self._listener, self._waker):
            line.setblocking(False)
            self._selector.register(line, selectors.EVENT_READ)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; then end every fault that was begun on this line."""
        self._wake.send(b".")
        self._thread.join()
        for client in list(self._clients.values()):
            client.line.close()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for key in list(self._ranks):
            with suppress(LabError):
                self.manager.end(key)

    def _serve(self) -> None:
        while True:
            pause = self.manager.next_due()
            for key, _ in self._selector.select(PAUSE if pause is None else min(pause, PAUSE)):
                if key.fileobj is self._waker:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    self._read(self._clients[key.fd])
            for fault in self.manager.due():
                self._expire(fault)

    def _accept(self) -> None:
        with suppress(OSError):
            line, _ = self._listener.accept()
            line.setblocking(False)
            if len(self._clients) == MOST:
                line.close()
                return
            self._count += 1
            self._clients[line.fileno()] = Client(line, self._count)
            self._selector.register(line, selectors.EVENT_READ)

    def _read(self, client: Client) -> None:
        """Read once; answer every whole line. Who is gone, or never ends a line, is dropped."""
        try:
            data = client.line.recv(LONGEST)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, client.rest = (client.rest + data).split(b"\n")
        for text in lines:
            if text.strip():
                self._say(client, self._answer(client, text))
        if not data or client.gone or len(client.rest) > LONGEST:
            self._drop(client)

    def _drop(self, client: Client) -> None:
        """Forget somebody; faults that only they could have ended, end."""
        self._selector.unregister(client.line)
        del self._clients[client.line.fileno()]
        client.line.close()
        for key in client.own & self.manager.faults.keys():
            if self.manager.faults[key].until is None:
                self._expire(key)

    def _say(self, client: Client, what: dict[str, Any]) -> None:
        text = json.dumps(what).encode() + b"\n"
        try:
            client.gone |= client.line.send(text) < len(text)
        except OSError:  # it is gone, or does not listen: then no later word is of use to it either
            client.gone = True

    def _answer(self, client: Client, text: bytes) -> dict[str, Any]:
        verbs: dict[str, Callable[[Client, dict[str, Any]], float]] = {
            "ready": self._ready,
            "begin": self._begin,
            "end": self._end,
            "fault": self._fault,
            "heal": self._heal,
        }
        try:
            said = json.loads(text)
            if not isinstance(said, dict) or said.get("do") not in verbs:
                raise LabError(f'should be an object, and its "do" one of {", ".join(verbs)}')
            return {"at": verbs[said["do"]](client, said)}
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            return {"error": f"not a line of JSON: {error}"}
        except (LabError, OSError, ArithmeticError, KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            return {"error": what}

    def _ready(self, client: Client, said: dict[str, Any]) -> float:
        client.leads = True
        at = self.manager.limit()
        self.readies += 1
        return at

    def _begin(self, client: Client, said: dict[str, Any]) -> float:
        client.leads = True
        key = f"{client.number}:{said['number']}"
        node = self._node(said)
        ranks = [int(said["rank"])] if said.get("rank") is not None else self._ranks_of(node)
        fault = self.manager.begin(key, said["kind"], node, said.get("value"), said.get("seconds"))
        client.own.add(key)
        self._ranks[key] = ranks
        return fault.since

    def _end(self, client: Client, said: dict[str, Any]) -> float:
        key = f"{client.number}:{said['number']}"
        _, at = self.manager.end(key)
        self._ranks.pop(key, None)
        return at

    def _fault(self, client: Client, said: dict[str, Any]) -> float:
        node = self.manager.lab.spec.index(str(said["node"]))
        ranks = self._ranks_of(node)  # before they are killed
        key = shell_key(str(said["kind"]), node)
        if key in self.manager.faults:
            self._expire(key)
        fault = self.manager.begin(key, said["kind"], node, said.get("value"), said.get("seconds"))
        self._ranks[key] = ranks
        self._tell(fault, None)
        return fault.since

    def _heal(self, client: Client, said: dict[str, Any]) -> float:
        node = self.manager.lab.spec.index(str(said["node"]))
        for key in [f.key for f in self.manager.faults.values() if f.node == node]:
            self._expire(key)
        return time.monotonic()

    def _expire(self, key: str) -> None:
        """End a fault and tell the leaders."""
        try:
            fault, at = self.manager.end(key)
        except (
            LabError,
            OSError,
        ):  # it is gone from our books; what could not be undone shows in the status
            return
        self._tell(fault, at)
        self._ranks.pop(key, None)

    def _tell(self, fault: Fault, to: float | None) -> None:
        for rank in self._ranks.get(fault.key, []):
            event = {"event": fault.kind, "rank": rank, "from": fault.since, "to": to}
            for client in self._clients.values():
                if client.leads and not client.gone:
                    self._say(client, {**event, "value": fault.value})

    def _node(self, said: dict[str, Any]) -> int:
        """Return the node that a leader means: by its host, else by its rank."""
        spec = self.manager.lab.spec
        if said.get("host"):
            return spec.index(str(said["host"]))
        return spec.index(str(int(said["rank"]) % len(spec.nodes)))

    def _ranks_of(self, node: int) -> list[int]:
        """Return the ranks that run on a node."""
        return sorted(set(self.manager.lab.ranks(node).values()))
