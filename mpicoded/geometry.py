"""Ranges of rows or columns: back-mapping through layers, halos, splits. Integers only.

All ranges are half-open. A layer reads, for its outputs [a, b) and *before* clipping, the inputs

    [a*s - p,  (b-1)*s - p + d*(k-1) + 1)

and what lies outside [0, size) is that layer's own padding, on this piece only. Interior cuts get
no padding; every layer is clipped by itself, from the last to the first.

Formulas: Zhou et al., AOFL (SEC 2019) and Zhao et al., DeepThings (TCAD 2018), in the general form
for stride, dilation, even kernels and uneven padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from mpicoded.errors import PlanError


class Range(NamedTuple):
    """Positions [start, stop) on one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.stop - self.start

    def shift(self, by: int) -> Range:
        """Return the range moved by ``by`` positions."""
        return Range(self.start + by, self.stop + by)

    def inside(self, outer: Range) -> slice:
        """Return the slice that cuts this range out of an array that holds ``outer``."""
        return slice(self.start - outer.start, self.stop - outer.start)


class Box(NamedTuple):
    """A rectangle of a map: a range of rows and a range of columns."""

    rows: Range
    cols: Range

    @classmethod
    def of(cls, rows: int, cols: int) -> Box:
        """Return the box of this size at row 0 and column 0."""
        return cls(Range(0, rows), Range(0, cols))

    @property
    def area(self) -> int:
        """Number of positions."""
        return self.rows.size * self.cols.size

    def meet(self, other: Box) -> Box | None:
        """Return the box that both have in common; None if there is none."""
        (top, bottom), (left, right) = self
        (high, low), (first, last) = other
        top, bottom, left, right = (
            max(top, high),
            min(bottom, low),
            max(left, first),
            min(right, last),
        )
        return (
            Box(Range(top, bottom), Range(left, right)) if top < bottom and left < right else None
        )

    def __str__(self) -> str:
        return ",".join(f"{r.start}:{r.stop}" for r in self)


@dataclass(frozen=True)
class Window:
    """Kernel of a convolution or pooling on one axis; padding may differ before and after."""

    kernel: int
    stride: int = 1
    before: int = 0
    after: int = 0
    dilation: int = 1

    @property
    def span(self) -> int:
        """Positions from the first to the last tap of the kernel."""
        return self.dilation * (self.kernel - 1) + 1

    def reads(self, out: Range) -> Range:
        """Return the input range of the outputs ``out``, before clipping."""
        first = out.start * self.stride - self.before
        return Range(first, first + (out.size - 1) * self.stride + self.span)


class Clip(NamedTuple):
    """A range cut to the map, and how much of it lay before and after the map."""

    range: Range
    before: int
    after: int


def clip(wanted: Range, size: int | None) -> Clip:
    """Cut a range to [0, size); None: no borders. All padding: empty, at the nearer border."""
    if size is None:
        return Clip(wanted, 0, 0)
    start = min(max(wanted.start, 0), size)
    stop = max(min(wanted.stop, size), start)
    before = max(0, min(0, wanted.stop) - wanted.start)
    return Clip(Range(start, stop), before, wanted.size - before - (stop - start))


def hull(ranges: Iterable[Range]) -> Range:
    """Return the smallest range that holds all of ``ranges``."""
    starts, stops = zip(*ranges, strict=True)
    return Range(min(starts), max(stops))


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all of ``boxes``."""
    rows, cols = zip(*boxes, strict=True)
    return Box(hull(rows), hull(cols))


def borders_first(whole: Box, read: Sequence[Box]) -> tuple[Box, ...]:
    """Cut a box into strips: those that hold the boxes ``read`` elsewhere first, then the rest.

    >>> borders_first(rows 0:7, rows [0:1, 6:7])  # rows 0:1, 6:7, 1:6
    """
    axis = next((a for a in (0, 1) if all(box[1 - a] == whole[1 - a] for box in read)), None)
    if axis is None or not read:
        return (whole,)
    early = list[Range]()
    for part in sorted(box[axis] for box in read):
        if early and part.start < early[-1].stop:
            part = hull((early.pop(), part))
        early.append(part)
    starts = [whole[axis].start, *(part.stop for part in early)]
    stops = [*(part.start for part in early), whole[axis].stop]
    rest = [Range(*gap) for gap in zip(starts, stops, strict=True) if gap[0] < gap[1]]
    return tuple(Box(*((p, whole[1]) if axis == 0 else (whole[0], p))) for p in [*early, *rest])


def split(size: int, parts: int, axis: str = "axis") -> tuple[Range, ...]:
    """Cut [0, size) into ``parts`` ranges: 8 into 3 is 3, 3 and 2."""
    check_parts(size, parts, axis)
    short, longer = divmod(size, parts)
    return _ranges([short + (i < longer) for i in range(parts)])


def split_alike(size: int, parts: int, axis: str) -> tuple[Range, ...]:
    """Cut [0, size) into ``parts`` ranges of one size, the smallest that covers all.

    They overlap where the parts do not divide the size.

    >>> split_alike(10, 4, "width")  # 0:3, 2:5, 4:7, 7:10
    """
    check_parts(size, parts, axis)
    width, gaps = -(-size // parts), max(1, parts - 1)
    starts = [i * (size - width) // gaps for i in range(parts)]
    return tuple(Range(start, start + width) for start in starts)


def split_weighted(size: int, weights: Sequence[float], axis: str = "axis") -> tuple[Range, ...]:
    """Cut [0, size) in proportion to ``weights``, each part at least 1, by largest remainder."""
    check_parts(size, len(weights), axis)
    if not all(0 < w < inf for w in weights):
        raise PlanError(
            f"weights {list(weights)}: every weight must be positive and finite; leave out the "
            "parts that are to get nothing"
        )
    ideal = [size * w / sum(weights) for w in weights]
    sizes = [max(1, int(x)) for x in ideal]
    while sum(sizes) != size:  # ties are broken by the position
        step = 1 if sum(sizes) < size else -1
        able = [i for i in range(len(sizes)) if step > 0 or sizes[i] > 1]
        sizes[max(able, key=lambda i: (step * (ideal[i] - sizes[i]), -i))] += step
    return _ranges(sizes)


def check_parts(size: int, parts: int, axis: str) -> None:
    """Raise PlanError unless ``parts`` shards can each get a position of the axis."""
    if not 1 <= parts <= size:
        raise PlanError(
            f"cannot cut the {axis}, {size} long, into k = {parts} shards: use k from 1 to {size}, "
            "end the stage at an earlier block (its map is larger), or cut into tiles"
        )


def _ranges(sizes: Sequence[int]) -> tuple[Range, ...]:
    stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return tuple(Range(stop - size, stop) for size, stop in zip(sizes, stops, strict=True))
