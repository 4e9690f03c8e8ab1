"""Seconds and bytes of the executor's tasks: of rank 0's nodes, of units on any rank, of pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from mpicoded.cost.model import MESSAGE, CostModel
from mpicoded.geometry import Box
from mpicoded.plan import Plan
from mpicoded.scheduling.by_stage import ByStage
from mpicoded.scheduling.events import UNSPLIT, Halo, Run
from mpicoded.scheduling.ranks import Task
from mpicoded.steps import CUT, ENCODE, GATHER
from mpicoded.trace import Action


class Service:
    """What tasks of ``plan``, and of those that follow it, take on the cluster of ``model``."""

    def __init__(self, model: CostModel, plan: Plan) -> None:
        self.model, self.plans = model, ByStage(plan)
        self.devices = model.cluster.devices
        self._units: dict[tuple[int, int, int], tuple[float, float]] = {}
        self._parts: dict[tuple[int, int, int], list[tuple[Box, float]]] = {}

    def node(self, run: Run) -> Iterator[tuple[Action, float]]:
        """Yield what a node of rank 0 does, and the seconds of each part."""
        unit, model = run.task.unit, self.model
        plan, stage = self.plans.of(run.task.stage)
        if unit == UNSPLIT:
            yield Action.HEAD, model.single_device(plan.batch)
        elif unit == CUT:
            start = plan.stages[stage - 1].last + 1 if stage else 0
            between = range(start, plan.stages[stage].first)
            if between:
                yield Action.HEAD, sum(model.own(block, plan.batch) for block in between)
            yield Action.ENCODE, 0.0  # pieces are views of the map
        elif unit == ENCODE:
            yield Action.ENCODE, model.encode(plan, stage)
        elif unit == GATHER:
            yield Action.DECODE, self._decode(run, plan, stage)
        else:
            yield Action.HEAD, model.after(plan)

    def _decode(self, run: Run, plan: Plan, stage: int) -> float:
        """Seconds to take the answers out of their messages, and to sum up what is missing."""
        device, k = self.devices[0], plan.stages[stage].k
        values = [self._values(run.task.stage, unit) for unit in run.answers]
        holes = 0 if run.arrived is None else int((~run.arrived[:k]).sum())
        filled = holes * k * plan.bytes_out(stage, k, 1) / device.pack if holes else 0.0
        return sum(values) / device.unpack + filled

    def _values(self, stage: int, unit: int) -> float:
        return (self.answer(stage, unit) - MESSAGE) / self.model.formats.answers

    def unit(self, rank: int, stage: int, unit: int) -> float:
        """Seconds of a rank for a unit, in and out of its messages too."""
        return self._load(rank, stage, unit)[0]

    def halos(self, rank: int, unit: int, halos: Sequence[Halo]) -> float:
        """Seconds of a rank for halos that it computes from the segment's input."""
        first, number = halos[0].origin.stage, {halo.origin.stage: halo.box for halo in halos}
        plan, offset = self.plans.of(first)
        boxes = {s - first + offset: box for s, box in number.items()}
        return self.model.boxes(rank, plan, boxes)

    def answer(self, stage: int, unit: int) -> float:
        """Bytes of a unit's answer."""
        return self._load(0, stage, unit)[1]

    def _load(self, rank: int, stage: int, unit: int) -> tuple[float, float]:
        key = (id(self.devices[rank]), stage, unit)
        if key not in self._units:
            plan, number = self.plans.of(stage)
            load = self.model.load(plan, number, unit, rank)
            self._units[key] = load.compute, load.bytes_out
        return self._units[key]

    def first(self, rank: int, task: Task) -> list[tuple[Box, float]]:
        """Return the parts of a unit that its rank computes first: when each of them is done.

        That is a share of the unit's seconds.
        """
        key = (id(self.devices[rank]), task.stage, task.unit)
        if key not in self._parts:
            plan, number = self.plans.of(task.stage)
            self._parts[key] = []
            if plan.stages[number].borders_first:
                boxes, seconds = zip(*self.model.parts(rank, number, task.unit, plan), strict=True)
                done = [share / sum(seconds) for share in accumulate(seconds)]
                self._parts[key] = list(zip(boxes, done, strict=True))[:-1]
        return self._parts[key]

    def pack(self, nbytes: float) -> float:
        """Seconds of rank 0 to pack an input of so many bytes."""
        return nbytes / self.model.formats.maps / self.devices[0].pack

    def piece(self, stage: int, box: Box, source: int, target: int) -> tuple[float, float]:
        """Bytes of a piece of a map that ``stage`` writes, and seconds to pack and unpack it."""
        plan, number = self.plans.of(stage)
        values = plan.stages[number].output_shape[0] * box.area * plan.batch
        seconds = values / self.devices[source].pack + values / self.devices[target].unpack
        return values * self.model.formats.maps + MESSAGE, seconds
