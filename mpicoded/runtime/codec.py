"""What the leader computes for a query: parity units, what was missing, the map, the head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.query import Query
from mpicoded.split import SPLITS
from mpicoded.trace import Action

Note = Callable[[Action, float, float, Query, int], None]  # action, began, took, whose, unit


class Codec:
    """Works on one query at a time, in the leader's computing thread.

    ``note`` is told of every action, with its begin on the clock and its seconds.
    """

    def __init__(self, deployment: Deployment, note: Note) -> None:
        self.deployment = deployment
        self.stages = deployment.plan.stages
        self.head = deployment.ready_head
        self._note = note

    @torch.inference_mode()
    def cut(self, query: Query) -> bool:
        """Cut the inputs of the data units of the query's stage; return whether that is all."""
        if query.stage == 0:
            self._lead(query, 0)
        with self._timed(Action.ENCODE, query):
            query.inputs = self.deployment.cut(query.stage, query.map)
        return all(x is not None for x in query.inputs)

    @torch.inference_mode()
    def encode(self, query: Query) -> None:
        """Make the inputs of the coded units, while the others are on their way."""
        plan = self.deployment.plan
        with self._timed(Action.ENCODE, query, plan.k if plan.systematic else -1):
            parity = self.deployment.parity(query.stage, query.map)
            coded = iter(() if parity is None else parity)
            query.inputs = [next(coded) if x is None else x for x in query.inputs]

    @torch.inference_mode()
    def decode(self, query: Query) -> bool:
        """Fill what is missing and stitch the map; return whether a further stage is to come."""
        with self._timed(Action.DECODE, query):
            stage = self.stages[query.stage]
            query.map = SPLITS[stage.split].stitch(self._data_outputs(query), stage)
            query.answers = {}
        if query.stage + 1 == len(self.stages):
            return False
        self._lead(query, query.stage + 1)
        query.stage += 1
        return True

    def _lead(self, query: Query, stage: int) -> None:
        """Run what no stage covers before ``stage``; it counts to the stage before, as a head."""
        if self.deployment.has_lead(stage):
            with self._timed(Action.HEAD, query):
                query.map = self.deployment.lead(stage, query.map)

    def _data_outputs(self, query: Query) -> list[Tensor]:
        stage, code = self.stages[query.stage], self.deployment.codes[query.stage]
        arrived = query.arrived[query.stage]
        outputs = [_output(query, unit) for unit in range(code.n)]
        holes = np.flatnonzero(~arrived[: code.k]) if code.systematic else np.arange(code.k)
        if not len(holes):
            return [y for y in outputs[: code.k] if y is not None]
        query.degraded |= not code.exact(arrived)  # an exact copy is the base model's own
        y = SPLITS[stage.split].stack(outputs, stage)  # (n, B, C, h, w), zero where nothing came
        filled = code.fill(y, arrived)  # (k, B, C, h, w)
        return [(filled if unit in holes else y)[unit] for unit in range(code.k)]

    @torch.inference_mode()
    def finish(self, query: Query) -> Tensor:
        """Run the rest of the network on the last stage's map."""
        with self._timed(Action.HEAD, query):
            output = self.deployment.numbers(query.map)
            output = self.head(output) if self.head is not None else output
        query.expected = self.deployment.expected(query.arrived)
        assert isinstance(output, Tensor)
        return output

    def alone(self, query: Query) -> Tensor:
        """Run the whole network here: there is no worker (any more)."""
        with self._timed(Action.HEAD, query):
            query.expected = self.deployment.expected(None)
            return self.deployment.alone(query.image)

    @contextmanager
    def _timed(self, action: Action, query: Query, unit: int = -1) -> Iterator[None]:
        began = time.perf_counter()
        yield
        took = time.perf_counter() - began
        query.spend(action, took)
        self._note(action, began, took, query, unit)


def _output(query: Query, unit: int) -> Tensor | None:
    message = query.answers.get(unit)
    if message is None or not query.arrived[query.stage, unit]:
        return None
    return message.tensor()  # as it came: a map that only goes on to workers stays float16
