"""From a map to units and back: cut, coded windows, stack, stitch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mpicoded.geometry import Box
from mpicoded.plan import Stage


def cut(x: Tensor, stage: Stage) -> list[Tensor]:
    """Input map (B, C, H, W) -> the k exact inputs of the data units, as views."""
    if stage.by_images:
        return list(x.chunk(len(stage.shards)))  # k of (B/k, …)
    if stage.by_channels:
        return [x] * len(stage.shards)
    boxes = [shard.reads for shard in stage.shards]
    return [x[:, :, b.rows.start : b.rows.stop, b.cols.start : b.cols.stop] for b in boxes]


def windows(x: Tensor, stage: Stage) -> Tensor:
    """Input map (B, C, H, W) -> coded windows (k, B, C, h, w), zero outside the map."""
    if stage.by_images:
        return torch.stack(cut(x, stage))  # (k, B/k, …)
    height, width = x.shape[-2:]
    rows, cols = zip(*stage.windows, strict=True)
    top, left = max(0, -min(r.start for r in rows)), max(0, -min(c.start for c in cols))
    bottom = max(0, max(r.stop for r in rows) - height)
    right = max(0, max(c.stop for c in cols) - width)
    x = F.pad(x, (left, right, top, bottom))
    pieces = [
        x[:, :, r.start + top : r.stop + top, c.start + left : c.stop + left]
        for r, c in stage.windows
    ]
    return torch.stack(pieces)  # (k, B, C, h, w)


def stack(outputs: Sequence[Tensor | None], stage: Stage) -> Tensor:
    """Unit outputs, None where missing -> (n, B, C, h, w) in the common shape, zero elsewhere.

    Halves become float32, as codes work with them.
    """
    here = next(y for y in outputs if y is not None)
    shape: tuple[int, ...] = (len(here), *stage.unit_shape)
    if stage.by_images:  # a parity network may give more numbers than the base model
        shape = (*here.shape[:-1], max(y.shape[-1] for y in outputs if y is not None))
    dtype = torch.float32 if here.dtype == torch.float16 else here.dtype
    result = here.new_zeros((len(outputs), *shape), dtype=dtype)
    for i, y in enumerate(outputs):
        if y is not None:
            result[i][tuple(slice(n) for n in y.shape)] = y
    return result


def trim(y: Tensor, stage: Stage, unit: int) -> Tensor:
    """Common-shape output (B, C, h, w) of data unit ``unit`` -> the shard's own size."""
    if stage.by_images:
        return y[..., : stage.output_shape[-1]]
    if stage.by_channels:
        return y[:, : stage.channels(unit)]
    box = stage.shards[unit].writes
    return y[:, :, : box.rows.size, : box.cols.size]


def stitch(outputs: Sequence[Tensor], stage: Stage) -> Tensor:
    """The k data outputs -> the stage's output map (B, C, H, W)."""
    if stage.by_images:
        return torch.cat(list(outputs))
    if stage.by_channels:
        return torch.cat(list(outputs), 1)
    rows, cols = stage.grid
    kept = [_kept(y, stage.owned(unit)[0].box) for unit, y in enumerate(outputs)]
    strips = [torch.cat(kept[i * cols : (i + 1) * cols], 3) for i in range(rows)]
    return torch.cat(strips, 2)


def _kept(y: Tensor, owned: Box) -> Tensor:
    """Leave out what the next unit computes too: shards of one size may overlap."""
    return y[:, :, : owned.rows.size, : owned.cols.size]
