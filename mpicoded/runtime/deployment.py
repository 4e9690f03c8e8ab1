"""A plan and its codes for one network, and what each unit of it runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from mpicoded.codes import Code
from mpicoded.errors import ModelError, PlanError
from mpicoded.geometry import Box, Range
from mpicoded.network.graph import Chain, Head, whole_network
from mpicoded.network.ops import Pixels
from mpicoded.network.pieces import interior_piece, piece
from mpicoded.network.program import Program
from mpicoded.network.workshop import Workshop
from mpicoded.plan import Plan, Stage
from mpicoded.runtime.setup import Setup
from mpicoded.units import cut, windows


def check_dtype(model: nn.Module) -> None:
    """Raise ModelError unless the weights are float32, as what travels and what is decoded."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ModelError(f"the model's {name} is {parameter.dtype}; convert it: model.float()")


@dataclass(frozen=True)
class Deployment:
    """``codes[s]`` protects stage s; ``pixels`` turns 8-bit images into the network's numbers."""

    chain: Chain
    plan: Plan
    codes: tuple[Code, ...]
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        """Check the plan against its codes.

        Raises
        ------
        PlanError
            If they differ in k or r.
        """
        for code in self.codes:
            if (code.k, code.r) != (self.plan.k, self.plan.r):
                raise PlanError(
                    f"the {code!r} does not fit a plan with k = {self.plan.k} and r = "
                    f"{self.plan.r}: uncoded goes with r = 0, the others with r >= 1"
                )

    @property
    def head(self) -> Head | None:
        """What the leader runs on the last stage's map; None if nothing is left."""
        last = self.plan.stages[-1]
        if last.by_images:
            return None
        head = self.chain.head_after(last.last)
        return head if head.ops else None

    @cached_property
    def _workshop(self) -> Workshop:
        return Workshop()

    @cached_property
    def ready_head(self) -> Head | None:
        """The head made ready for this CPU; without gradients."""
        return self._workshop.ready(self.head)

    @cached_property
    def ready_programs(self) -> tuple[tuple[Program | Head, ...], ...]:
        """The programs made ready for this CPU, as a worker runs them; without gradients."""
        return self._workshop.stages(self.programs())

    @cached_property
    def _ready_network(self) -> Head:
        return self._workshop.ready(whole_network(self.chain))

    def programs(self) -> tuple[tuple[Program | Head, ...], ...]:
        """Return, for every stage, what each of its n units runs."""
        return tuple(
            tuple(self._program(stage, code, unit) for unit in range(code.n))
            for stage, code in zip(self.plan.stages, self.codes, strict=True)
        )

    def _program(self, stage: Stage, code: Code, unit: int) -> Program | Head:
        if stage.by_images:
            return whole_network(self.chain)
        source = code.source(unit)
        if source is not None:
            return piece(self.chain, stage.first, stage.last, stage.shards[source].writes)
        rows, cols = stage.unit_output
        endless = (stage.grid[0] > 1, stage.grid[1] > 1)
        box = Box(Range(0, rows), Range(0, cols))
        return code.worker_model(
            unit, interior_piece(self.chain, stage.first, stage.last, box, endless)
        )

    def input_shapes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Return, for every stage, the shape (B, …) of each unit's input."""
        return tuple(
            tuple(self._input_shape(stage, code.source(unit)) for unit in range(code.n))
            for stage, code in zip(self.plan.stages, self.codes, strict=True)
        )

    def _input_shape(self, stage: Stage, source: int | None) -> tuple[int, ...]:
        if stage.by_images:
            return (self.plan.batch // self.plan.k, *stage.input_shape)
        box = stage.windows[0] if source is None else stage.shards[source].reads
        return (self.plan.batch, stage.input_shape[0], box.rows.size, box.cols.size)

    def setup(self, threads: int | str, answers: str) -> Setup:
        """Return what every worker is told at the start, but for what is its own."""
        capacity = self.capacities()[0]
        return Setup(self.programs(), self.input_shapes(), self.pixels, capacity, threads, answers)

    def check_query(self, x: Tensor) -> None:
        """Raise PlanError unless ``x`` has the shape that the plan was made for."""
        expected = (self.plan.batch, *self.chain.input_shape)
        if tuple(x.shape) != expected:
            raise PlanError(
                f"a query of shape {tuple(x.shape)} does not fit the plan, made for {expected}: "
                "resize it, or make the plan for this shape"
            )
        if x.dtype not in (torch.float32, torch.uint8):
            raise PlanError(f"a query is {x.dtype}; convert it: x.float()")

    def parity(self, stage: int, x: Tensor) -> Tensor | None:
        """Encode a stage's input map (B, C, H, W): coded parity inputs (r, B, C, h, w), or None."""
        code = self.codes[stage]
        if all(code.source(unit) is not None for unit in range(code.n)):
            return None  # nothing but data units and copies of them
        return code.parity(windows(self.numbers(x), self.plan.stages[stage]))

    def inputs(self, stage: int, x: Tensor, parity: Tensor | None) -> list[Tensor]:
        """Return the input of every unit; data units are views of ``x``."""
        coded = iter(() if parity is None else parity)
        return [next(coded) if piece is None else piece for piece in self.cut(stage, x)]

    def cut(self, stage: int, x: Tensor) -> list[Tensor | None]:
        """Return the input of every unit, views of ``x``; None for a coded parity unit."""
        code = self.codes[stage]
        data = cut(x, self.plan.stages[stage])
        sources = [code.source(unit) for unit in range(code.n)]
        return [None if source is None else data[source] for source in sources]

    def numbers(self, x: Tensor) -> Tensor:
        """8-bit images, halves -> what the network takes; anything else is that already."""
        if x.dtype == torch.float16:
            return x.float()
        return self.pixels(x) if self.pixels is not None and x.dtype == torch.uint8 else x

    def alone(self, x: Tensor) -> Tensor:
        """Run the whole network on one device: the reference of everything here."""
        with torch.inference_mode():
            result = self._ready_network(self.numbers(x))
        assert isinstance(result, Tensor)
        return result

    def capacities(self) -> tuple[int, int]:
        """Largest input and output of a unit in bytes, as float64 at the most."""
        plan, places = self.plan, list(self.plan.units())
        return (
            max(plan.bytes_in(stage, unit, 8) for stage, unit in places),
            max(plan.bytes_out(stage, unit, 8) for stage, unit in places),
        )
