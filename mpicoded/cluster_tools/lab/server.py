"""Server of the lab line: a thread that answers the leader, and `lab fault` of other shells.

One JSON object a line, each answered by one line (see :mod:`mpicoded.runtime.lab_line`):

    {"do": "ready"}                                                  -> {"at": seconds}
    {"do": "begin", "number", "kind", "rank", "host", "value", "seconds"}  -> {"at"} or {"error"}
    {"do": "end", "number"}                                          -> {"at"} or {"error"}
    {"do": "fault", "kind", "node", "value", "seconds"}              -> as begin; from `lab fault`
    {"do": "heal", "node"}                                           -> {"at"}; ends all its faults

Leaders hear of faults that they have not asked for, or that ended by themselves:
{"event": kind, "rank": …, "from": seconds, "to": seconds or null, "value": …}.
"""

import asyncio
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mpicoded.cluster_tools.lab.fault import Fault
from mpicoded.cluster_tools.lab.fault_manager import FaultManager, shell_key
from mpicoded.errors import LabError

LONGEST = 65536  # bytes of a line, and of answers that nobody reads
MOST = 64  # on the line at a time; a run needs one


@dataclass(eq=False)
class Client:
    """One connection; ``leads`` once it has spoken as a leader does."""

    line: asyncio.StreamWriter
    number: int
    leads: bool = False
    own: set[str] = field(default_factory=set)  # keys of the faults it began


class Server:
    """Serves the line in a thread from :meth:`start` to :meth:`stop`."""

    def __init__(self, manager: FaultManager) -> None:
        self.manager = manager
        self._path = manager.lab.home.line
        self._clients: set[Client] = set()
        self._numbers = itertools.count()
        self._ranks: dict[str, list[int]] = {}  # key of a fault -> ranks on its node
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab", daemon=True)

    def start(self) -> None:
        """Listen; the socket is there when this returns."""
        self._path.unlink(missing_ok=True)
        self._loop.run_until_complete(self._listen())
        for fault in self.manager.faults.values():
            self._end_in_time(fault)
        self._thread.start()

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(
            self._serve, self._path, limit=LONGEST, start_serving=False
        )
        os.chmod(self._path, 0o600)  # before anyone can connect
        await self._server.start_serving()

    def stop(self) -> None:
        """End the thread; then end every fault that was begun on this line."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._path.unlink(missing_ok=True)
        for key in list(self._ranks):
            with suppress(LabError):
                self.manager.end(key)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, line: asyncio.StreamWriter) -> None:
        """Answer every whole line of one client; one that is gone, or ends no line, is dropped."""
        if len(self._clients) == MOST:
            line.close()
            return
        client = Client(line, next(self._numbers))
        self._clients.add(client)
        try:
            while (text := await reader.readline()).endswith(b"\n"):
                if text.strip():
                    self._say(client, self._answer(client, text))
        except (OSError, ValueError, asyncio.CancelledError):  # gone, a line too long, or the end
            pass
        finally:
            self._clients.remove(client)
            line.close()
            for key in client.own & self.manager.faults.keys():
                if self.manager.faults[key].until is None:  # nobody else could end it
                    self._expire(key)

    def _say(self, client: Client, what: dict[str, Any]) -> None:
        client.line.write(json.dumps(what).encode() + b"\n")
        if client.line.transport.get_write_buffer_size() > LONGEST:  # it does not listen
            client.line.transport.abort()

    def _end_in_time(self, fault: Fault) -> None:
        """Let a fault end when its time is over, unless another one has taken its place."""
        if fault.until is not None:
            self._loop.call_at(fault.until, self._end_due, fault.key, fault.until)

    def _end_due(self, key: str, until: float) -> None:
        if key in self.manager.faults and self.manager.faults[key].until == until:
            self._expire(key)

    def _answer(self, client: Client, text: bytes) -> dict[str, Any]:
        verbs: dict[str, Callable[[Client, dict[str, Any]], float]] = {
            "ready": self._ready,
            "begin": self._begin,
            "end": self._end,
            "fault": self._fault,
            "heal": self._heal,
        }
        try:
            asked = json.loads(text)
            if not isinstance(asked, dict) or asked.get("do") not in verbs:
                raise LabError(f'should be an object, and its "do" one of {", ".join(verbs)}')
            return {"at": verbs[asked["do"]](client, asked)}
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            return {"error": f"not a line of JSON: {error}"}
        except (LabError, OSError, ArithmeticError, KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            return {"error": what}

    def _ready(self, client: Client, asked: dict[str, Any]) -> float:
        client.leads = True
        return self.manager.limit()

    def _begin(self, client: Client, asked: dict[str, Any]) -> float:
        client.leads = True
        key, node = f"{client.number}:{asked['number']}", self._node(asked)
        ranks = [int(asked["rank"])] if asked.get("rank") is not None else self._ranks_of(node)
        fault = self._inject(key, node, ranks, asked)
        client.own.add(key)
        return fault.since

    def _end(self, client: Client, asked: dict[str, Any]) -> float:
        key = f"{client.number}:{asked['number']}"
        _, at = self.manager.end(key)
        self._ranks.pop(key, None)
        return at

    def _fault(self, client: Client, asked: dict[str, Any]) -> float:
        node = self.manager.lab.spec.index(str(asked["node"]))
        ranks = self._ranks_of(node)  # before they are killed
        key = shell_key(str(asked["kind"]), node)
        if key in self.manager.faults:
            self._expire(key)
        fault = self._inject(key, node, ranks, asked)
        self._tell(fault, None)
        return fault.since

    def _inject(self, key: str, node: int, ranks: list[int], asked: dict[str, Any]) -> Fault:
        value, seconds = asked.get("value"), asked.get("seconds")
        fault = self.manager.begin(key, asked["kind"], node, value, seconds)
        self._ranks[key] = ranks
        self._end_in_time(fault)
        return fault

    def _heal(self, client: Client, asked: dict[str, Any]) -> float:
        node = self.manager.lab.spec.index(str(asked["node"]))
        for key in [f.key for f in self.manager.faults.values() if f.node == node]:
            self._expire(key)
        return time.monotonic()

    def _expire(self, key: str) -> None:
        """End a fault and report it to the leaders."""
        try:
            fault, at = self.manager.end(key)
        except (LabError, OSError):  # it is off the list; the status shows what was not undone
            return
        self._tell(fault, at)
        self._ranks.pop(key, None)

    def _tell(self, fault: Fault, to: float | None) -> None:
        for rank in self._ranks.get(fault.key, []):
            event = {"event": fault.kind, "rank": rank, "from": fault.since, "to": to}
            for client in self._clients:
                if client.leads:
                    self._say(client, {**event, "value": fault.value})

    def _node(self, asked: dict[str, Any]) -> int:
        """Return the node that a leader means: by its host, else by its rank."""
        spec = self.manager.lab.spec
        if asked.get("host"):
            return spec.index(str(asked["host"]))
        return spec.index(str(int(asked["rank"]) % len(spec.nodes)))

    def _ranks_of(self, node: int) -> list[int]:
        """Return the ranks that run on a node."""
        return sorted(set(self.manager.lab.ranks(node).values()))
