"""How a rank leaves a job, so that the job ends in bounded time under every MPI.

What was measured (docs/design.md): under Open MPI's ULFM, MPI_Finalize may hang once a rank has
died, so ranks leave without it, and only the last one carries a status; without ULFM and under
MPICH they must finalize, and a rank that is stopped for good would make that hang.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections.abc import Sequence

from mpi4py import MPI


def has_ulfm() -> bool:
    """Whether the death of a rank leaves the others alive (mpirun --with-ft ulfm)."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"


def leave(status: int) -> None:
    """Leave with ``status``; everything that is to be kept has been written.

    Returns where the normal way out, through MPI_Finalize, is the right one.
    """
    if has_ulfm():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def leave_later() -> None:
    """Let the interpreter's own exit skip MPI_Finalize, which could hang after a death."""
    atexit.register(lambda: leave(1 if getattr(sys, "last_value", None) else 0))


def leave_orphaned(comm: MPI.Comm) -> None:
    """Leave after the leader's death; the lowest living rank alone carries status 1, and last."""
    rank = comm.Get_rank()
    if has_ulfm():
        failed = comm.Get_failed()
        group = comm.Get_group()
        dead = set(MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), group))
        if rank == min(p for p in range(comm.Get_size()) if p not in dead):
            time.sleep(0.3)  # the others first: mpirun ends with the first bad status
            os._exit(1)
        os._exit(0)
    os._exit(1)


def end_stopped(comm: MPI.Comm, silent: Sequence[tuple[int, str, int]]) -> None:
    """End ranks that do not answer the end of the job: stopped, or behind a dead link.

    ``silent`` holds (rank, host, pid). On this host they are killed. Others are left to mpirun;
    they would hold it up for ever, so the job is aborted: by then all results are on disk.
    """
    if not silent:
        return
    here = [pid for _, host, pid in silent if pid and host == MPI.Get_processor_name()]
    for pid in here:
        os.kill(pid, signal.SIGKILL)
    ranks = [rank for rank, _, _ in silent]
    print(f"r0 | ranks {ranks} did not answer the end of the job in time", file=sys.stderr)
    if has_ulfm() and len(here) == len(silent):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if has_ulfm():
        os.kill(os.getppid(), signal.SIGTERM)  # MPI_Abort would only end this rank
    else:
        comm.Abort(0)
