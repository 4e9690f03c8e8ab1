"""The environment that mpirun and the machine give a rank, before MPI is initialized too."""

from __future__ import annotations

import os
from pathlib import Path

from mpi4py import MPI

from mpicoded.errors import RemoteError
from mpicoded.processes import entries, fields, pids, read

PARENT = os.getppid()
STARTERS = (b"mpirun", b"mpiexec", b"prte", b"orted", b"hydra")  # the parent of a rank
# Where a launcher tells how many processes it started, and which one this is.
PROCESSES = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


def has_ulfm() -> bool:
    """True if the death of a rank leaves the others alive (mpirun --with-ft ulfm)."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"


def on_one_host() -> bool:
    """True if all ranks are on this host, by mpirun's variables."""
    pairs = (
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE"),
        ("MPI_LOCALNRANKS", "PMI_SIZE"),
    )
    return any(a in os.environ and os.environ[a] == os.environ.get(b) for a, b in pairs)


def machine() -> str:
    """Identify this machine: several may have one host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers count pids by themselves
    except OSError:
        return MPI.Get_processor_name()


def parent_died() -> bool:
    """True if mpirun is gone: a rank that outlived it would stay for ever."""
    return os.getppid() != PARENT


def check_parent() -> None:
    """Raise RemoteError if mpirun is gone."""
    if parent_died():
        raise RemoteError("mpirun is gone")


def started() -> tuple[str, int, int]:
    """Return mpirun's variable for the number of processes, that number, and this one's."""
    for size, rank in PROCESSES:
        if os.environ.get(size, "").isdigit():
            return size, int(os.environ[size]), int(os.environ.get(rank, 0))
    return "", 1, 0


def missing() -> list[int]:
    """Return the ranks that died or are stopped, where all are on this host; else []."""
    name, size, _ = started()
    rank = dict(PROCESSES).get(name, "")
    if not on_one_host() or not read(PARENT, "comm").startswith(STARTERS):
        return []
    running = set[bytes]()
    for pid in pids():
        state, parent, *_ = (*fields(pid), "", "")
        if parent == str(PARENT) and state not in "TtZX":
            running.update(entries(pid))
    return [each for each in range(size) if f"{rank}={each}".encode() not in running]
