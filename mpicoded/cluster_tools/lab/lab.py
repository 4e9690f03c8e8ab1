"""A lab that stands: its nodes' limits in force or lifted, their processes and their conditions."""

import os
import signal
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Self

from mpicoded.cluster_tools.lab import cgroup
from mpicoded.cluster_tools.lab.cgroup import Cgroups, Group
from mpicoded.cluster_tools.lab.fault import Condition, Fault, condition
from mpicoded.cluster_tools.lab.network import Network
from mpicoded.cluster_tools.lab.spec import VECTORS, Spec
from mpicoded.cluster_tools.lab.state import Home
from mpicoded.processes import rank


@dataclass(frozen=True)
class Lab:
    """The nodes of a lab, by number; what is measured is read from the kernel every time."""

    home: Home
    spec: Spec
    cgroups: Cgroups

    @classmethod
    def of(cls, home: Home, spec: Spec) -> Self:
        """Return the lab on this machine; LabError if it has no control groups."""
        return cls(home, spec, cgroup.find())

    @property
    def network(self) -> Network:
        """Its namespaces and links."""
        return Network(self.home.lab, self.spec)

    def group(self, index: int) -> Group:
        """Return the control group of a node."""
        return self.cgroups.group(self.home.lab, self.spec.nodes[index].name)

    def limited(self, index: int) -> bool:
        """True if a node's limits are in force: every node has one of its CPU."""
        return self.group(index).cpu_limit() is not None

    def limit(self, faults: Sequence[Fault]) -> None:
        """Put the limits of all nodes in force, as their faults leave them."""
        found = [condition(f for f in faults if f.node == i) for i in range(len(self.spec.nodes))]
        lossy = [i for i, one in enumerate(found) if one.loss]
        self.network.limit({i: self._rate(i, one) for i, one in enumerate(found)}, lossy)
        self.network.limit_air(self.spec.rate)
        self.cgroups.weigh(self.home.lab, None)
        for i, one in enumerate(found):
            self.group(i).limit_memory(self.spec.nodes[i].memory)
            self.group(i).limit_cpu(self.spec.nodes[i].cpu * one.cpu)

    def lift(self, index: int) -> None:
        """Lift the limits of a node, so that programs start there at full speed."""
        group = self.group(index)
        group.limit_cpu(None)
        group.limit_memory(None)
        self.cgroups.weigh(self.home.lab, len(self.spec.nodes))
        self.network.limit({index: None})
        self.network.limit_air(None)

    def settle(self, kind: str, index: int, faults: Iterable[Fault]) -> None:
        """Put a node's ``faults`` in force, after one of that kind has begun or ended."""
        one = condition(faults)
        if kind == "reboot" and one.rebooting:
            self.group(index).kill()
        if kind in ("reboot", "link"):
            self.network.set_link(index, one.link)
        if kind == "loss":
            self.network.set_loss(index, one.loss)
        if kind == "freeze":
            self._signal(index, signal.SIGSTOP if one.frozen else signal.SIGCONT)
        if self.limited(index):
            if kind == "cpu":
                self.group(index).limit_cpu(self.spec.nodes[index].cpu * one.cpu)
            if kind in ("rate", "loss"):
                self.network.limit({index: self._rate(index, one)}, [index] * bool(one.loss))

    def cpu_seconds(self) -> tuple[float, ...]:
        """Return the CPU time that every node has used since it was made."""
        return tuple(self.group(i).cpu_seconds() for i in range(len(self.spec.nodes)))

    def ranks(self, index: int) -> dict[int, int]:
        """Return pid -> rank of the MPI processes on a node."""
        found = {pid: rank(pid) for pid in self.group(index).pids()}
        return {pid: number for pid, number in found.items() if number is not None}

    def environment(self, index: int) -> dict[str, str]:
        """Return the environment of a process on the node."""
        return {"TMPDIR": str(self.home.tmp(self.spec.nodes[index].name)), **self.vectors}

    @property
    def vectors(self) -> dict[str, str]:
        """The variables that keep oneDNN and ATen to vectors as narrow as the node's."""
        return dict(VECTORS[self.spec.vectors])

    def kill(self) -> None:
        """End every process on every node."""
        groups = map(self.group, range(len(self.spec.nodes)))
        cgroup.kill_all(folder for group in groups for folder in group.folders.values())

    def _rate(self, index: int, one: Condition) -> int | None:
        own = self.spec.nodes[index].rate
        rate = min(inf if own is None else own, one.rate)
        return None if rate == inf else round(rate)

    def _signal(self, index: int, number: signal.Signals) -> None:
        for pid in self.ranks(index):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
