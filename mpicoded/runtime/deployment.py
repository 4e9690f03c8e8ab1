"""A plan and its codes for one network, and what each unit of it runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import nan

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.codes import CODES, Code, CodeRequest
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range
from mpicoded.network.filters import Filters
from mpicoded.network.graph import Chain, Head, whole_network
from mpicoded.network.ops import Pixels
from mpicoded.network.pieces import interior_piece, piece
from mpicoded.network.program import Program
from mpicoded.network.workshop import Workshop
from mpicoded.plan import Plan, Stage
from mpicoded.runtime.setup import Setup
from mpicoded.scheduling.aim import Aim
from mpicoded.units import cut, windows


@dataclass(frozen=True)
class Deployment:
    """``codes[s]`` protects stage s; ``pixels`` turns 8-bit images into the network's numbers."""

    chain: Chain
    plan: Plan
    codes: tuple[Code, ...]
    pixels: Pixels | None = None

    def __post_init__(self) -> None:
        """Check the plan against its codes; which units are coded is theirs to say.

        Raises
        ------
        PlanError
            If they differ in k or r, or the code cannot code units of this kind.
        """
        for code in self.codes:
            if (code.k, code.r) != (self.plan.k, self.plan.r):
                raise PlanError(
                    f"the {code!r} does not fit a plan with k = {self.plan.k} and r = "
                    f"{self.plan.r}: uncoded goes with r = 0, the others with r >= 1"
                )
        for stage, code in zip(self.plan.stages, self.codes, strict=True):
            if (
                stage.by_channels
                and not code.codes_filters
                and None in map(code.source, range(code.n))
            ):
                raise PlanError(
                    f"the {code!r} is for pieces of a map, and units of a stage split by channels "
                    'are filters: use code "mds" or "replication", or split = "width"'
                )
        systematic = all(code.systematic for code in self.codes)
        object.__setattr__(self, "plan", replace(self.plan, systematic=systematic))

    @property
    def head(self) -> Head | None:
        """What the leader runs on the last stage's map; None if nothing is left."""
        last = self.plan.stages[-1]
        if last.by_images:
            return None
        head = self.chain.head_after(last.last)
        return head if head.ops else None

    def leads(self) -> tuple[Head | None, ...]:
        """What the leader runs on the map before each stage: blocks that no stage covers."""
        ends = [0, *(stage.last + 1 for stage in self.plan.stages)]
        starts = [stage.first for stage in self.plan.stages]
        return tuple(self.chain.between(*gap) for gap in zip(ends[:-1], starts, strict=True))

    @cached_property
    def _ready_leads(self) -> tuple[Head | None, ...]:
        return tuple(self._workshop.ready(lead) for lead in self.leads())

    def has_lead(self, stage: int) -> bool:
        """Whether the leader runs a part of the network right before a stage."""
        return self._ready_leads[stage] is not None

    def lead(self, stage: int, x: Tensor) -> Tensor:
        """Map behind the stage before (the image, for the first) -> the stage's input map."""
        run = self._ready_leads[stage]
        if run is None:
            return x
        result = run(self.numbers(x))
        assert isinstance(result, Tensor)
        return result

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
        source = code.source(unit)
        if stage.by_images:
            whole = whole_network(self.chain)
            return whole if source is not None else code.worker_model(unit, whole)
        if stage.by_channels:
            return self._filters(stage, code, unit)
        if source is not None:
            return piece(self.chain, stage.first, stage.last, stage.shards[source].writes)
        rows, cols = stage.unit_output
        endless = (stage.grid[0] > 1, stage.grid[1] > 1)
        box = Box(Range(0, rows), Range(0, cols))
        return code.worker_model(
            unit, interior_piece(self.chain, stage.first, stage.last, box, endless)
        )

    def _filters(self, stage: Stage, code: Code, unit: int) -> Program | Head:
        filters, source = Filters.of(self.chain, stage.first, stage.last), code.source(unit)
        if source is None:
            return code.worker_model(unit, filters.program(Range(0, stage.output_shape[0])))
        own = stage.shards[source].channels
        assert own is not None
        return filters.program(own)

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
        if x.dtype == torch.uint8 and self.pixels is None:
            raise PlanError(
                "a query is torch.uint8, and no mean and std are known that make numbers of its "
                "bytes: convert it as in training, such as x.float() / 255"
            )
        if x.dtype not in (torch.float32, torch.uint8):
            raise PlanError(f"a query is {x.dtype}, not torch.float32; convert it: x.float()")

    def check_wire(self, wire: str, parity: str | None) -> None:
        """Raise PlanError if what a code makes cannot travel so."""
        key, travels = ("parity", parity) if parity else ("wire", wire)
        for code in self.codes:
            if code.unrounded and travels != "float32":
                raise PlanError(
                    f"the {code!r} packs k images into float32 numbers, and [runtime] {key} = "
                    f'"{travels}" would round them to nothing: set parity = "float32", or train '
                    "the code with another encoder"
                )

    def aims(self, least: float | None) -> list[Aim | None]:
        """Return, for every stage, the accuracy that it waits for.

        Raises
        ------
        PlanError
            If the codes cannot reach it, or nobody has measured what they reach.
        """
        if least is None:
            return [None] * len(self.codes)
        wanted = f"[gather] min_accuracy = {least:g}"
        if len(self.codes) > 1:
            raise PlanError(
                f"{wanted}: the plan has {len(self.codes)} stages, and what answers are worth is "
                "measured for one: name one block in [plan] stages, or leave min_accuracy out"
            )
        (code,) = self.codes
        if code.expected is None:
            raise PlanError(
                f"{wanted}: nobody has measured what answers of the {code!r} are worth in this "
                "plan: python -m mpicoded calibrate JOB, or leave min_accuracy out"
            )
        if code.expected.best < least:
            raise PlanError(
                f"{wanted} is more than the {code.expected.best:.4f} that is expected of this "
                f"model and the {code!r} when every unit is here: lower it"
            )
        return [Aim(code, least)]

    def expected(self, arrived: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
        """Return accuracy and agreement that are expected of answers from these units, or NaN.

        ``arrived`` is (stages, n), None where the leader ran all of it alone. What several stages
        come to together was not measured.
        """
        table = self.codes[0].expected
        if table is None or len(self.codes) > 1:
            return nan, nan
        if arrived is None:
            return table.base / table.images, 1.0
        return table.accuracy(arrived[0]), table.agreement(arrived[0])

    def parity(self, stage: int, x: Tensor) -> Tensor | None:
        """Encode a stage's input map (B, C, H, W): coded parity inputs (r, B, C, h, w), or None."""
        code = self.codes[stage]
        if all(self._takes_map(stage, unit) for unit in range(code.n)):
            return None  # nothing is encoded
        return code.parity(windows(self.numbers(x), self.plan.stages[stage]))

    def inputs(self, stage: int, x: Tensor, parity: Tensor | None) -> list[Tensor]:
        """Return the input of every unit; data units are views of ``x``."""
        coded = iter(() if parity is None else parity)
        return [next(coded) if piece is None else piece for piece in self.cut(stage, x)]

    def cut(self, stage: int, x: Tensor) -> list[Tensor | None]:
        """Return the input of every unit, views of ``x``; None for a coded parity unit."""
        code = self.codes[stage]
        data = cut(x, self.plan.stages[stage])
        if self.plan.stages[stage].by_channels:
            return [x] * code.n
        sources = [code.source(unit) for unit in range(code.n)]
        return [None if source is None else data[source] for source in sources]

    def _takes_map(self, stage: int, unit: int) -> bool:
        """Whether a unit's input is a part of the map, or all of it, and need not be encoded."""
        by_channels = self.plan.stages[stage].by_channels
        return by_channels or self.codes[stage].source(unit) is not None

    def numbers(self, x: Tensor) -> Tensor:
        """8-bit images, halves -> what the network takes; anything else is that already."""
        if x.dtype == torch.float16:
            return x.float()
        return self.pixels(x) if self.pixels is not None and x.dtype == torch.uint8 else x

    def base(self, x: Tensor) -> Tensor:
        """Run the module itself, as torch does: the reference of all answers."""
        with torch.inference_mode(False), torch.no_grad():
            result = self.chain.model(self.numbers(x).clone())  # it may overwrite what it is given
        assert isinstance(result, Tensor)
        return result

    def alone(self, x: Tensor) -> Tensor:
        """Run the whole network on one device, the leader's, made ready for it."""
        with torch.inference_mode():
            result = self._ready_network(self.numbers(x))
        assert isinstance(result, Tensor)
        return result

    def capacities(self) -> tuple[int, int]:
        """Largest input and output of a unit in bytes, as float64 at the most."""
        plan, places = self.plan, list(self.plan.units())
        return (
            max(plan.bytes_in(stage, unit, 8) for stage, unit in places),
            max(
                plan.bytes_out(stage, unit, 8) * self.codes[stage].spread for stage, unit in places
            ),
        )


def uncoded(chain: Chain, plan: Plan, pixels: Pixels | None) -> Deployment:
    """Return the plan without any code: its units are the k data units."""
    plan = replace(plan, r=0, systematic=True)
    codes = tuple(CODES["uncoded"](CodeRequest(plan.k, 0, stage)) for stage in plan.stages)
    return Deployment(chain, plan, codes, pixels)
