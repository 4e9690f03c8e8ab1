"""Command line: ``python -m mpicoded VERB …``; ``run`` and ``profile`` under mpirun, others alone.

A worker leaves here for :mod:`mpicoded.runtime.worker` at once, so that its start-up imports only
mpi4py, numpy and torch.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

ORPHANED = -1  # a worker's status when the leader died
RANK = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")  # where mpirun tells a process its rank


def main() -> None:
    """Run the verb in ``sys.argv`` and exit with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and & ignore it
        signal.signal(signal.SIGINT, interrupted)
    if sys.argv[1:2] in (["run"], ["profile"]):
        sys.exit(_under_mpi())
    if any(int(os.environ.get(name, 0)) > 0 for name in RANK):
        return  # every other verb is for one process, also under mpirun
    sys.exit(_alone())


def interrupted(number: int, frame: object) -> None:
    """End at Ctrl-C while modules are imported, which would print where that was."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def _alone() -> int:
    import mpi4py

    mpi4py.rc.initialize = False  # it would wait for the ranks that have left
    from mpicoded import commands

    return commands.main()


def _under_mpi() -> int:
    """Lead on rank 0, serve elsewhere; every way out is one that ends the job."""
    from mpi4py import MPI

    from mpicoded.runtime.end import leave, leave_orphaned

    comm = MPI.COMM_WORLD
    status = 1
    try:
        status = _lead(comm) if comm.Get_rank() == 0 else _serve(comm)
    except Exception:
        traceback.print_exc()
    if status == ORPHANED:
        leave_orphaned(comm)
    leave(status)
    return status


def _serve(comm: MPI.Comm) -> int:
    from mpicoded.runtime.worker import serve

    return 0 if serve(comm) else ORPHANED


def _lead(comm: MPI.Comm) -> int:
    """Run the verb; whatever happens, send the workers home."""
    from mpicoded.runtime.end import abort
    from mpicoded.runtime.hall import Hall

    hall = Hall(comm)
    status = 1
    try:
        from mpicoded import commands

        status = commands.main(obj=hall)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        hall.dismiss()
        abort(comm, hall.stuck, status)
    return status


if __name__ == "__main__":
    main()
