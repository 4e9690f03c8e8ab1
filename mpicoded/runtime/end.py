"""The end of a job when some rank does not answer any more: bounded, and said."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mpi4py import MPI


def end_without(comm: MPI.Comm, silent: Sequence[int]) -> None:
    """Let the job end normally, or abort it if ``silent`` ranks would make MPI wait for ever."""
    if silent:
        sys.stderr.write(f"r0 | ranks {list(silent)} did not answer the end of the job: aborting\n")
        sys.stderr.flush()
        comm.Abort(1)
