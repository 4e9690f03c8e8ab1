"""Build a lab and take it away again, whatever happens in between."""

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from mpicoded.cluster_tools.lab import agent, cgroup, machine, network, shell
from mpicoded.cluster_tools.lab.cgroup import Cgroups
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.spec import Spec
from mpicoded.cluster_tools.lab.state import Home, Look, State, runs
from mpicoded.errors import LabError
from mpicoded.processes import started

END_LIMIT = 30.0  # s that a job has to end when its lab is taken away


def up(home: Home, spec: Spec) -> str:
    """Build the lab; return what was done: built, rebuilt (it was another) or unchanged."""
    machine.check(spec)
    lab = Lab.of(home, spec)
    with _interruptible(), home.lock():
        before = home.read()
        if before and before.whole and before.spec == spec and stands(lab):
            return "unchanged"
        if before and runs(before):
            raise LabError("a job is running in the lab, which is another one: `lab down` ends it")
        _build(lab)
        return "rebuilt" if before else "built"


def down(home: Home) -> bool:
    """Take the lab away, with everything that runs in it; return whether there was any of it."""
    machine.check_tools()
    if not traces(home):
        return False
    _end_job(home)
    with home.lock():
        _clear(home)
    return True


def traces(home: Home) -> list[str]:
    """Return everything that a lab of that name has left on this machine, whole or not."""
    groups = [str(path) for found in _cgroups() for path in found.groups(home.lab)]
    folder = [str(home.folder)] if home.folder.exists() else []
    return [*network.namespaces(home.lab), *groups, *folder]


def stands(lab: Lab) -> bool:
    """True if all namespaces, control groups and files of the lab are there."""
    nodes = range(len(lab.spec.nodes))
    spaces = [lab.network.switch, *map(lab.network.namespace, nodes)]
    folders = [folder for i in nodes for folder in lab.group(i).folders.values()]
    there = set(spaces) <= set(network.namespaces(lab.home.lab))
    return there and all(folder.is_dir() for folder in folders) and lab.home.agent.exists()


def _build(lab: Lab) -> None:
    """Build from nothing; after an error or Ctrl-C nothing is left."""
    try:
        _clear(lab.home, keep=True)
        state = State(lab.spec)
        lab.home.write(state)
        machine.check_kernel(lab.home.lab, lab.spec.medium == "shared")
        lab.cgroups.delegate(lab.home.lab)
        for i, node in enumerate(lab.spec.nodes):
            lab.group(i).create()
            lab.home.tmp(node.name).mkdir(parents=True)
        lab.network.build()
        write_agent(lab.home)
        lab.limit(())
        look = Look(time.monotonic(), lab.cpu_seconds())
        lab.home.write(replace(state, whole=True, look=look))
    except OSError as error:
        _clear(lab.home)
        raise LabError(f"cannot build the lab: {error}") from None
    except BaseException:
        _clear(lab.home)
        raise


def write_agent(home: Home) -> None:
    """Write the script that starts commands on nodes of this very lab."""
    words = [sys.executable, "-P", str(Path(agent.__file__).resolve()), home.name]
    home.agent.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    home.agent.chmod(0o755)


def _clear(home: Home, keep: bool = False) -> None:
    """Remove everything of the lab; ``keep`` the empty folder, which is locked."""
    with shell.held():
        for groups in _cgroups():
            groups.remove(home.lab)
        network.remove(home.lab)
        if keep:
            for entry in home.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        else:
            shutil.rmtree(home.folder, ignore_errors=True)


def _cgroups() -> list[Cgroups]:
    """Return the control groups of this machine, none if it has none: then nothing is in them."""
    try:
        return [cgroup.find()]
    except LabError:
        return []


def _end_job(home: Home) -> None:
    """End the job that runs in the lab, if any, in good order."""
    with suppress(LabError):
        state = home.read()
        if state is None or state.run is None or not runs(state):
            return
        pid, ticks = state.run
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        limit = time.monotonic() + END_LIMIT
        while started(pid) == ticks and time.monotonic() < limit:
            time.sleep(0.05)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM and a lost terminal end us as Ctrl-C does: by an exception."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
