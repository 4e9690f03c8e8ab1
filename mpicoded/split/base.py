"""The contract of a split: how it plans, and from a map to units and back. One file a split."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mpicoded.cluster import Work
from mpicoded.errors import PlanError
from mpicoded.geometry import Box
from mpicoded.network.graph import Chain, Head
from mpicoded.network.linear import why_not_linear
from mpicoded.network.pieces import whole_flops
from mpicoded.network.program import Program
from mpicoded.plan import Plan, Shard, Stage

Bounds = list[tuple[int, int]]  # (first, last) block of every stage
Unbounded = tuple[bool, bool]  # no borders along (rows, columns)
Works = Iterator[tuple[str, Work]]  # block and its work for an image
Price = Callable[[int, Box, Unbounded], tuple[Box, Work]]  # block, box written -> box read, work


@dataclass(frozen=True)
class Request:
    """A plan for ``chain`` with k data and r parity units.

    ``stages`` names the last block of every stage; empty means one stage, as far as each unit gets
    a row or column of the map. ``tiles`` is the grid (rows, columns) of tiles, ``weights`` the k
    shares of an unequal split, ``batch`` the number of images a query. ``first`` is the block that
    the first stage begins with: a part of a plan, for its price.

    ``linear`` is for exact codes, on a chain that is split at activations: every block that
    ``stages`` names is a stage by itself (empty: every linear one that can be cut so), all of
    its shards have one size, and the leader runs what lies between.

    ``direct``: the stages are one segment, whose units exchange halos without the leader; empty
    ``stages`` are then single blocks. If it ``keeps`` its input, units can compute halos that do
    not come; that is of use with parity units only, as else every unit has to answer.
    """

    chain: Chain
    k: int
    r: int
    stages: tuple[str, ...] = ()
    tiles: tuple[int, int] | None = None
    weights: tuple[float, ...] | None = None
    batch: int = 1
    first: int = 0
    linear: bool = False
    direct: bool = False
    keeps: bool = False


class Units(NamedTuple):
    """How a stage is cut: its data units, their coded windows, a coded unit's FLOPs, the grid."""

    shards: tuple[Shard, ...]
    windows: tuple[Box, ...]
    parity_flops: int
    grid: tuple[int, int] = (1, 1)


class Split(ABC):
    """Cuts stages into units; without ``encodes`` filters are coded, not the map they read."""

    encodes = True

    def __init__(self, name: str) -> None:
        self.name = name

    def plan(self, request: Request) -> Plan:
        """Cut every stage into k units; PlanError if it cannot be cut so."""
        chain, bounds = request.chain, self.bounds(request)
        covered = {i for first, last in bounds for i in range(first, last + 1)}
        rest = [block.ops for i, block in enumerate(chain.blocks) if i not in covered]
        stages = tuple(self._stage(request, bounds, s) for s in range(len(bounds)))
        if request.direct and not stages[0].spatial:
            raise PlanError(
                f'units of split = "{self.name}" have no halos to exchange: let the leader gather '
                'every stage, or use split = "height" or "width"'
            )
        return Plan(
            stages=stages,
            k=request.k,
            r=request.r,
            batch=request.batch,
            split=self.name,
            head_flops=sum(whole_flops(chain, ops) for ops in [*rest, chain.head.ops]),
            output_shape=chain.output_shape,
        )

    def _stage(self, request: Request, bounds: Bounds, s: int) -> Stage:
        chain, (first, last) = request.chain, bounds[s]
        name, part = self.part(chain, first, last)
        units = self.units(request, bounds, s)
        images = sum(shard.images.size for shard in units.shards if shard.images) or 1
        return Stage(
            name=name,
            first=first,
            last=last,
            input_shape=chain.shapes[part.entry],
            output_shape=chain.shapes[part.exit],
            grid=units.grid,
            shards=units.shards,
            windows=units.windows,
            whole_flops=whole_flops(chain, part.ops) * images,
            parity_flops=units.parity_flops,
            entry=part.entry,
            exit=part.exit,
            direct=request.direct and s > 0,
            borders_first=request.direct and s + 1 < len(bounds),
            keeps=request.direct and request.keeps and s == 0 < len(bounds) - 1,
            split=self.name,
        )

    def part(self, chain: Chain, first: int, last: int) -> tuple[str, Head]:
        """Return the name of blocks ``first`` to ``last``, and the part of the network they are."""
        part = chain.between(first, last + 1)
        assert part is not None
        return " … ".join(dict.fromkeys(chain.blocks[i].name for i in (first, last))), part

    def bounds(self, request: Request) -> Bounds:
        """Return (first, last) block of every stage: (0, 1), (2, 3) of "pool1", "pool2"."""
        return stage_bounds(request, request.stages)

    @abstractmethod
    def units(self, request: Request, bounds: Bounds, s: int) -> Units:
        """Cut stage ``s`` of ``bounds``."""

    @abstractmethod
    def cut(self, x: Tensor, stage: Stage) -> list[Tensor]:
        """Input map (B, C, H, W) -> the k exact inputs of the data units, as views."""

    def windows(self, x: Tensor, stage: Stage) -> Tensor:
        """Input map (B, C, H, W) -> coded windows (k, B, C, h, w)."""
        return torch.stack(self.cut(x, stage))

    def stack(self, outputs: Sequence[Tensor | None], stage: Stage) -> Tensor:
        """Outputs, None where missing -> (n, B, C, h, w), zero elsewhere; halves as float32."""
        here = [y for y in outputs if y is not None]
        dtype = torch.float32 if here[0].dtype == torch.float16 else here[0].dtype
        result = here[0].new_zeros((len(outputs), *self.common(here, stage)), dtype=dtype)
        for i, y in enumerate(outputs):
            if y is not None:
                result[i][tuple(slice(n) for n in y.shape)] = y
        return result

    def common(self, outputs: Sequence[Tensor], stage: Stage) -> tuple[int, ...]:
        """Return the shape (B, C, h, w) that every output fits in."""
        return (len(outputs[0]), *stage.unit_shape)

    @abstractmethod
    def trim(self, y: Tensor, stage: Stage, unit: int) -> Tensor:
        """Common-shape output (B, C, h, w) of data unit ``unit`` -> its own size."""

    @abstractmethod
    def stitch(self, outputs: Sequence[Tensor], stage: Stage) -> Tensor:
        """The k data outputs, trimmed or not -> the stage's output map (B, C, H, W)."""

    @abstractmethod
    def program(self, chain: Chain, stage: Stage, unit: int | None) -> Program | Head:
        """Return what data unit ``unit`` runs; None: the base model's part in a coded unit."""

    @abstractmethod
    def works(self, chain: Chain, stage: Stage, unit: int | None, price: Price) -> Works:
        """Yield (block, its work for an image) of what :meth:`program` returns."""


def stage_bounds(request: Request, names: Sequence[str]) -> Bounds:
    """Return (first, last) block of the stages that end with blocks ``names``; PlanError."""
    chain = request.chain
    if not chain.blocks:
        raise PlanError(
            f'no block of this model can be cut: {chain.limit}. Use split = "batch", where a unit '
            "is a whole image"
        )
    if request.linear:
        names = names or linear_names(chain)
    lasts = [chain.index(name) for name in names] or [len(chain.blocks) - 1]
    if sorted(set(lasts)) != lasts:
        order = ", ".join(block.name for block in chain.blocks)
        raise PlanError(
            f"stages = {list(names)}: name the last block of each stage once and in the network's "
            f"order, {order}"
        )
    if request.linear:
        return [(last, last) for last in lasts]
    return list(zip([request.first] + [last + 1 for last in lasts[:-1]], lasts, strict=True))


def linear_names(chain: Chain) -> tuple[str, ...]:
    """Return the linear blocks that have work to share."""
    names = tuple(
        block.name
        for block in chain.blocks
        if whole_flops(chain, block.ops) and not why_not_linear(block.ops, block.entry)
    )
    if not names:
        blocks = ", ".join(block.name for block in chain.blocks)
        raise PlanError(
            f"linear = true needs a stage that is linear, and of the blocks {blocks} none is: "
            "a residual block, say, has its activation inside. Use linear = false, and a code for "
            "such stages"
        )
    return names
