"""Decide when a start has ended: be done, give up, or start again. No process, no clock."""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from mpicoded.cluster_tools.launch.machines import Limits

BUSY = "another process is writing it"  # the leader of the start before, on another machine
WORKER_FAILED = re.compile(r"error: a worker failed: [^\n]*\n\s*Traceback ")
LOST_NODE = re.compile(r"lost communication with a remote daemon|daemon failed to report back")
NOT_READY = "the ranks were not ready"
LEFT = "the leader has left, but mpirun does not end"
REFUSED = re.compile(r"(?<! )error: (?!a worker failed: )")  # not "Fatal Python error: "
WAITED = "raise start_limit"  # printed by a rank that waited in vain; others may be the reason
NO_ROOM = "There are not enough slots available"
IDLE = 2  # starts in a row that answered nothing


@dataclass(frozen=True)
class Ended:
    """The end of a start: mpirun's ``status``, or ``why`` we ended it; ``steps`` are those done.

    ``finished``: the results file is complete. ``hosts`` are those in use, ``lost`` those of ranks
    that were gone before the ranks had ``met``; ``last`` is the last line on stderr.
    """

    status: int
    output: str = ""
    why: str = ""
    steps: int = 0
    finished: bool = False
    hosts: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    met: bool = True
    last: str = ""

    @property
    def refused(self) -> bool:
        """True if the leader refused the job, in one line."""
        refused = REFUSED.search(self.output) is not None and WAITED not in self.output
        return refused and (self.status == 2 or self.why == LEFT)

    @property
    def reason(self) -> str:
        """Why it ended, in words."""
        why = self.why
        if not why and LOST_NODE.search(self.output):
            why = "mpirun lost a node"
        elif not why and self.status < 0:
            why = f"mpirun was ended by {signal.Signals(-self.status).name}"
        why = why or f"mpirun ended with status {self.status}"
        return why if self.met or not self.last else f"{why} (last on stderr: {self.last})"


def final(ended: Ended, first: bool) -> int | None:
    """Return the exit status where another start is of no use, None where it may help."""
    if ended.refused and (first or BUSY not in ended.output):
        return 2  # the job, its data or its results file: named in one line
    if ended.finished:
        return 0
    if WORKER_FAILED.search(ended.output):
        return 1  # it would be raised again
    if NO_ROOM in ended.output and first:
        return ended.status or 1
    return None


def refusal(history: Sequence[Ended], limits: Limits, steps: int, hosts: Sequence[str]) -> str:
    """Return why the job is not started again after ``history``; "" where it is."""
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
