"""Nodes of rank 0: cut, encode, gather, head, and the whole network; tensors in, tensors out.

A node's time is split into spans for the trace: what no stage covers before a stage counts as head.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.runtime.deployment import Deployment
from mpicoded.scheduling.by_stage import ByStage
from mpicoded.scheduling.events import UNSPLIT, Run, Span
from mpicoded.split import SPLITS
from mpicoded.steps import CUT, ENCODE, GATHER, HEAD
from mpicoded.trace import Action

Arrived = npt.NDArray[np.bool_]


@dataclass
class Tensors:
    """A query's tensors: its image, the map that the leader holds, the segment's inputs."""

    image: Tensor  # (B, …)
    map: Tensor  # (B, C, H, W)
    inputs: list[Tensor | None] = field(default_factory=list)  # None: not encoded yet
    output: Any = None


class Nodes:
    """Computes one node at a time; ``began`` is second 0 of the spans on ``time.perf_counter``."""

    def __init__(self, deployment: Deployment, began: float) -> None:
        self.deployments = ByStage(deployment)
        self._began = began
        self._spans: list[Span] = []

    def run(self, action: Run, query: Tensors) -> tuple[Span, ...]:
        """Compute a node of a query, in place; return the spans of its parts."""
        self._spans = []
        run = {
            CUT: self._cut,
            ENCODE: self._encode,
            GATHER: self._gather,
            HEAD: self._head,
            UNSPLIT: self._unsplit,
        }[action.task.unit]
        self.deployment, stage = self.deployments.of(action.task.stage)
        run(action._replace(task=action.task._replace(stage=stage)), query)
        return tuple(self._spans)

    def _cut(self, action: Run, query: Tensors) -> None:
        stage = action.task.stage
        if self.deployment.has_prologue(stage):
            with self._timed(Action.HEAD):
                query.map = self.deployment.prologue(stage, query.map)
        with self._timed(Action.ENCODE):
            query.inputs = self.deployment.cut(stage, query.map)

    def _encode(self, action: Run, query: Tensors) -> None:
        """Make the inputs of the coded units, while the others are on their way."""
        with self._timed(Action.ENCODE):
            parity = self.deployment.parity(action.task.stage, query.map)
            coded = iter(() if parity is None else parity)
            query.inputs = [next(coded) if x is None else x for x in query.inputs]

    def _gather(self, action: Run, query: Tensors) -> None:
        assert action.arrived is not None
        with self._timed(Action.DECODE):
            outputs = self._outputs(action.task.stage, action.answers, action.arrived)
            stage = self.deployment.plan.stages[action.task.stage]
            query.map = SPLITS[stage.split].stitch(outputs, stage)

    def _outputs(self, stage: int, answers: Mapping[int, Any], arrived: Arrived) -> list[Tensor]:
        """Return the data outputs of a stage, with what is missing filled in."""
        st, code = self.deployment.plan.stages[stage], self.deployment.codes[stage]
        outputs = [
            answers[unit].tensor() if arrived[unit] and unit in answers else None
            for unit in range(code.n)
        ]  # as they came: a map that only goes on to workers stays float16
        holes = np.flatnonzero(~arrived[: code.k]) if code.systematic else np.arange(code.k)
        if not len(holes):
            return [y for y in outputs[: code.k] if y is not None]
        y = SPLITS[st.split].stack(outputs, st)  # (n, B, C, h, w), zero where nothing came
        filled = code.fill(y, arrived)  # (k, B, C, h, w)
        return [(filled if unit in holes else y)[unit] for unit in range(code.k)]

    def _head(self, action: Run, query: Tensors) -> None:
        with self._timed(Action.HEAD):
            output, head = self.deployment.normalize(query.map), self.deployment.ready_head
            query.output = _ordinary(output if head is None else head(output))

    def _unsplit(self, action: Run, query: Tensors) -> None:
        with self._timed(Action.HEAD):
            query.output = _ordinary(self.deployment.run_unsplit(query.image))

    @contextmanager
    def _timed(self, action: Action) -> Iterator[None]:
        start = time.perf_counter() - self._began
        yield
        self._spans.append(Span(action, start, time.perf_counter() - self._began))


def _ordinary(x: Any) -> Tensor:
    """Copy a tensor of inference mode into one that anybody may use."""
    with torch.inference_mode(False):
        copy: Tensor = x.clone()
        return copy
