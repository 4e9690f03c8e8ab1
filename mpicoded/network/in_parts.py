"""A piece of a stage computed in parts, one after the other, so that the first can leave early.

common    all up to the last convolution that reads a halo: once, on what the parts read of it
parts     that convolution and what follows, for one strip of the output each

conv  relu | conv  relu        A residual block of a strip: the bar is where parts begin. Only
  \\________|_____ + ___        what is right of it runs in smaller programs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from mpicoded.geometry import Box, around
from mpicoded.network.graph import Chain
from mpicoded.network.ops import Op
from mpicoded.network.pieces import shard_program, sizes_of, stage_ops
from mpicoded.network.program import Program, compile_piece


@dataclass(frozen=True)
class InParts:
    """Programs of a piece: ``common`` computes what ``parts`` read; None if that is the input."""

    common: Program | None
    parts: tuple[Program, ...]

    @property
    def flops(self) -> list[int]:
        """FLOPs until each part is done, from the one before on."""
        first, *rest = (part.flops for part in self.parts)
        return [first + (self.common.flops if self.common else 0), *rest]

    def each(self, of: Callable[[Program], Program]) -> InParts:
        """Return the same with every program changed."""
        common = None if self.common is None else of(self.common)
        return InParts(common, tuple(map(of, self.parts)))

    def run(self, x: Tensor, reads: Box) -> Iterator[tuple[Box, Tensor]]:
        """(B, C, h, w) of ``reads`` -> the box of each part, and its map, in their order."""
        entry = (self.common or self.parts[0]).entry
        values = {entry: (reads, x)}
        if self.common is not None:
            c = self.common
            made = c.run({c.entry: region(x, c.reads, reads)})
            boxes = {c.exit: c.writes, **{name: kept.box for name, kept in c.also_writes.items()}}
            values |= {name: (boxes[name], y) for name, y in made.items()}
        for part in self.parts:
            wanted = {part.entry: part.reads, **part.also_reads}
            maps = {name: region(values[name][1], b, values[name][0]) for name, b in wanted.items()}
            yield part.writes, part.run(maps)[part.exit]


def region(x: Tensor, box: Box, whole: Box) -> Tensor:
    """Return the ``box`` of a map of which ``x`` holds the region ``whole``, as a view."""
    rows, cols = (part.inside(outer) for part, outer in zip(box, whole, strict=True))
    return x[:, :, rows, cols]


def in_parts(chain: Chain, first: int, last: int, boxes: Sequence[Box]) -> InParts:
    """Compile blocks ``first`` to ``last`` for these boxes of their map, one after the other."""
    ops, entry = stage_ops(chain, first, last), chain.blocks[first].entry
    cut = max((i for i, op in enumerate(ops) if op.flops(1) and _has_halo(op)), default=0)
    if not cut or ops[cut].inputs != (ops[cut - 1].name,):
        return InParts(None, tuple(shard_program(chain, first, last, box) for box in boxes))
    sizes, begin = sizes_of(chain), ops[cut - 1].name
    parts = tuple(compile_piece(ops[cut:], begin, sizes, box) for box in boxes)
    reads: dict[str, list[Box]] = {begin: [part.reads for part in parts]}
    for part in parts:
        for name, box in part.also_reads.items():
            reads.setdefault(name, []).append(box)
    also = {name: around(b) for name, b in reads.items() if name not in (begin, entry)}
    common = compile_piece(ops[:cut], entry, sizes, around(reads[begin]), also)
    return InParts(common, parts)


def _has_halo(op: Op) -> bool:
    return op.windows is not None and any(window.span > 1 for window in op.windows)
