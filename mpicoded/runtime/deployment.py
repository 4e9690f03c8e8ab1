"""A plan and its codes for one network, and the program of each unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from math import nan, prod
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpicoded.cluster import Cluster
from mpicoded.codes import CODES, Code, CodeRequest
from mpicoded.errors import PlanError
from mpicoded.moves import parts, routes
from mpicoded.network.graph import Chain, Head, whole_network
from mpicoded.network.in_parts import InParts, in_parts
from mpicoded.network.ops import Normalize
from mpicoded.network.optimize import Optimizer
from mpicoded.network.program import Program
from mpicoded.plan import Plan, Stage
from mpicoded.runtime.setup import Setup
from mpicoded.scheduling.accuracy import AccuracyTarget
from mpicoded.split import SPLITS

T = TypeVar("T")
ROOM = 65536  # bytes for another plan itself


@dataclass(frozen=True)
class Deployment:
    """``codes[s]`` protects the segment that ends with stage s.

    ``pixels`` turns 8-bit images into the network's numbers. Queries may go by the plans of
    ``others`` as well, or by one yet to be made, if it has ``room``.
    """

    chain: Chain
    plan: Plan
    codes: tuple[Code, ...]
    pixels: Normalize | None = None
    others: tuple[Deployment, ...] = ()
    room: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        """Check the plan against its codes; which units are coded is theirs to say.

        Raises
        ------
        PlanError
            If they differ in k or r, or the code cannot code units of this kind.
        """
        segments = zip(self.plan.segments, self.segment_codes, strict=True)
        for code in (code for its, code in segments if its.size > 1 and not code.over_segments):
            raise PlanError(
                f"the {code!r} needs the outputs of every stage at the leader, and "
                f"{len(self.codes)} stages exchange halos directly: use code "
                '"learned", or "uncoded" (r = 0), or let the leader gather every stage'
            )
        for s, (stage, code) in enumerate(zip(self.plan.stages, self.codes, strict=True)):
            r = self.plan.parities(s)
            if (code.k, code.r) != (stage.k, r):
                raise PlanError(
                    f"the {code!r} does not fit a plan with k = {stage.k} and r = {r}: uncoded "
                    "goes with r = 0, the others with r >= 1"
                )
            codes_maps = SPLITS[stage.split].encodes or code.codes_filters
            if not codes_maps and None in map(code.copy_of, range(code.n)):
                raise PlanError(
                    f"the {code!r} is for pieces of a map, and units of a stage split by channels "
                    'are filters: use code "mds" or "replication", or split = "width"'
                )
        systematic = all(code.systematic for code in self.codes)
        object.__setattr__(self, "plan", replace(self.plan, systematic=systematic))

    @property
    def segment_codes(self) -> tuple[Code, ...]:
        """Return the code of every segment, that of its last stage."""
        return tuple(self.codes[segment.stop - 1] for segment in self.plan.segments)

    @property
    def shape(self) -> tuple[int, int]:
        """(stages, n) of what is noted of every unit, whichever its plan is."""
        shapes = [self.room, *(each.plan.shape for each in (self, *self.others))]
        stages, units = zip(*shapes, strict=True)
        return max(stages), max(units)

    @property
    def head(self) -> Head | None:
        """Return the rest of the network, behind the last stage; None if nothing is left."""
        if not self.plan.stages:
            return self.chain.head_after(-1)
        last = self.plan.stages[-1]
        head = self.chain.head_after(last.last)
        return head if head.ops and last.exit != head.exit else None

    def prologues(self) -> tuple[Head | None, ...]:
        """Return, for every stage, the blocks before it that no stage covers; the leader's."""
        ends = [0, *(stage.last + 1 for stage in self.plan.stages)]
        starts = [stage.first for stage in self.plan.stages]
        return tuple(self.chain.between(*gap) for gap in zip(ends[:-1], starts, strict=True))

    @cached_property
    def _ready_prologues(self) -> tuple[Head | None, ...]:
        return tuple(self._optimizer.optimize(each) for each in self.prologues())

    def has_prologue(self, stage: int) -> bool:
        """True if the leader runs a part of the network right before a stage."""
        return self._ready_prologues[stage] is not None

    def prologue(self, stage: int, x: Tensor) -> Tensor:
        """Run the leader's blocks before a stage on the last stage's map, or on the image."""
        run = self._ready_prologues[stage]
        if run is None:
            return x
        result = run(self.normalize(x))
        assert isinstance(result, Tensor)
        return result

    @cached_property
    def _optimizer(self) -> Optimizer:
        return Optimizer()

    @cached_property
    def ready_head(self) -> Head | None:
        """The head made ready for this CPU; without gradients."""
        return self._optimizer.optimize(self.head)

    @cached_property
    def ready_programs(self) -> tuple[tuple[Program | Head, ...], ...]:
        """The programs made ready for this CPU, as a worker runs them; without gradients."""
        return self._optimizer.stages(self.programs())

    @cached_property
    def _ready_network(self) -> Head:
        return self._optimizer.optimize(whole_network(self.chain))

    def programs(self) -> tuple[tuple[Program | Head, ...], ...]:
        """Return, for every stage, the program of each of its n units."""
        return self._each(self._program)

    def input_shapes(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Return, for every stage, the shape (B, …) of each unit's input."""
        return self._each(self._input_shape)

    def _each(self, of: Callable[[Stage, Code, int], T]) -> tuple[tuple[T, ...], ...]:
        return tuple(
            tuple(of(self.plan.seen_by(unit, s), code, unit) for unit in range(code.n))
            for s, code in enumerate(self.codes)
        )

    def _program(self, stage: Stage, code: Code, unit: int) -> Program | Head:
        source = code.copy_of(unit)
        program = SPLITS[stage.split].program(self.chain, stage, source)
        return program if source is not None else code.worker_model(unit, program)

    def _input_shape(self, stage: Stage, code: Code, unit: int) -> tuple[int, ...]:
        source, batch = code.copy_of(unit), self.plan.batch // stage.dealt
        box = stage.windows[0] if source is None else stage.shards[source].reads
        return (batch, stage.input_shape[0], box.rows.size, box.cols.size)

    def replanned(self, plan: Plan) -> Deployment:
        """Return the deployment of another plan, uncoded, with the weights packed for this one."""
        other = uncoded(self.chain, plan, self.pixels)
        other.__dict__["_optimizer"] = self._optimizer
        return other

    @property
    def largest(self) -> int:
        """Bytes that messages of any plan have at the most: the largest map as float64."""
        shapes = [self.chain.shapes[block.exit] for block in self.chain.blocks]
        largest = max(map(prod, [self.chain.input_shape, *shapes]))
        return max(ROOM, 8 * self.plan.batch * largest)

    def runs_head(self, plan: Plan) -> bool:
        """True if workers run what follows the last block, too."""
        return any(stage.exit == self.chain.head.exit for stage in plan.stages)

    @property
    def keeps(self) -> bool:
        """True if workers keep inputs to compute halos from."""
        return any(stage.keeps for stage in self.plan.stages)

    def setup(self, threads: int | str, answers: str, wire: str, replans: bool = False) -> Setup:
        """Return the setup that all workers share; if it ``replans``, with all blocks."""
        blocks = Head(self.chain.head.entry, (), self.chain.head.exit)
        if any(self.runs_head(each.plan) for each in self.others):
            blocks = self.chain.head
        bare = replace(self.chain, head=blocks, model=nn.Identity())
        return Setup(
            self.programs(),
            self.input_shapes(),
            self.pixels,
            self.largest if replans else self.capacities()[0],
            threads,
            answers,
            wire,
            self.plan,
            self.largest if replans else self.halo_capacity,
            bare if replans or self.keeps else None,
            parts=self.parts(),
        )

    def parts(self) -> dict[tuple[int, int], InParts]:
        """Return the programs of the units that compute what others wait for first."""
        stages = self.plan.placed(Cluster.local(self.plan.ranks)).stages
        found: dict[tuple[int, int], InParts] = {}
        if not any(stage.borders_first for stage in stages):
            return found
        for rank, own in routes(self.plan, [stage.ranks for stage in stages]).items():
            for node, route in own.items():
                stage = stages[node.stage]
                boxes = parts(stage, node.unit, rank, route)
                if len(boxes) > 1:
                    found[node] = in_parts(self.chain, stage.first, stage.last, boxes)
        return found

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
            if code.needs_float32 and travels != "float32":
                raise PlanError(
                    f"the {code!r} packs k images into float32 numbers, and [runtime] {key} = "
                    f'"{travels}" would round them to nothing: set parity = "float32", or train '
                    "the code with another encoder"
                )

    def aims(self, least: float | None) -> list[AccuracyTarget | None]:
        """Return, for every stage, the accuracy that it waits for.

        Raises
        ------
        PlanError
            If the codes cannot reach it, or nobody has measured what they reach.
        """
        count = len(self.segment_codes)
        if least is None or not count:
            return [None] * len(self.codes)
        wanted = f"[gather] min_accuracy = {least:g}"
        if count > 1:
            raise PlanError(
                f"{wanted}: the plan has {count} stages, and what answers are worth is "
                "measured for one: name one block in [plan] stages, or leave min_accuracy out"
            )
        (code,) = self.segment_codes
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
        return [*[None] * (len(self.codes) - 1), AccuracyTarget(code, least)]

    def expected(self, arrived: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
        """Return accuracy and agreement that are expected of answers from these units, or NaN.

        ``arrived`` is (stages, n), None where the leader ran all of it alone. What several stages
        come to together was not measured.
        """
        table = self.segment_codes[0].expected if len(self.segment_codes) == 1 else None
        if table is None:
            return nan, nan
        if arrived is None:
            return table.base / table.images, 1.0
        return table.accuracy(arrived[0]), table.agreement(arrived[0])

    def parity(self, stage: int, x: Tensor) -> Tensor | None:
        """Encode a segment's input map (B, C, H, W): parity inputs (r, B, C, h, w), or None.

        ``stage`` is its first.
        """
        if None not in self.cut(stage, x):
            return None  # nothing is encoded
        last = self.plan.last_of(stage)
        code, its = self.codes[last], self.plan.fused(last)
        return code.parity(SPLITS[its.split].windows(self.normalize(x), its))

    def inputs(self, stage: int, x: Tensor, parity: Tensor | None) -> list[Tensor]:
        """Return the input of every unit; data units are views of ``x``."""
        coded = iter(() if parity is None else parity)
        return [next(coded) if piece is None else piece for piece in self.cut(stage, x)]

    def cut(self, stage: int, x: Tensor) -> list[Tensor | None]:
        """Return the input of every unit, views of ``x``; None for a coded parity unit.

        Parity units are of the segment that begins with ``stage``, none of one within.
        """
        its, last = self.plan.stages[stage], self.plan.last_of(stage)
        coded_here = not self.plan.inside(stage) and self.plan.parities(last)
        code, split = self.codes[last if coded_here else stage], SPLITS[its.split]
        data, coded = split.cut(x, its), None if split.encodes else x
        sources = [code.copy_of(unit) for unit in range(code.n)]
        return [coded if source is None else data[source] for source in sources]

    def normalize(self, x: Tensor) -> Tensor:
        """Return the network's numbers of 8-bit images or halves; anything else is that already."""
        if x.dtype == torch.float16:
            return x.float()
        return self.pixels(x) if self.pixels is not None and x.dtype == torch.uint8 else x

    def base(self, x: Tensor) -> Tensor:
        """Run the module itself, as torch does: the reference of all answers."""
        with torch.inference_mode(False), torch.no_grad():
            result = self.chain.model(
                self.normalize(x).clone()
            )  # it may overwrite what it is given
        assert isinstance(result, Tensor)
        return result

    def run_unsplit(self, x: Tensor) -> Tensor:
        """Run the whole network on one device, the leader's, made ready for it."""
        with torch.inference_mode():
            result = self._ready_network(self.normalize(x))
        assert isinstance(result, Tensor)
        return result

    def capacities(self) -> tuple[int, int]:
        """Largest input from and output to the leader in bytes, as float64 at the most."""
        plan = self.plan
        return (
            max((plan.bytes_in(s, unit, 8) for s, unit in plan.fed), default=0),
            max(
                (
                    plan.bytes_out(s, unit, 8) * self.codes[s].output_factor
                    for s, unit in plan.gathered
                ),
                default=0,
            ),
        )

    @property
    def halo_capacity(self) -> int:
        """Largest message from worker to worker in bytes, as float64, wherever units are run."""
        plan = self.plan
        if not plan.direct:
            return 0
        anywhere = [(0,) * stage.k for stage in plan.stages]  # with what stays on a rank today
        units = routes(plan, anywhere)[0]
        return max(
            2 * plan.widths[plan.stages[node.stage].entry] * piece.box.area
            for node, route in units.items()
            for piece in route.pieces
            if piece.node.unit >= 0
        )


def uncoded(chain: Chain, plan: Plan, pixels: Normalize | None) -> Deployment:
    """Return the plan without any code: its units are the k data units."""
    plan = replace(plan, r=0, systematic=True)
    codes = tuple(CODES["uncoded"](CodeRequest(stage.k, 0, stage)) for stage in plan.stages)
    return Deployment(chain, plan, codes, pixels)
