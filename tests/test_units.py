"""From a map to units and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpicoded.network.graph import Chain, trace
from mpicoded.plan import Stage
from networks import plan_of, programs
from units import cut, stack, stitch, trim, windows

SPLITS = {
    "height": {"split": "height", "k": 4},
    "width": {"split": "width", "k": 5},
    "one": {"split": "width", "k": 1},
    "every column": {"split": "width", "k": 9},
    "weighted": {"split": "width", "k": 3, "weights": (1.0, 4.0, 2.0)},
    "tiles": {"split": "tiles", "k": 6, "tiles": (2, 3)},
}


@pytest.fixture(scope="module")
def chain() -> Chain:
    layers = [nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, 1, 1)]
    return trace(nn.Sequential(*layers), (2, 17, 19))


@pytest.fixture(params=SPLITS)
def stage(chain: Chain, request: pytest.FixtureRequest) -> Stage:
    (made,) = plan_of(chain, r=2, **SPLITS[request.param]).stages
    return made


@pytest.fixture
def x() -> Tensor:
    return torch.arange(2.0 * 2 * 17 * 19).reshape(2, 2, 17, 19) + 1


def test_cut_gives_views_of_what_is_read(stage: Stage, x: Tensor) -> None:
    for piece, shard in zip(cut(x, stage), stage.shards, strict=True):
        rows, cols = shard.reads
        assert torch.equal(piece, x[:, :, slice(*rows), slice(*cols)])
        assert piece.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def test_windows_hold_the_map_and_zeros(stage: Stage, x: Tensor) -> None:
    made = windows(x, stage)
    for window, (rows, cols) in zip(made, stage.windows, strict=True):
        for i, row in enumerate(range(*rows)):
            for j, col in enumerate(range(*cols)):
                inside = 0 <= row < 17 and 0 <= col < 19
                expected = x[:, :, row, col] if inside else torch.zeros(2, 2)
                assert torch.equal(window[:, :, i, j], expected)


def test_a_window_holds_what_its_unit_reads(stage: Stage, x: Tensor) -> None:
    for window, reads in zip(stage.windows, (s.reads for s in stage.shards), strict=True):
        for wide, narrow in zip(window, reads, strict=True):
            assert wide.start <= narrow.start and narrow.stop <= wide.stop


def test_stack_trim_stitch(chain: Chain, stage: Stage, x: Tensor) -> None:
    outputs = [p(u) for p, u in zip(programs(chain, stage), cut(x, stage), strict=True)]
    lost: list[Tensor | None] = [*outputs, None, None]
    lost[0] = outputs[0] if len(outputs) == 1 else None
    stacked = stack(lost, stage)
    assert stacked.shape == (len(lost), 2, 4, *stage.unit_output)
    for i, y in enumerate(lost):
        if y is None:
            assert not stacked[i].any()
        else:
            assert torch.equal(trim(stacked[i], stage, i), y)
            assert torch.isclose(stacked[i].sum(), y.sum(), rtol=1e-3)
    whole = stitch(outputs, stage)
    assert whole.shape == (2, *stage.output_shape)
    for y, shard in zip(outputs, stage.shards, strict=True):
        rows, cols = shard.writes
        assert torch.equal(whole[:, :, slice(*rows), slice(*cols)], y)


def test_images(chain: Chain) -> None:
    (stage,) = plan_of(chain, "batch", 3, 1, batch=6).stages
    x = torch.rand(6, 2, 17, 19)
    units = cut(x, stage)
    assert [u.shape[0] for u in units] == [2, 2, 2] and torch.equal(torch.cat(units), x)
    assert torch.equal(windows(x, stage), torch.stack(units))
    outputs = [torch.rand(2, *stage.output_shape) for _ in range(3)]
    assert torch.equal(stitch(outputs, stage), torch.cat(outputs))
    wider = [torch.nn.functional.pad(y, (0, 3)) for y in outputs]  # as a parity network may be
    assert torch.equal(stitch(wider, stage), torch.cat(outputs))
    stacked = stack([outputs[0], None, outputs[1], None], stage)
    assert stacked.shape == (4, 2, *stage.output_shape) and not stacked[1].any()
    assert torch.equal(trim(stacked[2], stage, 2), outputs[1])
