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
from contextlib import suppress
from pathlib import Path

from mpi4py import MPI

from mpicoded.errors import RemoteError

Stuck = list[tuple[int, str, int]]  # rank, machine, pid
PARENT = os.getppid()
SETTLE = 0.3  # s; a bad status comes last: with it mpirun ends, and the ranks would be left behind


def has_ulfm() -> bool:
    """Whether the death of a rank leaves the others alive (mpirun --with-ft ulfm)."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"


def machine() -> str:
    """Tell this machine from others: several may have one host name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # containers count pids by themselves
    except OSError:
        return MPI.Get_processor_name()


def orphaned() -> bool:
    """Whether mpirun is gone: a rank that outlived it would stay for ever."""
    return os.getppid() != PARENT


def check_parent() -> None:
    """Raise RemoteError if mpirun is gone."""
    if orphaned():
        raise RemoteError("mpirun is gone")


def leave(status: int) -> None:
    """Leave with ``status``; everything that is to be kept has been written.

    Returns where the normal way out, through MPI_Finalize, is the right one.
    """
    if has_ulfm():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def leave_later(comm: MPI.Comm, stuck: Stuck) -> None:
    """Leave a user's own program at its end in the way that the state of the ranks allows then.

    Its status stays what it was; only after a death under ULFM, when an exit handler must skip
    MPI_Finalize, it is 1 after an uncaught exception and 0 otherwise, also after sys.exit.
    """
    atexit.register(_at_exit, comm, stuck)


def _at_exit(comm: MPI.Comm, stuck: Stuck) -> None:
    if MPI.Is_finalized() or comm == MPI.COMM_NULL:
        return
    status = 1 if getattr(sys, "last_value", None) else 0
    abort(comm, stuck, status)
    if has_ulfm() and not _all_here(comm):
        if status:
            time.sleep(SETTLE)
        leave(status)


def _all_here(comm: MPI.Comm) -> bool:
    """Wait for all ranks before MPI_Finalize; return False once one is dead: that could hang."""
    try:
        here = comm.Ibarrier()
        while not (comm.Get_failed().Get_size() or orphaned()):
            if here.Test():
                return True
            time.sleep(0.01)
    except MPI.Exception:
        return False
    return False


def leave_orphaned(comm: MPI.Comm) -> None:
    """Leave after the leader's death; the lowest living rank alone carries status 1, and last."""
    rank = comm.Get_rank()
    if has_ulfm():
        failed = comm.Get_failed()
        group = comm.Get_group()
        dead = set(MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), group))
        if rank == min(p for p in range(comm.Get_size()) if p not in dead):
            time.sleep(SETTLE)
            os._exit(1)
        os._exit(0)
    os._exit(1)


def end_stopped(silent: Stuck) -> Stuck:
    """End ranks that do not answer the end of the job: stopped, or behind a dead link.

    Under ULFM those on this host are killed. Return the others: they would hold mpirun up for ever,
    and :func:`abort` ends them, when all results are on disk.
    """
    stuck = []
    for rank, where, pid in silent:
        if has_ulfm() and pid and where == machine():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            stuck.append((rank, where, pid))
    if silent:
        ranks = [rank for rank, _, _ in silent]
        print(f"r0 | ranks {ranks} did not answer the end of the job in time", file=sys.stderr)
    return stuck


def abort(comm: MPI.Comm, stuck: Stuck, status: int) -> None:
    """End the whole job with ``status`` if there are ranks that hold it up."""
    if not stuck:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if has_ulfm():
        os.kill(os.getppid(), signal.SIGTERM)  # MPI_Abort would only end this rank
    else:
        comm.Abort(status)
