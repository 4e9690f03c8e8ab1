"""One query on its way through the stages, as the leader keeps it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mpicoded.answer import Answer, Mode
from mpicoded.runtime.wire import Message


@dataclass
class Query:
    """``image`` is what was asked, ``map`` the current stage's input, ``inputs`` its units'."""

    number: int
    image: Tensor  # (B, …)
    map: Tensor  # (B, C, H, W)
    future: Future[Answer]
    submitted: float
    arrived: npt.NDArray[np.bool_]  # (stages, n)
    seconds: npt.NDArray[np.float32]  # (stages, n)
    stage: int = 0
    inputs: list[Tensor] = field(default_factory=list)
    answers: dict[int, Message] = field(default_factory=dict)  # of the current stage, by unit
    posted: float = 0.0
    encode: float = 0.0
    gather: float = 0.0
    decode: float = 0.0
    head: float = 0.0
    own: float = 0.0
    rounds: int = 0
    degraded: bool = False

    def finish(self, output: Tensor | None, now: float) -> Answer:
        """Return the answer, and hand it to whoever waits for it."""
        mode = Mode.DEGRADED if self.degraded else Mode.AVAILABLE
        answer = Answer(
            query=self.number,
            output=output,
            mode=Mode.LOST if output is None else mode,
            arrived=self.arrived,
            seconds=self.seconds,
            submitted=self.submitted,
            answered=now,
            encode=self.encode,
            gather=self.gather,
            decode=self.decode,
            head=self.head,
            own=self.own,
            attempts=max(1, self.rounds),
        )
        self.future.set_result(answer)
        return answer
