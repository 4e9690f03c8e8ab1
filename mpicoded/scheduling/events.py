"""Events that a rank is told of, and actions that it asks for; handles stand for tensors.

    actions = rank.on(event, now)      # a LeaderRank or a WorkerRank: no MPI, no clock, no tensors

Times are seconds on one clock, the wall's or a simulator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from mpicoded.geometry import Box, Range
from mpicoded.scheduling.layout import Homes, Layout
from mpicoded.scheduling.ranks import Task
from mpicoded.steps import Node
from mpicoded.trace import Action

UNSPLIT = -6  # in the place of a unit: rank 0 runs the whole network by itself
Clock = tuple[float, float, float]  # when a unit came, was started, was done


class Span(NamedTuple):
    """Part of a computation, for the trace."""

    action: Action
    start: float
    stop: float


class Halo(NamedTuple):
    """The box of what ``origin`` makes that ``reader`` reads."""

    reader: Node
    origin: Node
    box: Box


# ---- events


class Tick(NamedTuple):
    """Time has passed."""


class Offered(NamedTuple):
    """A query was submitted; its latency counts from ``since``."""

    query: int
    since: float


class Ran(NamedTuple):
    """The engine is done with a task; ``output`` is a handle, None if it was skipped."""

    task: Task
    spans: tuple[Span, ...]
    output: Any = None
    epoch: int = 0

    @property
    def start(self) -> float:
        """When it began."""
        return self.spans[0].start

    @property
    def stop(self) -> float:
        """When it was done."""
        return self.spans[-1].stop


class RanPart(NamedTuple):
    """The engine has computed the ``box`` of a task's output, and goes on with the rest."""

    task: Task
    epoch: int
    box: Box
    output: Any


class Answered(NamedTuple):
    """A worker's answer came to the leader; ``handle`` is its message, ``clock`` the worker's."""

    rank: int
    task: Task
    skipped: bool
    clock: Clock
    at: float
    nbytes: int = 0
    handle: Any = None


class Times(NamedTuple):
    """A rank of a direct segment has done its last ``task``: what each stage took it."""

    rank: int
    task: Task
    clocks: tuple[tuple[int, int, float, float, float], ...]  # stage, unit, came, started, done


class Alive(NamedTuple):
    """A rank gave a sign of life, as it was asked to at ``asked``; it has ``todo`` tasks."""

    rank: int
    asked: float
    todo: int


class Gone(NamedTuple):
    """A rank is dead."""

    rank: int


class Taken(NamedTuple):
    """A rank has begun to take the oldest paced message to it."""

    rank: int


class Came(NamedTuple):
    """A worker was sent the input of a task, or a piece of it from ``origin`` on ``rank``."""

    rank: int
    task: Task
    epoch: int
    origin: Node
    oldest: int
    at: float
    handle: Any = None


class Placed(NamedTuple):
    """A worker was told the layout of the segment that ends with ``stage``."""

    stage: int
    layout: Layout


class StoodIn(NamedTuple):
    """The engine has computed halos of ``task`` and its later stages; None if none is needed."""

    task: Task
    epoch: int
    halos: tuple[Halo, ...]
    output: Any


class Asked(NamedTuple):
    """A worker was asked for a sign of life."""

    asked: float
    oldest: int


class Stopped(NamedTuple):
    """A worker is to stop."""


class NewPlan(NamedTuple):
    """A plan as rank 0's decisions need it, stages numbered from 0; ``handle`` is the plan."""

    codes: Sequence[Any]
    segments: Sequence[Range]
    nbytes: Sequence[Sequence[int]]  # of the message with each unit's input
    traffic: Sequence[Sequence[int]]  # bytes of both of a unit's messages
    deadlines: Sequence[Any]
    work: Sequence[Sequence[float]]
    homes: Sequence[Sequence[int]]
    planned: Mapping[int, float]  # paces that it was made for
    handle: Any = None

    def direct(self, start: int = 0) -> dict[int, Homes]:
        """Return the homes of direct segments' data units by their last stages, from ``start``."""
        data = [tuple(own[: code.k]) for own, code in zip(self.homes, self.codes, strict=True)]
        return {
            start + segment.stop - 1: tuple(data[slice(*segment)])
            for segment in self.segments
            if segment.size > 1
        }


class Replanned(NamedTuple):
    """A new plan was made, or none that is better."""

    plan: NewPlan | None
    text: str = ""


Event = (
    Tick | Offered | Ran | RanPart | Answered | Times | Alive | Gone | Taken | Replanned
    | Came | Placed | StoodIn | Asked | Stopped
)  # fmt: skip


# ---- actions


class Admit(NamedTuple):
    """The leader begins with a query."""

    query: int


class Run(NamedTuple):
    """Compute a task of the leader: cut, encode, decode from the ``answers``, head, or all."""

    task: Task
    arrived: npt.NDArray[np.bool_] | None = None
    answers: dict[int, Any] = {}  # noqa: RUF012  (never changed)


class Send(NamedTuple):
    """Send a worker the input of a task; the wire tells when a ``paced`` one was taken."""

    rank: int
    task: Task
    node: Node  # that the input is for
    epoch: int
    again: bool
    paced: bool = False


class SendLayout(NamedTuple):
    """Tell a worker the layout of the segment that ends with ``stage``."""

    rank: int
    stage: int
    layout: Layout
    paced: bool = False


class SendPing(NamedTuple):
    """Ask a worker for a sign of life."""

    rank: int
    asked: float
    paced: bool = False


class Finish(NamedTuple):
    """End a query: its answer is there, or it is ``lost``, or it was ``refused`` unopened."""

    query: int
    flight: Any
    lost: bool = False
    refused: bool = False


class Replan(NamedTuple):
    """Make a plan for these paces of the workers."""

    paces: Mapping[int, float]


class Adopt(NamedTuple):
    """Tell the workers a plan, whose first stage has the number ``start``."""

    ranks: tuple[int, ...]
    start: int
    handle: Any


class Say(NamedTuple):
    """Tell the user a line."""

    text: str


class Release(NamedTuple):
    """Give back the message behind a handle."""

    handle: Any


class Piece(NamedTuple):
    """A part of a task's input: a message, or an output of this rank, and the region to take."""

    handle: Any
    local: Node | None  # the task's own rank made it
    box: Box | None  # None: all of it
    kept: bool = False  # the message is given back later


class RunUnit(NamedTuple):
    """Compute a unit on a worker from the pieces of its input."""

    task: Task
    epoch: int
    pieces: tuple[Piece, ...]


class StandIn(NamedTuple):
    """Compute halos that do not come from ``source``, the input of the segment that it holds."""

    task: Task
    epoch: int
    halos: tuple[Halo, ...]
    source: Any


class SendPiece(NamedTuple):
    """Send a region of an output to the rank of the unit that reads it."""

    rank: int
    task: Task  # that reads it
    epoch: int
    origin: Node
    box: Box
    output: Any


class Reply(NamedTuple):
    """Send the leader a task's output; None: it was skipped."""

    task: Task
    output: Any
    clock: Clock


class SendTimes(NamedTuple):
    """Tell the leader what the stages of a direct segment took, after the last ``task``."""

    task: Task
    clocks: tuple[tuple[int, int, float, float, float], ...]


class SendAlive(NamedTuple):
    """Give the leader a sign of life."""

    asked: float
    todo: int


Do = (
    Admit | Run | Send | SendLayout | SendPing | Finish | Replan | Adopt | Say | Release
    | RunUnit | StandIn | SendPiece | Reply | SendTimes | SendAlive
)  # fmt: skip


class Rank(Protocol):
    """Decisions of one rank."""

    @property
    def done(self) -> bool:
        """True when the rank has nothing to decide any more."""

    def on(self, event: Event, now: float) -> Sequence[Do]:
        """Return the actions that follow from an event, in this order."""
