"""Command line: ``python -m mpicoded VERB …``; ``run`` and ``profile`` under mpirun, others alone.

A worker leaves here for :mod:`mpicoded.runtime.worker` at once, so that its start-up imports only
mpi4py, numpy and torch.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, NoReturn

from mpicoded.processes import RANK

if TYPE_CHECKING:
    from mpi4py import MPI

ORPHANED = -1  # a worker's status when the leader died


def main() -> None:
    """Run the verb in ``sys.argv`` and exit with its status."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nohup and & ignore it
        signal.signal(signal.SIGINT, interrupted)
    if sys.argv[1:2] in (["run"], ["profile"]):
        _under_mpi()
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


def _under_mpi() -> NoReturn:
    """Lead on rank 0, serve elsewhere; every way out is one that ends the job."""
    import mpi4py

    gc.disable()  # what is imported stays: looking for garbage in it takes a tenth of the time
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C without a traceback
    mpi4py.rc.initialize = False  # not yet: that has a limit
    warnings.filterwarnings("ignore", "suspicious MPI execution environment")  # it is refused
    from mpicoded.errors import JobError
    from mpicoded.runtime import start
    from mpicoded.runtime.exit import end_job, exit_after_leader, exit_rank, stand_in

    limit = start.start_limit(sys.argv[2:])
    try:
        comm = start.init(limit)
    except JobError as error:
        print("error:", error, file=sys.stderr, flush=True)
        start.finalize(2)
    try:
        status = _lead(comm, limit) if comm.Get_rank() == 0 else _serve(comm, limit)
    except Exception:
        traceback.print_exc()
        end_job("")
    if status == ORPHANED:
        exit_after_leader(comm)
    status = stand_in(comm, status)
    exit_rank(status)
    start.finalize(status)


def _serve(comm: MPI.Comm, limit: float) -> int:
    """Work; return the status that the leader leaves with."""
    from mpicoded.runtime.worker import serve

    gc.enable()
    status = serve(comm, limit)
    return ORPHANED if status is None else status


def _lead(comm: MPI.Comm, limit: float) -> int:
    """Run the verb, then release the workers, whatever happens."""
    from mpicoded.runtime.exit import abort, end_on_signals
    from mpicoded.runtime.pool import WorkerPool

    gc.enable()
    end_on_signals()
    pool = WorkerPool(comm, limit)
    status = 1
    try:
        from mpicoded import commands

        status = commands.main(obj=pool)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
        if not status:  # no signal: code that the job names has done it
            print(f"error: exit({end.code or ''}) was called in the run", file=sys.stderr)
            status = 2
    finally:
        pool.release(status)
        abort(comm, pool.stuck, status)
    return status


if __name__ == "__main__":
    main()
