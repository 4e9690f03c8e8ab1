"""Times the blocks of a network on one rank, in pieces as a plan cuts them.

Under a CPU quota a short block takes its time or many times that, whichever part of the period it
falls into. So the time of a whole pass is dealt out to its blocks in proportion to their CPU time.
The first pass is dropped, and medians of the others are taken. How their times vary is told of
stretches of several lengths: long ones vary less.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mpicoded.cluster import SHARES, Rate, Work
from mpicoded.network.kernels import channels_last
from mpicoded.network.optimize import Optimizer
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.setup import Run

PASSES, MOST = 5, 200  # the first is dropped
SPAN = 3.0  # s, for passes that are so short that there is time for more
LENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)  # s of stretches at the least
FEW = 8  # stretches that say nothing of how times vary
VALUES = 1 << 18  # of the map that is packed and unpacked


@dataclass(frozen=True)
class Bench:
    """Runs programs on random inputs, then copies into and out of a message as ``itemtype``."""

    programs: tuple[Run, ...]
    shapes: tuple[tuple[int, ...], ...]
    itemtype: torch.dtype

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        """Return seconds (passes, 2, programs + 2): of each by the clock, then of the CPU."""
        programs = Optimizer().stages((self.programs,))[0]  # as a worker runs them
        inputs = [_map(shape) for shape in self.shapes]
        values = _map((1, VALUES // 1024, 32, 32))
        packed = torch.zeros(values.shape, dtype=self.itemtype)
        steps: list[Callable[[], object]] = [
            *(partial(run, y) for run, y in zip(programs, inputs, strict=True)),
            partial(packed.copy_, values),
            lambda: _laid_out(packed.float()),
        ]
        passes, end = list[list[list[float]]](), time.perf_counter() + SPAN
        while len(passes) < PASSES or (time.perf_counter() < end and len(passes) < MOST):
            passes.append(_pass(steps))
        return torch.tensor(passes, dtype=torch.float32)


def _map(shape: tuple[int, ...]) -> Tensor:
    return _laid_out(torch.rand(shape))


def _laid_out(x: Tensor) -> Tensor:
    """Lay a map out as it comes from the block before."""
    last = channels_last() and x.dim() == 4
    return x.contiguous(memory_format=torch.channels_last) if last else x


def _pass(steps: Sequence[Callable[[], object]]) -> list[list[float]]:
    """Run all steps: seconds of each by the clock, then of the CPU."""
    # asking for CPU time is where a throttled process stops, so that one step's clock says nothing
    marks = [(time.perf_counter(), time.process_time())]
    for step in steps:
        step()
        marks.append((time.perf_counter(), time.process_time()))
    taken: list[list[float]] = np.diff(marks, axis=0).T.tolist()
    return taken


@dataclass(frozen=True)
class Brief:
    """Runs a program on a random input and answers in a few bytes: what a unit costs besides."""

    program: Run
    shape: tuple[int, ...]

    @cached_property
    def _ready(self) -> Run:
        return Optimizer().optimize(self.program)

    def __call__(self, x: Tensor) -> Tensor:
        """Run; ``x`` is ignored."""
        self._ready(_map(self.shape))
        return torch.zeros(1)


@dataclass(frozen=True)
class Reply:
    """Answers with a message of ``size`` bytes."""

    size: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return zeros; ``x`` is ignored."""
        return torch.zeros(self.size // 4)


@dataclass(frozen=True)
class Sample:
    """Blocks of a network as a plan cuts them: each its program, its input's shape, its work."""

    names: tuple[str, ...]
    programs: tuple[Run, ...]
    shapes: tuple[tuple[int, ...], ...]
    works: tuple[Work, ...]

    @classmethod
    def of(cls, deployment: Deployment) -> Self:
        """Take the middle unit of every stage of a deployment, whose stages are single blocks."""
        plan, unit = deployment.plan, deployment.plan.k // 2
        stages = range(len(plan.stages))
        works = (Work(plan.flops(s, unit), plan.bytes_out(s, unit, 1)) for s in stages)
        return cls(
            names=tuple(deployment.chain.blocks[stage.last].name for stage in plan.stages),
            programs=tuple(each[unit] for each in deployment.programs()),
            shapes=tuple(each[unit] for each in deployment.input_shapes()),
            works=tuple(works),
        )


def seconds(measured: Tensor) -> list[float]:
    """Seconds (passes, 2, steps) as of :class:`Bench` -> seconds of each step by the clock."""
    walls, cpus = measured[1:].double().unbind(dim=1)
    wall, cpu = float(walls.sum(dim=1).median()), cpus.median(dim=0).values.tolist()
    return [max(wall * each / max(sum(cpu), 1e-9), 1e-9) for each in cpu]


def spread(measured: Tensor, usual: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Return how times vary, as :class:`mpicoded.cluster.Device` has it.

    ``usual`` seconds of the steps are of the same ``measured``.
    """
    walls = measured[1:, 0].double().numpy()
    clock = np.concatenate([[0.0], walls.ravel().cumsum()])
    due = np.concatenate([[0.0], np.tile(usual, len(walls)).cumsum()])
    found = dict[float, tuple[float, ...]]()
    for length in LENGTHS:
        stops = np.searchsorted(due, due + length)  # of the stretch from every step's begin on
        starts = np.flatnonzero(stops < len(due))
        if len(starts) < FEW:
            break
        lengths = due[stops[starts]] - due[starts]
        slowness = (clock[stops[starts]] - clock[starts]) / lengths
        found[float(np.median(lengths))] = tuple(np.quantile(slowness, SHARES).tolist())
    return tuple((length, *found[length]) for length in sorted(found))


def fit(small: tuple[float, float], large: tuple[float, float]) -> Rate:
    """Two points (work, seconds) -> t = work / speed + fixed; through 0 where that has no sense."""
    (w0, t0), (w1, t1) = sorted((small, large))
    if w1 > w0 and t1 > t0:
        speed = (w1 - w0) / (t1 - t0)
        fixed = t0 - w0 / speed
        if fixed >= 0:
            return Rate(speed, fixed)
    return Rate(2 / (t0 / w0 + t1 / w1))
