"""Ranges on an axis: the published back-mapping vectors, clipping, splits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpicoded.errors import PlanError
from mpicoded.geometry import (
    Box,
    Range,
    Window,
    around,
    clip,
    hull,
    split,
    split_weighted,
)

Pads = tuple[int, int]
CONV3, POOL2 = Window(3, 1, 1, 1), Window(2, 2)
VGG = [
    *[CONV3, CONV3, POOL2] * 2,
    *[CONV3, CONV3, CONV3, POOL2] * 3,
]


def sizes(windows: list[Window], size: int) -> list[int]:
    """Return the length of every layer's input, then of the output (floor rule)."""
    result = [size]
    for w in windows:
        result.append((result[-1] + w.before + w.after - w.span) // w.stride + 1)
    return result


def back(windows: list[Window], size: int, out: Range) -> tuple[Range, list[Pads]]:
    """Return what of the input the outputs ``out`` read, and every layer's own padding."""
    pads: list[Pads] = []
    for window, length in zip(reversed(windows), reversed(sizes(windows, size)[:-1]), strict=True):
        got = clip(window.reads(out), length)
        out = got.range
        pads.insert(0, (got.before, got.after))
    return out, pads


# coded-convolution.md section 1: stack, input size, k, then output range -> input range, pads.
VECTORS = {
    "VGG16 features": (VGG, 224, [
        ((0, 1), (0, 122), None), ((1, 2), (0, 154), None),
        ((0, 3), (0, 186), None), ((0, 4), (0, 218), None),
    ]),
    "two 3x3 s1 p1": ([CONV3, CONV3], 224, [
        ((0, 56), (0, 58), [(1, 0), (1, 0)]), ((56, 112), (54, 114), [(0, 0), (0, 0)]),
        ((112, 168), (110, 170), [(0, 0), (0, 0)]), ((168, 224), (166, 224), [(0, 1), (0, 1)]),
    ]),
    "3x3, 3x3, max-pool 2": ([CONV3, CONV3, POOL2], 112, [
        ((0, 14), (0, 30), [(1, 0), (1, 0), (0, 0)]), ((14, 28), (26, 58), None),
        ((28, 42), (54, 86), None), ((42, 56), (82, 112), [(0, 1), (0, 1), (0, 0)]),
    ]),
    "7x7 s2 p3, max-pool 3 s2 p1": ([Window(7, 2, 3, 3), Window(3, 2, 1, 1)], 224, [
        ((0, 14), (0, 58), [(3, 0), (1, 0)]), ((14, 28), (51, 114), None),
        ((28, 42), (107, 170), None), ((42, 56), (163, 224), [(0, 2), (0, 0)]),
    ]),
    "3x3 s2 p1, 3x3 s1 p1": ([Window(3, 2, 1, 1), CONV3], 15, [
        ((0, 3), (0, 8), [(1, 0), (1, 0)]), ((3, 6), (3, 14), None),
        ((6, 8), (9, 15), [(0, 1), (0, 1)]),
    ]),
    "3x3 p1, max-pool 2": ([CONV3, POOL2], 7, [
        ((0, 1), (0, 3), [(1, 0), (0, 0)]), ((1, 2), (1, 5), None),
        ((2, 3), (3, 7), [(0, 0), (0, 0)]),
    ]),
    "3x3 d2 p2": ([Window(3, 1, 2, 2, 2)], 20, [
        ((0, 10), (0, 12), [(2, 0)]), ((10, 20), (8, 20), [(0, 2)]),
    ]),
    "5x5, pool 2, 5x5, pool 2": ([Window(5), POOL2, Window(5), POOL2], 28, [
        ((0, 1), (0, 16), None), ((1, 2), (4, 20), None),
        ((2, 3), (8, 24), None), ((3, 4), (12, 28), None),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str) -> None:
    windows, size, rows = VECTORS[name]
    for out, wanted, pads in rows:
        got, got_pads = back(windows, size, Range(*out))
        assert got == wanted and pads in (None, got_pads)
    if name != "VGG16 features":
        assert [r[0] for r in rows] == list(split(sizes(windows, size)[-1], len(rows)))


def test_composite_of_vgg16() -> None:
    """R = 212, J = 32, P = 90: a far-off output [a, b) reads [32a - 90, 32(b - 1) - 90 + 212)."""
    out = Range(1000, 1003)
    for window in reversed(VGG):
        out = window.reads(out)
    assert out == (32 * 1000 - 90, 32 * 1002 - 90 + 212)


@given(
    st.builds(
        Window, st.integers(1, 7), st.integers(1, 3), st.integers(0, 9), st.integers(0, 9),
        st.integers(1, 2),
    ),
    st.integers(1, 30),
    st.data(),
)  # fmt: skip
def test_reads_by_brute_force(window: Window, size: int, data: st.DataObject) -> None:
    outputs = sizes([window], size)[1]
    if outputs < 1:
        return
    start = data.draw(st.integers(0, outputs - 1))
    out = Range(start, data.draw(st.integers(start + 1, outputs)))
    taps = [
        j * window.stride - window.before + t * window.dilation
        for j in range(*out) for t in range(window.kernel)
    ]  # fmt: skip
    assert window.reads(out) == (min(taps), max(taps) + 1)
    got = clip(window.reads(out), size)
    everything = range(min(taps), max(taps) + 1)
    assert list(range(*got.range)) == [i for i in everything if 0 <= i < size]
    assert got.before == sum(i < 0 for i in everything)
    assert got.after == sum(i >= size for i in everything)


def test_clip_of_what_lies_in_the_padding() -> None:
    assert clip(Range(-5, -2), 10) == (Range(0, 0), 3, 0)
    assert clip(Range(12, 14), 10) == (Range(10, 10), 0, 2)
    assert clip(Range(-2, 13), 10) == (Range(0, 10), 2, 3)
    assert clip(Range(-2, 13), None) == (Range(-2, 13), 0, 0)


def test_ranges() -> None:
    assert hull([Range(3, 5), Range(1, 2), Range(4, 9)]) == (1, 9)
    assert Range(2, 5).shift(-3) == (-1, 2)
    assert list(range(10, 20))[Range(13, 15).inside(Range(10, 20))] == [13, 14]


@given(st.integers(1, 60), st.data())
def test_split(size: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, size))
    ranges = split(size, parts)
    assert [i for r in ranges for i in range(*r)] == list(range(size))
    lengths = [r.size for r in ranges]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] - lengths[-1] <= 1
    assert split_weighted(size, [0.1] * parts) == ranges


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9), st.integers(9, 60))
def test_split_weighted(weights: list[float], size: int) -> None:
    ranges = split_weighted(size, weights)
    assert [i for r in ranges for i in range(*r)] == list(range(size))
    ideal = [size * w / sum(weights) for w in weights]
    assert all(r.size >= 1 for r in ranges)
    if min(ideal) >= 1:
        assert all(abs(r.size - x) < 1 + 1e-9 for r, x in zip(ranges, ideal, strict=True))


def test_split_weighted_by_largest_remainder() -> None:
    assert [r.size for r in split_weighted(10, [1, 2, 3])] == [2, 3, 5]
    assert [r.size for r in split_weighted(4, [100, 1, 1])] == [2, 1, 1]
    assert [r.size for r in split_weighted(7, [1, 1, 1])] == [3, 2, 2]


@pytest.mark.parametrize("parts", [0, 4, -1])
def test_too_many_parts(parts: int) -> None:
    with pytest.raises(PlanError, match=rf"the width, 3 long, into k = {parts} .* from 1 to 3"):
        split(3, parts, "width")


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), float("inf")])
def test_wrong_weights(wrong: float) -> None:
    with pytest.raises(PlanError, match="every weight must be positive and finite; leave out"):
        split_weighted(9, [1.0, wrong])
    with pytest.raises(PlanError, match="k = 4"):
        split_weighted(3, [1.0] * 4)


BOXES = st.builds(
    lambda top, left, rows, cols: Box(Range(top, top + rows), Range(left, left + cols)),
    *[st.integers(-4, 4)] * 2, *[st.integers(1, 4)] * 2,
)  # fmt: skip


def positions(box: Box | None) -> set[tuple[int, int]]:
    return {(i, j) for i in range(*box.rows) for j in range(*box.cols)} if box else set()


@given(BOXES, BOXES)
def test_boxes_meet_and_are_enclosed(a: Box, b: Box) -> None:
    assert positions(a.meet(b)) == positions(a) & positions(b)
    assert positions(around((a, b))) >= positions(a) | positions(b)
    assert around((a, b)).rows == hull((a.rows, b.rows)) and len(positions(a)) == a.area


def test_box_as_text() -> None:
    assert str(Box.of(2, 3)) == "0:2,0:3" and str(Box(Range(-1, 2), Range(3, 4))) == "-1:2,3:4"
