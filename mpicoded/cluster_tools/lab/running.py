"""Run a job, or a program, on the nodes of a lab."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from mpicoded.cluster_tools.lab import shell
from mpicoded.cluster_tools.lab.fault_manager import SHELL, FaultManager
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.server import Server
from mpicoded.cluster_tools.lab.state import Home, State, runs
from mpicoded.cluster_tools.launch import Host, Machines, supervise
from mpicoded.errors import LabError
from mpicoded.processes import started

LEADER_LIMIT = 60.0  # s that the leader's node may be away
LINE = "MPICODED_LAB"  # tells a leader where the lab listens


def run(
    home: Home,
    job: Path | Sequence[str],
    sets: Sequence[str] = (),
    flags: Sequence[str] = (),
    ranks: int | None = None,
    limit_start: bool = False,
) -> int:
    """Run a job (or words, a program of the user's own) on the lab; return the exit status.

    ``ranks`` None: one on each node. With ``limit_start`` limits hold from the first moment; else
    they begin when the leader says that all ranks are ready.
    """
    state = _take(home, lift=not limit_start)
    lab = Lab.of(home, state.spec)
    manager = FaultManager(lab, state.faults)
    with _served(manager):
        machines = machines_of(lab, manager, ranks or len(state.spec.nodes))
        return supervise(job, machines, sets, flags)


def machines_of(lab: Lab, manager: FaultManager, ranks: int) -> Machines:
    """Return the lab's nodes as the launcher is to see them; mpirun runs on node 0."""
    count = min(ranks, len(lab.spec.nodes))
    names = [lab.spec.address(i) for i in range(count)]
    slots = [len(range(i, ranks, count)) for i in range(count)]

    def reachable(name: str, stopped: Callable[[], bool]) -> bool:
        """Return True if a node is there; node 0, where mpirun itself runs, is waited for."""
        node = lab.spec.index(name)
        limit = time.monotonic() + (LEADER_LIMIT if node == 0 else 0.0)
        while manager.away(node) and time.monotonic() < limit and not stopped():
            time.sleep(0.05)
        return not manager.away(node)

    return Machines(
        ranks,
        tuple(Host(name, slot) for name, slot in zip(names, slots, strict=True)),
        agent=f"/bin/sh {lab.home.agent}",  # by its shell: /run may be mounted noexec
        interface="eth0",
        prefix=("/bin/sh", str(lab.home.agent), "--exec", names[0]),
        env={LINE: str(lab.home.line), **lab.vectors},
        reachable=reachable,
    )


def _take(home: Home, lift: bool) -> State:
    """Note that this process runs a job in the lab; LabError if another one does."""
    with home.lock():
        state = home.need()
        if state.run and runs(state):
            raise LabError(f"process {state.run[0]} runs a job in the lab already: wait, or end it")
        state = replace(state, run=(os.getpid(), started(os.getpid()) or 0), lift=lift)
        home.write(state)
    return state


@contextmanager
def _served(manager: FaultManager) -> Iterator[None]:
    """Serve the lab line meanwhile; afterwards nothing runs, and the limits are as after `up`."""
    home = manager.lab.home
    manager.lab.kill()  # what an earlier run left, if it was killed
    for key in [key for key in manager.faults if not key.startswith(SHELL)]:
        manager.end(key)
    for warning in warnings(manager):
        print(f"lab: {warning}", file=sys.stderr)
    line = Server(manager)
    line.start()
    try:
        yield
    finally:
        with shell.held(), suppress(FileNotFoundError):
            with suppress(LabError):  # a process that does not end: the limits come all the same
                manager.lab.kill()
            line.stop()
            _empty(home)
            manager.limit()
            home.change(run=None, lift=True)


def warnings(manager: FaultManager) -> Iterator[str]:
    """Yield a line for each fault of this lab, and one for other labs that run."""
    home, spec = manager.lab.home, manager.lab.spec
    for fault in manager.faults.values():
        node = spec.nodes[fault.node].name
        yield f"{node} has a fault: {fault} (`lab fault end {node}`)"
    labs = [home, *(other for other in home.others() if _runs(other))]
    asked = sum(node.cpu for lab in labs for node in lab.need().spec.nodes)
    cores = len(os.sched_getaffinity(0))
    if asked > cores + 1e-9:
        names = " and ".join(lab.name for lab in labs)
        yield f"labs {names} run at a time and ask for {asked:.3g} cores of {cores}: none is honest"


def _runs(home: Home) -> bool:
    try:
        return runs(home.need())
    except LabError:
        return False


def _empty(home: Home) -> None:
    """Empty the nodes' own temporary folders."""
    for folder in home.tmp("").iterdir():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
