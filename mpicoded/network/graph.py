"""From an nn.Module to a chain of blocks that can be cut, and the head that cannot.

The network is read by torch.fx. A block (conv+BN+ReLU, a pool) ends wherever one value alone is
alive; residual and inception blocks therefore stay whole. The head begins with the first operation
that mixes all positions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from typing import Any

from torch import Tensor, nn

from mpicoded.errors import ModelError
from mpicoded.network.fx_graph import FxGraph, record
from mpicoded.network.layers import path, to_op
from mpicoded.network.ops import Op
from mpicoded.network.rearrange import Pad

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """A single-entry single-exit part of the network: reads value ``entry``, ends in ``exit``."""

    name: str
    entry: str
    ops: tuple[Op, ...]

    @property
    def exit(self) -> str:
        """Return the name of the value that the block computes."""
        return self.ops[-1].name


@dataclass(frozen=True)
class Head:
    """The part of the network behind the last block; it runs whole, on one rank."""

    entry: str
    ops: tuple[Op, ...]
    exit: str

    def __call__(self, x: Tensor) -> Any:
        """Run it on the whole map (B, C, H, W) that the last stage gives."""
        values: dict[str, Any] = {self.entry: x}
        for i, op in enumerate(self.ops):
            values[op.name] = op.whole(*(values[name] for name in op.inputs))
            for name in op.inputs:
                if self._last_use[name] == i:
                    del values[name]
        return values[self.exit]

    @cached_property
    def _last_use(self) -> dict[str, int]:
        return {name: i for i, op in enumerate(self.ops) for name in op.inputs}


@dataclass(frozen=True)
class Chain:
    """A traced ``model``: blocks in order, the head, shapes without batch, places by ``paths``."""

    blocks: tuple[Block, ...]
    head: Head
    input_shape: Shape  # (C, H, W)
    output_shape: Shape
    shapes: dict[str, Shape]
    limit: str  # why the head begins where it does
    model: nn.Module
    paths: dict[str, str]

    def index(self, name: str) -> int:
        """Return the position of the block ``name``; ModelError if no such block can be cut."""
        names = [block.name for block in self.blocks]
        if name in names:
            return names.index(name)
        raise ModelError(
            f"there is no block {name!r} that can be cut; the blocks are {', '.join(names) or '–'}"
            f" ({self.limit})"
        )

    def head_after(self, last: int) -> Head:
        """Return the head when the stages end with block ``last`` (-1: no block at all)."""
        rest = tuple(op for block in self.blocks[last + 1 :] for op in block.ops)
        entry = self.blocks[last + 1].entry if rest else self.head.entry
        return Head(entry, rest + self.head.ops, self.head.exit)

    def between(self, start: int, stop: int) -> Head | None:
        """Return blocks [start, stop) as one piece that runs whole; None if there are none."""
        blocks = self.blocks[start:stop]
        ops = tuple(op for block in blocks for op in block.ops)
        return Head(blocks[0].entry, ops, blocks[-1].exit) if blocks else None


def trace(model: nn.Module, input_shape: Shape) -> Chain:
    """Read ``model``, in eval mode, for images of ``input_shape`` (C, H, W).

    :mod:`mpicoded.runtime.check` compares, as torch.fx does not see all. Raises ModelError if it
    cannot follow the model, or the model does not take this input, or does not take and return one
    tensor.
    """
    model.eval()
    fx_graph = record(model, input_shape)
    ops = {node.name: to_op(model, node, fx_graph) for node in fx_graph.nodes}
    pieces, rest, limit = _pieces(fx_graph, ops)
    paths = {node.name: path(node) for node in fx_graph.nodes}
    blocks = _blocks(pieces, fx_graph.entry, paths)
    head_entry = blocks[-1].exit if blocks else fx_graph.entry
    head = Head(head_entry, tuple(rest), fx_graph.exit)
    names = [fx_graph.entry, *ops]
    maps = {n: v for n in names if isinstance(v := fx_graph.values[n], Tensor)}
    shapes = {name: tuple(value.shape[1:]) for name, value in maps.items()}
    return Chain(blocks, head, input_shape, shapes[fx_graph.exit], shapes, limit, model, paths)


def whole_network(chain: Chain) -> Head:
    """Return the network as one piece, for a single device or for units that are images."""
    return chain.head_after(-1)


def cuts(ops: Sequence[Op], entry: str, exit_: str) -> Iterator[int]:
    """Yield how many operations precede each place where one value alone is alive."""
    last_use = {name: i for i, op in enumerate(ops) for name in op.inputs} | {exit_: len(ops)}
    alive = {entry}
    for i, op in enumerate(ops):
        alive = {name for name in (*alive, op.name) if last_use.get(name, -1) > i}
        if alive == {op.name}:
            yield i + 1


def _pieces(graph: FxGraph, ops: dict[str, tuple[Op, str]]) -> tuple[list[list[Op]], list[Op], str]:
    """Cut the operations wherever one value alone is alive; stop where a piece cannot be cut."""
    order, reasons = [op for op, _ in ops.values()], [reason for _, reason in ops.values()]
    stop = next((i for i, reason in enumerate(reasons) if reason), len(order))
    found = cuts(order, graph.entry, graph.exit)
    bounds = [0, *(place for place in found if place <= stop)]
    pieces = [order[a:b] for a, b in pairwise(bounds)]
    if stop == len(order):
        return pieces, [], "every block of the model can be cut"
    return pieces, order[bounds[-1] :], f"the head begins because {reasons[stop]}"


def _blocks(pieces: list[list[Op]], entry: str, paths: dict[str, str]) -> tuple[Block, ...]:
    """Join pieces without any window to the block before, what comes first and pads to the next."""
    groups: list[list[Op]] = []
    for piece in pieces:
        apart = groups and _has_window(piece) and _has_window(groups[-1])
        if groups and (not apart or isinstance(groups[-1][-1].layer, Pad)):
            groups[-1] += piece
        else:
            groups.append(list(piece))
    blocks: list[Block] = []
    for group in groups:
        windowed = [op for op in group if op.windows] or group
        joins = [op for op in group if len(op.inputs) > 1]
        named = [paths[op.name] for op in (*joins, *windowed)]
        name = _name(named, [block.name for block in blocks])
        blocks.append(Block(name, blocks[-1].exit if blocks else entry, tuple(group)))
    return tuple(blocks)


def _has_window(ops: Sequence[Op]) -> bool:
    return any(op.windows is not None for op in ops)


def _name(paths: Sequence[str], taken: Sequence[str]) -> str:
    """Return the prefix that paths share: of layer1.0.conv1 and layer1.0.conv2 layer1.0."""
    # a module that is used again gives pool, pool#2, pool#3
    parts = zip(*(path.split(".") for path in paths), strict=False)
    shared = ".".join(p[0] for p in takewhile(lambda p: len(set(p)) == 1, parts)) or paths[-1]
    count = sum(name.split("#")[0] == shared for name in taken)
    return f"{shared}#{count + 1}" if count else shared
