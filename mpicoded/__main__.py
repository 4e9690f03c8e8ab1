"""Command line: ``python -m mpicoded VERB …``; ``run`` under mpirun, the others by themselves.

A worker leaves here for :mod:`mpicoded.runtime.worker` at once, so that its start-up imports only
mpi4py, numpy and torch.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the verb in ``sys.argv`` and exit with its status."""
    if sys.argv[1:2] == ["run"]:
        sys.exit(_under_mpi())
    from mpicoded.commands import app

    app()


def _under_mpi() -> int:
    from mpi4py import MPI

    from mpicoded.runtime.end import leave, leave_orphaned
    from mpicoded.runtime.worker import serve

    comm = MPI.COMM_WORLD
    if comm.Get_rank() == 0:
        status = _lead(comm)
    elif serve(comm):
        status = 0
    else:
        leave_orphaned(comm)
    leave(status)
    return status


def _lead(comm: object) -> int:
    """Run the verb on rank 0; whatever happens, send the workers home."""
    from mpi4py import MPI

    from mpicoded.commands import app
    from mpicoded.runtime.hall import Hall

    assert isinstance(comm, MPI.Comm)
    hall = Hall(comm)
    try:
        app(obj=hall)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        hall.dismiss()
    return 0


if __name__ == "__main__":
    main()
