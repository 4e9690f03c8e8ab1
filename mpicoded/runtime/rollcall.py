"""A communicator for our own messages; the ranks that do not come for it are named.

No collective call can tell who is not there. So a rank whose time is over calls all others, and
those that still wait answer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mpi4py import MPI

from mpicoded.errors import RemoteError
from mpicoded.runtime.backoff import Backoff, Stopwatch
from mpicoded.runtime.environment import has_ulfm, on_one_host, parent_died
from mpicoded.runtime.exit import dead

TAG = 31847  # of a call, on the user's own communicator; one more is the answer's
ANSWERS = 1.0  # s for the answers
LEADER_FIRST = 1.5  # s that a worker waits longer: the leader's error is the user's to catch
KEPT: list[object] = []  # nothing is cancelled: what was sent to the absent stays


def duplicate(comm: MPI.Comm, limit: float) -> MPI.Comm:
    """Return a communicator of the same ranks, for our own messages alone.

    Raises
    ------
    RemoteError
        If a rank does not come within ``limit`` seconds, or is dead.
    """
    try:
        copy, request = comm.Idup()
        _wait(comm, request, limit)
    except MPI.Exception as error:
        lost = dead(comm) if has_ulfm() else []
        if lost:
            raise _died(lost, comm) from None
        raise RemoteError(f"the group cannot meet: {error}") from None
    return copy


def _wait(comm: MPI.Comm, request: MPI.Request, limit: float) -> None:
    roll, waited, backoff = _Roll(comm), Stopwatch(), Backoff()
    first = LEADER_FIRST * (comm.Get_rank() > 0)
    while not request.Test():
        roll.answer()
        if parent_died():
            raise RemoteError("mpirun is gone")
        if has_ulfm() and (lost := dead(comm)):
            raise _died(lost, comm)
        if waited.seconds() > limit + first and (absent := roll.absent()):
            raise RemoteError(
                f"{_named(absent, comm)} did not enter the Group within {limit:g} s (an exception, "
                "an early exit, a stopped process, or another number of Groups there): look at "
                "the last words of these ranks, or raise start_limit"
            )
        backoff.sleep()


def _died(ranks: Sequence[int], comm: MPI.Comm) -> RemoteError:
    return RemoteError(f"{_named(ranks, comm)} died before the group met")


def _named(ranks: Sequence[int], comm: MPI.Comm) -> str:
    """Name ranks, with their host where there is only one."""
    where = f" on {MPI.Get_processor_name()}" if on_one_host() else ""
    return f"ranks {list(ranks)} of {comm.Get_size()}{where}"


class _Roll:
    """A roll call among the ranks that wait for a communicator; it goes by the user's own."""

    def __init__(self, comm: MPI.Comm) -> None:
        self.comm = comm

    def answer(self) -> None:
        """Answer those who call."""
        status = MPI.Status()
        while self.comm.Iprobe(MPI.ANY_SOURCE, TAG, status):
            self.comm.Recv([bytearray(1), MPI.BYTE], status.Get_source(), TAG)
            self._send(status.Get_source(), TAG + 1)

    def absent(self) -> list[int]:
        """Call all others; return those that do not answer."""
        waiting = set(range(self.comm.Get_size())) - {self.comm.Get_rank()}
        for rank in waiting:
            self._send(rank, TAG)
        end = time.perf_counter() + ANSWERS
        while waiting and time.perf_counter() < end:
            self.answer()
            for rank in [p for p in waiting if self.comm.Iprobe(p, TAG + 1)]:
                self.comm.Recv([bytearray(1), MPI.BYTE], rank, TAG + 1)
                waiting.discard(rank)
            time.sleep(0.01)
        return sorted(waiting)

    def _send(self, rank: int, tag: int) -> None:
        buffer = bytearray(1)
        KEPT.extend((buffer, self.comm.Isend([buffer, MPI.BYTE], rank, tag)))
