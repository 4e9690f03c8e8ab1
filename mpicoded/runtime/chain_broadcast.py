"""One large array from the leader to every worker, along a chain of ranks.

    leader -> 1 -> 2 -> … -> n      each passes a segment on while the next one comes

So every link carries the array once, and the leader's no more than any other.
"""

from __future__ import annotations

from mpi4py import MPI

from mpicoded.runtime.message import Buffer

TAG = 78
SEGMENT = 1 << 18  # bytes: at 50 Mbit/s a rank more in the chain costs 40 ms
AHEAD = 4  # receives posted at a time


class ChainBroadcast:
    """One rank's part: ``source`` gives it the array, ``target`` is given it; None at an end."""

    def __init__(
        self, comm: MPI.Comm, array: Buffer, source: int | None, target: int | None
    ) -> None:
        self.comm, self.array = comm, array
        self.source, self.target = source, target
        self.broken = False  # a neighbour died
        self._segments = [array[i : i + SEGMENT] for i in range(0, array.size, SEGMENT)]
        self._here = 0 if source is not None else len(self._segments)
        self._asked = self._sent = 0
        self._receives: list[MPI.Request] = []
        self._sends: list[MPI.Request] = []

    @property
    def received(self) -> bool:
        """True if the whole array is here."""
        return self._here == len(self._segments)

    @property
    def done(self) -> bool:
        """True if there is nothing left to do: all has come and gone, or cannot any more."""
        passed = self.target is None or self._sent == len(self._segments)
        return self.broken or (self.received and passed and not self._sends)

    def move(self) -> bool:
        """Receive and pass on what can be; return whether anything moved."""
        if self.done:
            return False
        before = (self._here, self._sent, len(self._sends))
        try:
            self._receive()
            self._pass_on()
        except MPI.Exception:
            self.broken = True  # the leader sees the death on its own receive
        return before != (self._here, self._sent, len(self._sends))

    def _receive(self) -> None:
        while self._receives and self._receives[0].Test():
            self._receives.pop(0)
            self._here += 1
        while self.source is not None and self._asked < min(
            len(self._segments), self._here + AHEAD
        ):
            segment = [self._segments[self._asked], MPI.BYTE]
            self._receives.append(self.comm.Irecv(segment, source=self.source, tag=TAG))
            self._asked += 1

    def _pass_on(self) -> None:
        self._sends = [request for request in self._sends if not request.Test()]
        while self.target is not None and self._sent < self._here and len(self._sends) < AHEAD:
            segment = [self._segments[self._sent], MPI.BYTE]
            self._sends.append(self.comm.Isend(segment, dest=self.target, tag=TAG))
            self._sent += 1
