"""The decoder for shards: fill a hole from the outputs around it, and nothing else.

look     a 3x3 convolution of outputs and mask, where a hole is: a hole costs its own size
parity   each position's mixture of the parity outputs is added
point    then layers that look at one position each
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.codes.code import Arrived
from mpicoded.codes.learned_parity import steps
from mpicoded.plan import Stage
from mpicoded.split import SPLITS

HALO = 1  # positions around a hole that are looked at


class Decoder(nn.Module):
    """Unit outputs (n, B, C, h, w), zero where missing -> data outputs (k, B, C, h, w).

    ``hidden`` are the channels of the layers between. Flags are added by layers of their own, so
    that all others have the channels of the stage or of ``hidden``: multiples of eight are fast.
    """

    unit_at: Tensor

    def __init__(self, stage: Stage, r: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.stage, self.k, self.step = stage, len(stage.shards), steps(stage)
        channels, *self.sides = stage.output_shape
        spots = self.step[0] * self.step[1]
        kernel = 2 * HALO + 1
        self.spread = nn.Conv2d(r * channels, hidden[0] * spots, 1, bias=False)
        self.flags = nn.Linear(r, hidden[0], bias=False)
        self.look = nn.Conv2d(channels, hidden[0], kernel)
        self.mask = nn.Conv2d(1, hidden[0], kernel, bias=False)
        widths = [*hidden, channels]
        self.point = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(widths))
        self.register_buffer("unit_at", _unit_at(stage), persistent=False)
        self._known: dict[bytes, Tensor] = {}  # flags of each pattern

    def forward(self, y: Tensor, arrived: Tensor) -> Tensor:
        """Fill everywhere; ``arrived`` (B, n) or (1, n) is 1 where a unit arrived, else 0."""
        rows, cols = self.sides
        context = self._parities(y[self.k :]) + self._flags(arrived)
        seen = self._bordered(self.lay(y[: self.k]))[:, :, : rows + 2 * HALO, : cols + 2 * HALO]
        return self.pick(self._fill(seen, context[:, :, :rows, :cols]))

    def holes(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Fill the holes of one pattern and nothing else, with the numbers of :meth:`forward`."""
        flags = self._known.get(arrived.tobytes())
        if flags is None:
            flags = self._flags(torch.from_numpy(arrived).to(y)[None])
            self._known[arrived.tobytes()] = flags.detach()
        context, seen = self._parities(y[self.k :]) + flags, self._bordered(self.lay(y[: self.k]))
        missing = np.flatnonzero(~arrived[: self.k]).tolist()
        z = self._fill(
            torch.cat([self._at(seen, unit, HALO) for unit in missing]),
            torch.cat([self._at(context, unit, 0) for unit in missing]),
        )  # (holes B, C, h, w)
        filled = torch.zeros_like(y[: self.k])
        for unit, part in zip(missing, z.chunk(len(missing)), strict=True):
            filled[unit] = part
        return filled

    def train(self, mode: bool = True) -> Self:
        """Forget the flags of other weights."""
        self._known.clear()
        return super().train(mode)

    def lay(self, y: Tensor) -> Tensor:
        """Units (k, B, C, h, w) -> their map (B, C, H, W)."""
        return SPLITS[self.stage.split].stitch(list(y), self.stage)

    def pick(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> its units (k, B, C, h, w), zero where a small one has nothing."""
        height, width = self.stage.unit_output
        parts = []
        for (top, bottom), (left, right) in (shard.writes for shard in self.stage.shards):
            more = (0, width - (right - left), 0, height - (bottom - top))
            parts.append(F.pad(x[:, :, top:bottom, left:right], more))
        return torch.stack(parts)

    def _bordered(self, x: Tensor) -> Tensor:
        """Give a map a border, as far as the window of a unit smaller than the largest reaches."""
        height, width = self.stage.unit_output
        return F.pad(x, (HALO, HALO + width - 1, HALO, HALO + height - 1))

    def _flags(self, arrived: Tensor) -> Tensor:
        """Return the features of the pattern alone, (B or 1, hidden, H, W) or more."""
        mask = arrived[:, : self.k][:, self.unit_at].unsqueeze(1)  # (B or 1, 1, H, W)
        parity: Tensor = self.flags(arrived[:, self.k :])  # (B or 1, hidden)
        flags: Tensor = self.mask(self._bordered(mask)) + parity[..., None, None]
        return flags

    def _fill(self, seen: Tensor, context: Tensor) -> Tensor:
        """(B, C, h + 2, w + 2), (B, hidden, h, w) -> (B, C, h, w)."""
        x: Tensor = self.look(seen) + context
        for layer in self.point:
            x = layer(F.relu(x))
        return x

    def _parities(self, p: Tensor) -> Tensor:
        """Parity outputs (r, B, C, h, w) -> (B, hidden, H, W) or more, stretched over the map."""
        x = self.spread(p.transpose(0, 1).flatten(1, 2))  # (B, hidden * spots, h, w)
        (rows, cols), (height, width) = self.step, x.shape[2:]
        x = x.reshape(len(x), -1, rows, cols, height, width).permute(0, 1, 4, 2, 5, 3)
        x = x.reshape(len(x), -1, height * rows, width * cols)
        x = x[:, :, : self.sides[0], : self.sides[1]]
        rows, cols = self.stage.unit_output
        return F.pad(x, (0, cols - 1, 0, rows - 1))

    def _at(self, x: Tensor, unit: int, halo: int) -> Tensor:
        """Cut out a unit's place, with a border, of a map that has that border."""
        (top, _), (left, _) = self.stage.shards[unit].writes
        height, width = self.stage.unit_output
        return x[:, :, top : top + height + 2 * halo, left : left + width + 2 * halo]


def _unit_at(stage: Stage) -> Tensor:
    """Return the unit that owns each position of the map, (H, W)."""
    result = torch.zeros(stage.output_shape[1:], dtype=torch.long)
    for i, shard in enumerate(stage.shards):
        (top, bottom), (left, right) = shard.writes
        result[top:bottom, left:right] = i
    return result
