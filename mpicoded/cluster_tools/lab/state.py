"""The state file of a lab: its spec, the process that runs a job in it, its faults."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from mpicoded.cluster_tools.lab.fault import Fault, check
from mpicoded.cluster_tools.lab.spec import Spec
from mpicoded.errors import LabError
from mpicoded.outputs import write_whole
from mpicoded.paths import read_text
from mpicoded.processes import started

RUN = Path("/run")
NAME = re.compile(r"[a-z][a-z0-9]{0,11}")
MOST = 4 << 20  # bytes of the state file; a lab of 250 nodes has 0.1 MB


@dataclass(frozen=True)
class Look:
    """The last measurement: a time and the CPU seconds of every node."""

    at: float
    cpu: tuple[float, ...]


@dataclass(frozen=True)
class State:
    """The state of a lab that is up, or (``whole`` False) half built.

    ``run`` is the process that runs a job in it: pid and the time of its start, in clock ticks.
    With ``lift`` the limits of a node are lifted when something is started there.
    """

    spec: Spec
    whole: bool = False
    run: tuple[int, int] | None = None
    lift: bool = True
    faults: tuple[Fault, ...] = ()
    look: Look | None = None
    version: Literal[1] = 1

    def __post_init__(self) -> None:
        """Check the faults; LabError."""
        for fault in self.faults:
            check(fault.kind, fault.value, None)
            if not 0 <= fault.node < len(self.spec.nodes):
                raise LabError(f"fault {fault.key} of node {fault.node}")

    def of_node(self, index: int) -> list[Fault]:
        """Return the faults of one node."""
        return [f for f in self.faults if f.node == index]


FILE = TypeAdapter(State)


@dataclass(frozen=True)
class Home:
    """Where a lab keeps its files; all its names begin with ``lab``."""

    name: str = "lab"
    run: Path = field(default=RUN)

    def __post_init__(self) -> None:
        """Check the name: it becomes part of paths and of names of namespaces."""
        if not NAME.fullmatch(self.name):
            raise LabError(
                f"{self.name!r} is not a name of a lab: small letters and digits, at most 12, a "
                "letter first"
            )

    @property
    def lab(self) -> str:
        """The begin of the names of its namespaces and control groups."""
        return f"mpicoded-{self.name}"

    @property
    def folder(self) -> Path:
        """The folder of everything below."""
        return self.run / self.lab

    @property
    def line(self) -> Path:
        """The socket of the lab line."""
        return self.folder / "line"

    @property
    def agent(self) -> Path:
        """The remote-start agent, a script."""
        return self.folder / "agent"

    @property
    def file(self) -> Path:
        """The state file."""
        return self.folder / "state.json"

    def others(self) -> list[Home]:
        """Return the homes of other labs on this machine."""
        names = {path.name.partition("-")[2] for path in self.run.glob("mpicoded-*")} - {self.name}
        return [Home(name, self.run) for name in sorted(names) if NAME.fullmatch(name)]

    def tmp(self, node: str) -> Path:
        """Return a node's own folder for temporary files."""
        return self.folder / "tmp" / node

    def read(self) -> State | None:
        """Return the state, None if there is no lab; LabError if the file is damaged."""
        try:
            return FILE.validate_json(read_text(self.file, MOST))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise LabError(f"{self.file}: cannot be read: {error.strerror}") from None
        except (OSError, ValueError, LabError) as error:
            why = " ".join(str(error).split())
            raise LabError(f"{self.file} is damaged ({why}); `lab down` clears it away") from None

    def need(self) -> State:
        """Return the state of a lab that is up; LabError if it is not."""
        state = self.read()
        if state is None:
            raise LabError("no lab is up; `python -m mpicoded lab up` builds one")
        if not state.whole:
            raise LabError("the lab is half built; `python -m mpicoded lab down` clears it away")
        return state

    def write(self, state: State) -> None:
        """Replace the state file; readers see the old one or the new one."""
        write_whole(self.file, FILE.dump_json(state, indent=1))

    def change(self, **parts: Any) -> State:
        """Replace parts of the state under the lock."""
        with self.lock():
            state = replace(self.need(), **parts)
            self.write(state)
        return state

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from building, removing or writing; makes the folder."""
        while True:
            self.folder.mkdir(mode=0o755, exist_ok=True)
            handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
                if self._same(handle):
                    yield
                    return
            finally:
                os.close(handle)

    def _same(self, handle: int) -> bool:
        """True if the locked folder still has its name: `down` may have removed it."""
        try:
            return os.path.samestat(os.fstat(handle), self.folder.stat())
        except FileNotFoundError:
            return False


def runs(state: State) -> bool:
    """True if the process that the state names as running a job is alive."""
    return state.run is not None and started(state.run[0]) == state.run[1]
