"""What to do when a start has ended: be done, give up, or start again. No process, no clock."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from mpicoded.cluster_tools.launch.target import Limits

BUSY = "another process is writing it"  # the leader of the start before, on another machine
WORKER_FAILED = re.compile(r"error: a worker failed: [^\n]*\n\s*Traceback ")
LOST_NODE = re.compile(r"lost communication with a remote daemon|daemon failed to report back")
NOT_READY = "the ranks were not ready"
LEFT = "the leader has left, but mpirun does not end"
REFUSED = re.compile(r"(?<! )error: (?!a worker failed: )")  # not "Fatal Python error: "
WAITED = "raise start_limit"  # said by a rank that waited in vain; others may be the reason
NO_ROOM = "There are not enough slots available"
IDLE = 2  # starts in a row that answered nothing


@dataclass(frozen=True)
class Ended:
    """How a start ended: mpirun's ``status``, or ``why`` we ended it; ``steps`` are those done.

    ``finished`` says that the results file is complete, ``hosts`` names those in use, ``lost``
    those of ranks that were gone before the ranks had ``met``; ``last`` stood last on stderr.
    """

    status: int
    said: str = ""
    why: str = ""
    steps: int = 0
    finished: bool = False
    hosts: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    met: bool = True
    last: str = ""

    @property
    def refused(self) -> bool:
        """Whether the leader said in one line what is wrong with the job."""
        said = REFUSED.search(self.said) is not None and WAITED not in self.said
        return said and (self.status == 2 or self.why == LEFT)

    @property
    def reason(self) -> str:
        """What is said of it."""
        if self.met or not self.last:
            return self._ended
        return f"{self._ended} (last on stderr: {self.last})"

    @property
    def _ended(self) -> str:
        if self.why:
            return self.why
        if LOST_NODE.search(self.said):
            return "mpirun lost a node"
        if self.status < 0:
            return f"mpirun was ended by {signal.Signals(-self.status).name}"
        return f"mpirun ended with status {self.status}"


def final(ended: Ended, first: bool) -> int | None:
    """Return the exit status where starting again is of no use, None where it may help.

    After the ``first`` start the results file may still be in the hands of the leader before.
    """
    if ended.refused and (first or BUSY not in ended.said):
        return 2  # the job, its data or its results file: said in one line
    if ended.finished:
        return 0
    if WORKER_FAILED.search(ended.said):
        return 1  # it would be raised again
    if NO_ROOM in ended.said and first:
        return ended.status or 1
    return None


def refusal(history: Sequence[Ended], limits: Limits, steps: int, hosts: Sequence[str]) -> str:
    """Return why the job is not started again; "" where it is.

    ``history`` are all starts, ``steps`` was done before the first, ``hosts`` are the next one's.
    """
    if len(history) > limits.restarts:
        return f"it was started {len(history)} times; --restarts allows {limits.restarts} more"
    before = [steps, *(ended.steps for ended in history)]
    tried = [*(ended.hosts for ended in history), tuple(hosts)]
    idle = len(history) >= IDLE and before[-1] <= before[-1 - IDLE]
    if idle and len(set(tried[-IDLE - 1 :])) == 1:
        return f"the last {IDLE} starts answered nothing, and all hosts answer"
    if len(history) >= IDLE and all(ended.lost for ended in history[-IDLE:]):
        return f"so it was with the last {IDLE} starts"
    return ""
