"""Programs for the parts of a traced network: one shard, a parity unit's window, all of it."""

from collections.abc import Mapping, Sequence
from math import prod

from mpicoded.geometry import Box, Range
from mpicoded.network.graph import Chain
from mpicoded.network.linear import Axes
from mpicoded.network.ops import Op
from mpicoded.network.program import Program, Sizes, compile_piece
from mpicoded.plan import Plan


def stage_ops(chain: Chain, first: int, last: int) -> tuple[Op, ...]:
    """Return the operations of blocks ``first`` to ``last``."""
    return tuple(op for block in chain.blocks[first : last + 1] for op in block.ops)


def shard_program(
    chain: Chain,
    first: int,
    last: int,
    writes: Box,
    unbounded: Axes = (False, False),
    given: Box | None = None,
    also: Mapping[str, Box] | None = None,
) -> Program:
    """Return the program of the box ``writes`` of a stage's map, without ``unbounded`` borders.

    Its input is the box ``given`` (default: the least), ``also`` are boxes of further values.
    """
    ops, entry = stage_ops(chain, first, last), chain.blocks[first].entry
    return compile_piece(ops, entry, sizes_of(chain, unbounded), writes, also, given)


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


def halo_program(chain: Chain, plan: Plan, unit: int, boxes: Mapping[int, Box]) -> Program:
    """Return the program of a box of each of some stages' maps, from all that a unit keeps.

    The stages are of one segment, whose input it is.
    """
    first = plan.stages[max(seg.start for seg in plan.segments if seg.start <= min(boxes))]
    others = {plan.stages[s].exit: box for s, box in boxes.items()}
    last = plan.stages[max(boxes)]
    writes, given = others.pop(last.exit), first.shards[unit].reads
    return shard_program(chain, first.first, last.last, writes, given=given, also=others)
