"""One query in flight, as the leader keeps it: numbers and handles, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.answer import Answer, Mode
from mpicoded.geometry import Range
from mpicoded.scheduling.dispatcher import Post
from mpicoded.trace import Action


@dataclass
class Flight:
    """``segment`` is where the query is, ``answers`` what has come of its units there.

    ``stages`` are those of its plan, in which its segments end at ``stop``; arrays are of these.
    ``own`` is the leader's own time in seconds: all that it did for the query, on any thread.
    """

    query: int
    submitted: float
    arrived: npt.NDArray[np.bool_]  # (stages, n)
    seconds: npt.NDArray[np.float32]  # (stages, n)
    stages: Range = Range(0, 0)
    stop: int = 0
    segment: int = 0
    coded: int = -1  # segment whose coded units may be sent
    unsent: list[Post] = field(default_factory=list)  # coded units that may not be yet
    answers: dict[int, Any] = field(default_factory=dict)  # handle by unit
    posted: float = 0.0
    gather: float = 0.0
    own: float = 0.0
    spent: dict[Action, float] = field(default_factory=dict)
    rounds: int = 1
    degraded: bool = False
    unsplit: bool = False  # the leader ran it by itself

    @classmethod
    def new(cls, query: int, submitted: float, shape: tuple[int, int]) -> Flight:
        """Return a query that has just been submitted; ``shape`` is (stages, n)."""
        arrived, seconds = np.zeros(shape, np.bool_), np.full(shape, np.nan, np.float32)
        return cls(query, submitted, arrived, seconds)

    def begin(self, stages: Range, segments: Range, shape: tuple[int, int]) -> None:
        """Let a query go by the plan that has these stages and segments."""
        self.stages, (self.segment, self.stop) = stages, segments
        if self.arrived.shape != shape:  # it waited while another plan came
            self.arrived = np.zeros(shape, np.bool_)
            self.seconds = np.full(shape, np.nan, np.float32)

    def spend(self, action: Action, seconds: float) -> None:
        """Add to the leader's own time for the query."""
        self.spent[action] = self.spent.get(action, 0.0) + seconds
        self.own += seconds

    def answer(
        self,
        output: Any,
        lost: bool,
        now: float,
        expected: tuple[float, float] = (nan, nan),
        refused: bool = False,
    ) -> Answer:
        """Return the answer at ``now``; ``expected`` are its accuracy and agreement."""
        mode = Mode.DEGRADED if self.degraded else Mode.AVAILABLE
        mode = Mode.REFUSED if refused else Mode.LOST if lost else mode
        accuracy, agreement = (nan, nan) if lost or refused else expected
        return Answer(
            query=self.query,
            output=output,
            mode=mode,
            arrived=self.arrived,
            seconds=self.seconds,
            submitted=self.submitted,
            answered=now,
            encode=self.spent.get(Action.ENCODE, 0.0),
            gather=self.gather,
            decode=self.spent.get(Action.DECODE, 0.0),
            head=self.spent.get(Action.HEAD, 0.0),
            own=self.own,
            attempts=0 if refused else self.rounds,
            expected=accuracy,
            agreement=agreement,
        )
