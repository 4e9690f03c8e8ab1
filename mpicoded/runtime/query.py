"""One query on its way through the stages, as the leader keeps it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from math import nan
from threading import Event

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mpicoded.answer import Answer, Mode
from mpicoded.runtime.wire import Message
from mpicoded.scheduling.dispatcher import Post
from mpicoded.trace import Action


@dataclass
class Query:
    """``image`` is what was asked, ``map`` the current stage's input, ``inputs`` its units'.

    ``own`` is the leader's own time: all that it did for this query, in whichever thread.
    """

    number: int
    image: Tensor  # (B, …)
    map: Tensor  # (B, C, H, W)
    future: Future[Answer]
    submitted: float
    arrived: npt.NDArray[np.bool_]  # (stages, n)
    seconds: npt.NDArray[np.float32]  # (stages, n)
    stage: int = 0
    opened: Event = field(default_factory=Event)  # the stage's data units are posted
    inputs: list[Tensor | None] = field(default_factory=list)  # None: not encoded yet
    coded: int = -1  # stage whose parity units may be sent
    unsent: list[Post] = field(default_factory=list)  # those that may not be yet
    answers: dict[int, Message] = field(default_factory=dict)  # of the current stage, by unit
    posted: float = 0.0
    gather: float = 0.0
    own: float = 0.0
    spent: dict[Action, float] = field(default_factory=dict)
    rounds: int = 1
    degraded: bool = False
    expected: tuple[float, float] = (nan, nan)  # accuracy, agreement with the unsplit model

    @classmethod
    def new(cls, number: int, image: Tensor, now: float, shape: tuple[int, int]) -> Query:
        """Return a query that has just been submitted; ``shape`` is (stages, n)."""
        return cls(
            number=number,
            image=image,
            map=image,
            future=Future(),
            submitted=now,
            arrived=np.zeros(shape, np.bool_),
            seconds=np.full(shape, np.nan, np.float32),
        )

    def spend(self, action: Action, seconds: float) -> None:
        """Add to the leader's own time for this query."""
        self.spent[action] = self.spent.get(action, 0.0) + seconds
        self.own += seconds

    def answer(self, output: Tensor | None, now: float) -> Answer:
        """Return the answer as it stands at ``now``; without an output the query is lost."""
        expected, agreement = (nan, nan) if output is None else self.expected
        mode = Mode.DEGRADED if self.degraded else Mode.AVAILABLE
        return Answer(
            query=self.number,
            output=output,
            mode=Mode.LOST if output is None else mode,
            arrived=self.arrived,
            seconds=self.seconds,
            submitted=self.submitted,
            answered=now,
            encode=self.spent.get(Action.ENCODE, 0.0),
            gather=self.gather,
            decode=self.spent.get(Action.DECODE, 0.0),
            head=self.spent.get(Action.HEAD, 0.0),
            own=self.own,
            attempts=self.rounds,
            expected=expected,
            agreement=agreement,
        )
