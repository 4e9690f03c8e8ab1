"""Bytes that a rank needs for a plan: the weights of its programs, its maps, and its messages.

    need = Memory(chain)
    need.of(plan, rank, cluster).total        # bytes, besides Python and its libraries
    need.fits(plan, cluster)                  # no rank of the plan needs more than it has

Every worker is sent the weights of all stages, as any may stand in for any other; those of the
stages that it works in it keeps once more, packed for its CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf, prod
from typing import NamedTuple

from torch import nn

from mpicoded.cluster import Cluster
from mpicoded.errors import PlanError
from mpicoded.network.graph import Chain
from mpicoded.network.ops import Conv, Op
from mpicoded.network.pieces import stage_ops
from mpicoded.network.program import Program
from mpicoded.plan import Plan
from mpicoded.split import SPLITS
from mpicoded.stage import Stage

FLOAT = 4  # bytes


class Bytes(NamedTuple):
    """Bytes of a rank: weights, the maps of one unit at a time, messages of queries in flight."""

    weights: int
    maps: int
    messages: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Memory:
    """Bytes of ranks for plans of ``chain``, with ``window`` queries in flight."""

    def __init__(self, chain: Chain, window: int = 4) -> None:
        self.chain, self.window = chain, window
        self._maps: dict[tuple[Stage, int], int] = {}
        self._packed: dict[Stage, int] = {}
        self._model = sum(p.nbytes for p in (*chain.model.parameters(), *chain.model.buffers()))

    def of(self, plan: Plan, rank: int, cluster: Cluster) -> Bytes:
        """Return what a rank needs; one without any unit stands by for all."""
        sent = sum(weights(stage_ops(self.chain, st.first, st.last)) for st in plan.stages)
        if rank == 0:
            return self._leader(plan, sent)
        own = plan.at_home(rank, cluster)
        kept = sum(self._packs(plan, s, own) for s in range(len(plan.stages)))
        works = own or [(s, 0) for s in range(len(plan.stages))]
        maps = max((self._peak(plan, *unit) for unit in works), default=0)
        stages = [[i for t, i in works if t == s] for s in range(len(plan.stages))]
        moved = [sum(plan.bytes_in(s, i) + plan.bytes_out(s, i) for i in stages[s]) for s, _ in own]
        return Bytes(sent + kept, maps, self.window * max(moved, default=0))

    def fits(self, plan: Plan, cluster: Cluster) -> bool:
        """True if every rank of the plan has the memory that it needs."""
        return not list(self.lacking(plan, cluster))

    def lacking(self, plan: Plan, cluster: Cluster) -> Iterator[int]:
        """Yield the ranks of the plan that need more memory than they have."""
        for rank, device in enumerate(cluster.devices):
            has = device.memory
            if rank and not plan.at_home(rank, cluster):
                continue
            if has < inf and self.of(plan, rank, cluster).total > has:
                yield rank

    def check(self, plan: Plan, cluster: Cluster) -> None:
        """Raise PlanError, with both numbers, if a rank of the plan lacks memory."""
        for rank in self.lacking(plan, cluster):
            need, has = self.of(plan, rank, cluster), cluster.devices[rank].memory
            parts = ", ".join(f"{n / 1e6:.1f} MB of {name}" for name, n in need._asdict().items())
            raise PlanError(
                f"rank {rank} needs {need.total / 1e6:.1f} MB ({parts}) and has {has / 1e6:.1f} MB "
                "in the cluster file: use more units (k), end the last stage earlier, lower window "
                "in [runtime], or leave that rank out"
            )

    def _leader(self, plan: Plan, sent: int) -> Bytes:
        """Return what rank 0 needs: the whole network once more, packed, and the setup to send."""
        ops = (*stage_ops(self.chain, 0, len(self.chain.blocks) - 1), *self.chain.head.ops)
        packed = sum(weights([op]) for op in ops if isinstance(op.layer, Conv))
        maps = [prod(self.chain.shapes.get(op.name, ())) for op in ops]
        largest = FLOAT * plan.batch * max([prod(self.chain.input_shape), *maps])
        answers = sum(plan.bytes_out(s, i) for s, i in plan.gathered)
        return Bytes(self._model + packed + sent, 3 * largest, self.window * (largest + answers))

    def _packs(self, plan: Plan, s: int, own: Sequence[tuple[int, int]]) -> int:
        """Return the packed weights of a stage: of the groups of filters that are a rank's own."""
        stage = plan.stages[s]
        units = [i for t, i in own if t == s] if own else [0]
        if stage not in self._packed:
            self._packed[stage] = weights(stage_ops(self.chain, stage.first, stage.last))
        if stage.shards[0].channels is None:
            return self._packed[stage] if units else 0
        share = sum(stage.channels(i) for i in units) / stage.output_shape[0]
        return round(share * self._packed[stage])

    def _peak(self, plan: Plan, s: int, unit: int) -> int:
        stage = plan.seen_by(unit, s)
        source = None if plan.coded(unit, s) else unit
        key = stage, -1 if source is None else unit
        if key not in self._maps:
            program = SPLITS[stage.split].program(self.chain, stage, source)
            if isinstance(program, Program):
                channels = (stage.channels(unit), stage.shards[0].channels is not None)
                self._maps[key] = alive(program, self.chain, *channels)
            else:  # the whole network
                shapes = [self.chain.shapes.get(op.name, ()) for op in program.ops]
                self._maps[key] = 3 * max(map(prod, shapes), default=0)
        return FLOAT * self._maps[key] * (plan.batch // stage.dealt)


def weights(ops: Iterable[Op]) -> int:
    """Return the bytes of the parameters and buffers of these operations, each once."""
    layers = (getattr(op.layer, "module", getattr(op.layer, "target", None)) for op in ops)
    modules = {id(m): m for m in layers if isinstance(m, nn.Module)}.values()
    return sum(p.nbytes for m in modules for p in (*m.parameters(), *m.buffers()))


def alive(program: Program, chain: Chain, channels: int, group: bool) -> int:
    """Return the most numbers of an image that are alive at a time while a program runs.

    A ``group`` of filters writes ``channels`` only. What works position by position, on one value,
    does so in place.
    """
    sizes = {program.entry: (program.reads.rows.size, program.reads.cols.size)}
    held = {program.entry: chain.shapes[program.entry][0] * program.reads.area}
    most = held[program.entry]
    for step in program.steps:
        name, (source, *others) = step.op.name, step.op.inputs
        crop = step.crops[0]
        rows, cols = sizes[source]
        if crop is not None:
            rows, cols = (part.stop - part.start for part in crop)
        if windows := step.op.windows:
            pads, (down, across) = step.pads, windows
            rows = (rows + pads.top + pads.bottom - down.span) // down.stride + 1
            cols = (cols + pads.left + pads.right - across.span) // across.stride + 1
        sizes[name] = rows, cols
        depth = channels if group else chain.shapes[name][0]
        held[name] = depth * rows * cols
        in_place = not (windows or others) and source in step.last_use
        most = max(most, sum(held.values()) - (held[source] if in_place else 0))
        for each in step.last_use:
            held.pop(each, None)
    return most
