"""FaultManager: begin and end the faults of a lab, and write them into the state file."""

import time
from collections.abc import Iterable
from typing import Any

from mpicoded.cluster_tools.lab.fault import Fault, check
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.errors import LabError

SHELL = "shell:"  # how keys of faults from `lab fault` begin


def shell_key(kind: str, node: int) -> str:
    """Return the key of a fault from `lab fault`: a node has one of each kind at a time."""
    return f"{SHELL}{kind}:{node}"


class FaultManager:
    """The faults of one lab; only one process keeps them at a time."""

    def __init__(self, lab: Lab, faults: Iterable[Fault] = ()) -> None:
        self.lab = lab
        self.faults = {fault.key: fault for fault in faults}

    def begin(self, key: str, kind: str, node: int, value: Any, seconds: Any) -> Fault:
        """Begin a fault, known by ``key``; return it with the time; LabError if it cannot be."""
        number, lasting = check(kind, value, seconds)
        if key in self.faults:
            raise LabError(f"fault {key} has begun already")

        def since(now: float) -> Fault:
            until = None if lasting is None else now + lasting
            return Fault(key, kind, node, number, now, until)

        self.faults[key] = since(time.monotonic())
        self._write()  # first: nothing may be started on a node that is being killed
        try:
            self._settle(kind, node)
        except (LabError, OSError):
            del self.faults[key]
            self._write()
            raise
        self.faults[key] = since(time.monotonic())  # it lasts from when it is in force
        return self.faults[key]

    def end(self, key: str) -> tuple[Fault, float]:
        """End a fault; return it and the time; LabError if there is none of that key."""
        if key not in self.faults:
            raise LabError(f"there is no fault {key} that could end")
        fault = self.faults.pop(key)
        self._settle(fault.kind, fault.node)
        self._write()  # last: the node can be reached only now
        return fault, time.monotonic()

    def away(self, node: int) -> bool:
        """True if a node cannot be reached now."""
        return any(f.away for f in list(self.faults.values()) if f.node == node)

    def limit(self) -> float:
        """Put all limits in force; return the time."""
        self.lab.limit(list(self.faults.values()))
        return time.monotonic()

    def _settle(self, kind: str, node: int) -> None:
        self.lab.settle(kind, node, [f for f in self.faults.values() if f.node == node])

    def _write(self) -> None:
        self.lab.home.change(faults=tuple(self.faults.values()))
