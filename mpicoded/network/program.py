"""Programs: a stage compiled for one piece of its map.

    program = compile_piece(ops, "x", shapes, box)     # which rows and columns, once
    y = program(x)                                     # x: program.reads of the input map

A stage that is cut where several values are alive reads and writes more of them, ``also``:

    program = compile_piece(ops, "x", shapes, box, {"skip": its_box})
    values = program.run({"x": x, **others})           # program.also_reads of the others

Every value of the stage is computed on the smallest box that its readers need; each layer is
padded as itself where that box meets the border of the map, never at an interior cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from mpicoded.geometry import Box, Range, around, clip
from mpicoded.network.ops import AvgPool, Call, Op, Pads

Sizes = tuple[int | None, int | None]  # rows, columns of a map; None: an axis without borders
Crop = tuple[slice, slice] | None  # None: all of it


class Kept(NamedTuple):
    """A further value that a stage writes: its box, and the crop out of the computed map."""

    box: Box
    crop: Crop


class Read(NamedTuple):
    """Part of its inputs that one operation reads."""

    box: Box
    pads: Pads


@dataclass(frozen=True)
class Step:
    """One operation with its crops: ``crops[i]`` is the slice of input i."""

    op: Op
    crops: tuple[Crop, ...]
    pads: Pads
    divisor: Tensor | None
    last_use: tuple[str, ...]  # values that nobody reads after this step


@dataclass(frozen=True)
class Program:
    """The steps that compute ``writes`` of the output map from ``reads`` of the input map."""

    entry: str
    reads: Box
    writes: Box
    steps: tuple[Step, ...]
    flops: int
    also_reads: Mapping[str, Box] = field(default_factory=dict)
    also_writes: Mapping[str, Kept] = field(default_factory=dict)

    @property
    def exit(self) -> str:
        """Return the name of the value that ``writes`` is of."""
        return self.steps[-1].op.name if self.steps else self.entry

    def __call__(self, x: Tensor) -> Tensor:
        """(B, C, h, w) of ``reads`` -> (B, C', h', w') of ``writes``."""
        return self.run({self.entry: x})[self.exit]

    def run(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Map of every value that is read, by name -> map of every value that is written."""
        values = dict(maps)
        for step in self.steps:
            inputs = [
                _cut(values[name], crop)
                for name, crop in zip(step.op.inputs, step.crops, strict=True)
            ]
            layer = step.op.layer
            if isinstance(layer, Call):
                values[step.op.name] = layer(*inputs)
            else:
                values[step.op.name] = layer.piece(inputs[0], step.pads, step.divisor)
            for name in step.last_use:
                del values[name]
        also = {name: _cut(values[name], kept.crop) for name, kept in self.also_writes.items()}
        return {self.exit: values[self.exit], **also}


def _cut(x: Tensor, crop: Crop) -> Tensor:
    return x if crop is None else x[:, :, crop[0], crop[1]]


def compile_piece(
    ops: Sequence[Op],
    entry: str,
    sizes: Mapping[str, Sizes],
    writes: Box,
    also: Mapping[str, Box] | None = None,
    given: Box | None = None,
) -> Program:
    """Compile the operations so that the last one writes ``writes``.

    ``sizes`` holds the rows and columns of every value, the entry's too; None on an axis means
    that the map has no border there (the window that a parity unit runs). ``also`` are the boxes
    of further values that the operations compute and that are wanted. ``given`` is a box of the
    entry that there is, of which they may need a part only.
    """
    wanted = dict(also or {})
    needs = {**wanted, ops[-1].name if ops else entry: writes}
    if given is not None and ops:
        needs[entry] = given
    reads: list[Read] = []
    for op in reversed(ops):
        read = _read(op, needs[op.name], sizes)
        reads.append(read)
        for name in op.inputs:
            box = _at_least_one(read.box, sizes[name])
            needs[name] = around((needs[name], box)) if name in needs else box
    reads.reverse()
    users = {name: i for i, op in enumerate(ops) for name in op.inputs if name not in wanted}
    steps = tuple(
        Step(
            op,
            tuple(_crop(read.box, needs[name]) for name in op.inputs),
            read.pads,
            op.layer.divisor(needs[op.name], sizes[op.inputs[0]])
            if isinstance(op.layer, AvgPool)
            else None,
            tuple(name for name, last in users.items() if last == i),
        )
        for i, (op, read) in enumerate(zip(ops, reads, strict=True))
    )
    flops = sum(op.flops(needs[op.name].area) for op in ops)
    made = {op.name for op in ops} | {entry}
    return Program(
        entry, needs[entry], writes, steps, flops,
        {name: box for name, box in needs.items() if name not in made},
        {name: Kept(box, _crop(box, needs[name])) for name, box in wanted.items()},
    )  # fmt: skip


def _read(op: Op, out: Box, sizes: Mapping[str, Sizes]) -> Read:
    if op.windows is None:
        return Read(out, Pads())
    rows, cols = (
        clip(window.reads(piece), size)
        for window, piece, size in zip(op.windows, out, sizes[op.inputs[0]], strict=True)
    )
    return Read(Box(rows.range, cols.range), Pads(rows.before, rows.after, cols.before, cols.after))


def _at_least_one(box: Box, size: Sizes) -> Box:
    """Return one position at least, even where a layer reads nothing but padding."""
    rows, cols = (
        r if r.size or n is None else Range(min(r.start, n - 1), min(r.start, n - 1) + 1)
        for r, n in zip(box, size, strict=True)
    )
    return Box(rows, cols)


def _crop(box: Box, have: Box) -> Crop:
    return None if box == have else (box.rows.inside(have.rows), box.cols.inside(have.cols))
