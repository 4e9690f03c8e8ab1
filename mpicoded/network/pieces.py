"""Programs for the parts of a traced network: one shard, a parity unit's window, all of it."""

from collections.abc import Sequence
from math import prod

from mpicoded.geometry import Box, Range
from mpicoded.network.graph import Chain
from mpicoded.network.linear import Axes
from mpicoded.network.ops import Op
from mpicoded.network.program import Program, Sizes, compile_piece


def stage_ops(chain: Chain, first: int, last: int) -> tuple[Op, ...]:
    """Return the operations of blocks ``first`` to ``last``."""
    return tuple(op for block in chain.blocks[first : last + 1] for op in block.ops)


def shard_program(
    chain: Chain, first: int, last: int, writes: Box, unbounded: Axes = (False, False)
) -> Program:
    """Return the program of the box ``writes`` of a stage's map, without ``unbounded`` borders."""
    sizes = sizes_of(chain, unbounded)
    return compile_piece(stage_ops(chain, first, last), chain.blocks[first].entry, sizes, writes)


def op_program(chain: Chain, entry: str, ops: Sequence[Op]) -> Program:
    """Return the program of operations, named as values of the chain are, on whole maps."""
    return compile_piece(ops, entry, sizes_of(chain), whole_box(chain.shapes[ops[-1].name]))


def sizes_of(chain: Chain, unbounded: Axes = (False, False)) -> dict[str, Sizes]:
    """Return rows and columns of every value; None along ``unbounded`` axes."""
    sizes: dict[str, Sizes] = {}
    for name, shape in chain.shapes.items():
        rows, cols = shape[-2:] if len(shape) >= 2 else (1, 1)
        sizes[name] = (None if unbounded[0] else rows, None if unbounded[1] else cols)
    return sizes


def whole_flops(chain: Chain, ops: Sequence[Op]) -> int:
    """Return the FLOPs of the convolutions and dense layers among ``ops`` for one image."""
    shapes = [chain.shapes.get(op.name, ()) for op in ops]
    # positions: rows x columns of a map (C, H, W), all but the features of (…, features)
    areas = [prod(shape[1:] if len(shape) == 3 else shape[:-1]) for shape in shapes]
    return sum(op.flops(area) for op, area in zip(ops, areas, strict=True))


def whole_box(shape: tuple[int, ...]) -> Box:
    """Return the box of a whole map (C, H, W); of anything else, one position."""
    height, width = shape[1:] if len(shape) == 3 else (1, 1)
    return Box(Range(0, height), Range(0, width))
