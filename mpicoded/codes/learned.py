"""The learned code for shards: a small convolutional encoder and a decoder that fills only holes.

The learning-based coded computation of Kosaian et al. (arXiv 1806.01259; IEEE JSAIT 1(1), 2020),
for units that are pieces of one map (as Wang et al., ICDCSW 2024), with another pair of networks.

    windows       0  1  2  3          of the map, with halos, by the data units
    the map       |. o|o .|. o|. .|   laid side by side again, halos counted once
    encoder           |o o . o|       a convolution whose stride squeezes the map into one window,
                                      then a 1x1 convolution: r views of the *whole* map
    parity            |x x x x|       a worker runs the base model's own stage on each

    outputs       |y|y|0|y|           in their places; 0 where missing
    mask          |1|1|0|1|           and a flag for each parity unit that arrived
    parity        |a|b|c|d|           a mixture of the parity outputs for each unit, weights its own
    decoder       |z|z|z|z|           two 3x3 convolutions over all of it
    answer        |y|y|z|y|           only holes are taken from the decoder (:meth:`Code.decode`)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.codes.code import Arrived, Code
from mpicoded.codes.request import CodeRequest
from mpicoded.errors import DataError, PlanError
from mpicoded.geometry import Box, Range
from mpicoded.plan import Stage

HIDDEN = (8, 8)  # channels of the encoder's and the decoder's hidden layer; oneDNN likes eights
REACH = 2  # positions that the decoder sees in each direction


class Encoder(nn.Module):
    """Windows (k, B, C, h, w) -> parity windows (r, B, C, h, w)."""

    def __init__(self, stage: Stage, r: int, hidden: int) -> None:
        super().__init__()
        self.r = r
        self.parts = _parts(stage)
        sizes = [sum(part.size for part in axis) for axis in self.parts]  # of the map they make
        window = [axis.size for axis in stage.windows[0]]
        stride = [-(-size // small) for size, small in zip(sizes, window, strict=True)]
        more = [s * small - size for s, small, size in zip(stride, window, sizes, strict=True)]
        self.pads = (more[1] // 2, more[1] - more[1] // 2, more[0] // 2, more[0] - more[0] // 2)
        channels = stage.input_shape[0]
        kernel = (stride[0] + 2, stride[1] + 2)
        self.squeeze = nn.Conv2d(channels, hidden, kernel, (stride[0], stride[1]), padding=1)
        self.mix = nn.Conv2d(hidden, r * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Make the parity windows."""
        whole = self.whole(x)  # (B, C, H, W)
        if any(self.pads):
            whole = F.pad(whole, self.pads)
        y: Tensor = self.mix(F.relu(self.squeeze(whole)))  # (B, r C, h, w)
        return y.reshape(len(y), self.r, -1, *y.shape[2:]).transpose(0, 1)  # (r, B, C, h, w)

    def whole(self, x: Tensor) -> Tensor:
        """Windows (k, B, C, h, w) -> the map that they were cut from, (B, C, H, W)."""
        rows, cols = self.parts
        units = x.unbind(0)
        strips = []
        for i, row in enumerate(rows):
            line = units[i * len(cols) : (i + 1) * len(cols)]
            parts = [
                unit[:, :, row.start : row.stop, col.start : col.stop]
                for unit, col in zip(line, cols, strict=True)
            ]
            strips.append(torch.cat(parts, 3))
        return torch.cat(strips, 2) if len(strips) > 1 else strips[0]


class Decoder(nn.Module):
    """Unit outputs (n, B, C, h, w), zero where missing -> data outputs (k, B, C, h, w)."""

    owned: Tensor

    def __init__(self, stage: Stage, r: int, hidden: int) -> None:
        super().__init__()
        self.grid = stage.grid
        self.k = len(stage.shards)
        channels = stage.output_shape[0]
        inputs, mixed = self.k * r * channels, self.k * hidden
        self.spread = nn.Conv2d(inputs, mixed, 1, groups=self.k)  # of all parities, for each unit
        self.look = nn.Conv2d(channels + 1 + r, hidden, 3, padding=1)
        self.fill = nn.Conv2d(hidden, channels, 3, padding=1)
        self.register_buffer("owned", owned(stage), persistent=False)

    def forward(self, y: Tensor, here: Tensor) -> Tensor:
        """Fill; ``here`` (B, n) or (1, n) is 1 where a unit arrived and 0 where not."""
        return self.pick(self._work_out(*self._seen(y, here)))

    def holes(self, y: Tensor, here: Tensor, missing: Sequence[int]) -> Tensor:
        """As :meth:`forward`, for the units ``missing`` alone; the others are zero."""
        seen = self._seen(y, here)
        own = [self._box(unit, *y.shape[-2:]) for unit in missing]
        near = [_around(box, *seen[0].shape[-2:]) for box in own]
        if (all_ := _hull(near)).area <= sum(box.area for box in near):
            near = [all_] * len(own)  # narrow units: together is less work
        filled = {box: self._work_out(*(_crop(each, box) for each in seen)) for box in set(near)}
        result = torch.zeros_like(y[: self.k])
        for unit, box, outer in zip(missing, own, near, strict=True):
            rows, cols = (part.inside(whole) for part, whole in zip(box, outer, strict=True))
            result[unit] = filled[outer][:, :, rows, cols]
        return result

    def _box(self, unit: int, rows: int, cols: int) -> Box:
        """Return where a unit lies in the map of units, each ``rows`` times ``cols``."""
        down, across = divmod(unit, self.grid[1])
        return Box(Range(down * rows, (down + 1) * rows), Range(across * cols, (across + 1) * cols))

    def _seen(self, y: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the outputs in their places, the flags and the mixed parities: (B, …, H, W)."""
        k, (_, batch, _, height, width) = self.k, y.shape
        flags = here[:, k:, None, None].expand(batch, -1, *self._size(height, width))
        mask = here[:, :k].T[..., None, None, None] * self.owned  # (k, B or 1, 1, h, w)
        mask = self.lay(mask.expand(k, batch, 1, height, width))
        return self.lay(y[:k]), torch.cat((mask, flags), 1), self._parities(y[k:])

    def _work_out(self, outputs: Tensor, flags: Tensor, parities: Tensor) -> Tensor:
        """(B, C, h, w), (B, 1 + r, h, w), (B, hidden, h, w) -> (B, C, h, w)."""
        weight, channels = self.look.weight, outputs.shape[1]
        x = F.conv2d(outputs, weight[:, :channels], self.look.bias, padding=1)
        x = x + F.conv2d(flags, weight[:, channels:], padding=1)  # apart, to keep to eights
        y: Tensor = self.fill(F.relu(x + parities))
        return y

    def lay(self, y: Tensor) -> Tensor:
        """Units (k, B, C, h, w) -> their map (B, C, rows h, cols w)."""
        if self.grid[0] == 1:
            return torch.cat(y.unbind(0), 3)
        y = y.reshape(*self.grid, *y.shape[1:])  # (rows, cols, B, C, h, w)
        return y.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)

    def pick(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> its units (k, B, C, h, w)."""
        (batch, channels, height, width), (rows, cols) = x.shape, self.grid
        x = x.reshape(batch, channels, rows, height // rows, cols, width // cols)
        return x.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)

    def _size(self, height: int, width: int) -> tuple[int, int]:
        return self.grid[0] * height, self.grid[1] * width

    def _parities(self, p: Tensor) -> Tensor:
        """Parity outputs (r, B, C, h, w) -> each unit's mixture, stretched: (B, hidden, H, W)."""
        (height, width), (rows, cols) = p.shape[-2:], self.grid
        p = p.transpose(0, 1).flatten(1, 2)  # (B, r C, h, w)
        mixed = F.conv2d(p, self.spread.weight, self.spread.bias)  # (B, k hidden, h, w)
        mixed = F.interpolate(mixed, size=self._size(height, width))
        mixed = mixed.reshape(len(p), rows, cols, -1, rows, height, cols, width)
        own = mixed.diagonal(0, 1, 4).diagonal(0, 1, 4)  # (B, hidden, h, w, rows, cols)
        return own.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


class Learned(Code):
    """Approximate: r parity units that help a decoder to fill in any r lost ones."""

    name = "learned"

    def __init__(self, k: int, r: int, stage: Stage, hidden: tuple[int, int] = HIDDEN) -> None:
        super().__init__(k, r)
        self.stage = stage
        self.hidden = hidden
        self.encoder = Encoder(stage, r, hidden[0])
        self.decoder = Decoder(stage, r, hidden[1])
        self.networks = nn.ModuleDict({"encoder": self.encoder, "decoder": self.decoder})

    def parity(self, x: Tensor) -> Tensor:
        """Windows (k, B, C, h, w) -> (r, B, C, h, w)."""
        y: Tensor = self.encoder(x)
        return y

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, B, C, h, w), zero where missing -> (k, B, C, h, w)."""
        here = torch.from_numpy(arrived).to(y.dtype)[None]  # (1, n)
        return self.decoder.holes(y, here, np.flatnonzero(~arrived[: self.k]).tolist())

    def about(self, base: str) -> dict[str, str]:
        """Return what a weights file has to say of itself; ``base`` names the base model."""
        return _about(self.k, self.r, self.stage, self.hidden) | {"base": base}


def build(request: CodeRequest) -> Learned:
    """Return the code, with trained weights or, without any, freshly made for training.

    ``request.about`` may say "hidden" ("3 7": channels of encoder and decoder), and "seed" of a
    fresh code.

    Raises
    ------
    PlanError
        If the units are images or there is no parity unit.
    DataError
        If the weights belong to another code, stage or model.
    """
    stage = request.stage
    if stage.by_images:
        raise PlanError(
            "the learned code works on shards of one image, and the units of this plan are images: "
            'use split = "width", "height" or "tiles", or the code "replication"'
        )
    if request.r < 1:
        raise PlanError(f'the learned code needs r >= 1, got r = {request.r}: use code "uncoded"')
    hidden = _hidden(request.about.get("hidden", _words(HIDDEN)))
    if request.weights is not None:
        _check(request.about, _about(request.k, request.r, stage, hidden))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(request.about.get("seed", 0)))
        code = Learned(request.k, request.r, stage, hidden)
    if request.weights is not None:
        _load(code, request.weights)
    return code


def owned(stage: Stage) -> Tensor:
    """Return 1 where a data unit's common-shape output is its own, (k, 1, 1, h, w), else 0."""
    mask = torch.zeros(len(stage.shards), 1, 1, *stage.unit_output)
    for i, shard in enumerate(stage.shards):
        mask[i, :, :, : shard.writes.rows.size, : shard.writes.cols.size] = 1
    return mask


def _around(box: Box, height: int, width: int) -> Box:
    """Return the box and all that the decoder sees to fill it."""
    rows, cols = (
        Range(max(0, part.start - REACH), min(size, part.stop + REACH))
        for part, size in zip(box, (height, width), strict=True)
    )
    return Box(rows, cols)


def _hull(boxes: Sequence[Box]) -> Box:
    rows, cols = (
        Range(min(r.start for r in axis), max(r.stop for r in axis))
        for axis in zip(*boxes, strict=True)
    )
    return Box(rows, cols)


def _crop(x: Tensor, box: Box) -> Tensor:
    return x[:, :, box.rows.start : box.rows.stop, box.cols.start : box.cols.stop]


def _parts(stage: Stage) -> tuple[tuple[Range, ...], tuple[Range, ...]]:
    """Return which rows and columns of each window to lay side by side, within the window.

    Every window gives what lies before the next one's start; the last gives all it has. What lies
    outside the map is left out.
    """
    rows = [box.rows for box in stage.windows[:: stage.grid[1]]]
    cols = [box.cols for box in stage.windows[: stage.grid[1]]]
    height, width = stage.input_shape[1:]
    return _parts_of_axis(rows, height), _parts_of_axis(cols, width)


def _parts_of_axis(windows: list[Range], size: int) -> tuple[Range, ...]:
    ends = [w.start for w in windows[1:]] + [size]
    parts = []
    for window, end in zip(windows, ends, strict=True):
        start = max(window.start, 0)
        stop = max(start, min(window.stop, end, size))
        parts.append(Range(start, stop).shift(-window.start))
    return tuple(parts)


def _about(k: int, r: int, stage: Stage, hidden: tuple[int, int]) -> dict[str, str]:
    window = [axis.size for axis in stage.windows[0]]
    return {
        "code": Learned.name,
        "k": str(k),
        "r": str(r),
        "grid": _words(stage.grid),
        "window": _words((stage.input_shape[0], *window)),
        "unit_output": _words((stage.output_shape[0], *stage.unit_output)),
        "input": _words(stage.input_shape),
        "output": _words(stage.output_shape),
        "hidden": _words(hidden),
    }


def _words(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, numbers))


def _hidden(text: str) -> tuple[int, int]:
    words = text.split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) > 0 for word in words):
        raise DataError(
            f"hidden = {text!r} of the learned code: give two positive numbers, the channels of "
            "the encoder and of the decoder"
        )
    return int(words[0]), int(words[1])


def _check(have: Mapping[str, str], want: Mapping[str, str]) -> None:
    """Compare what the file says of itself with what the job needs."""
    if "code" not in have:
        raise DataError(
            "these are no weights of a learned code: name the code's file in [code] (the base "
            "model's belongs in [model]), or train one: python -m mpicoded train JOB"
        )
    wrong = [
        f"{key} = {have.get(key, 'not said')} where the job needs {value}"
        for key, value in want.items()
        if have.get(key) != value
    ]
    if wrong:
        raise DataError(
            f"the code's weights do not fit the job: the file has {'; '.join(wrong)}. Name weights "
            "trained for this plan in [code], or train them: python -m mpicoded train JOB"
        )


def _load(code: Learned, weights: Mapping[str, Tensor]) -> None:
    own = code.networks.state_dict()
    shapes = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = [
        f"{key} {shapes.get(key, 'missing')} where the code has {tuple(value.shape)}"
        for key, value in own.items()
        if shapes.get(key) != tuple(value.shape)
    ] + [f"{key} {shape}, unknown" for key, shape in shapes.items() if key not in own]
    if wrong:
        raise DataError(
            f"the code's weights file is damaged, it holds {'; '.join(wrong[:3])}"
            f"{' …' * (len(wrong) > 3)}. Copy it again, or train: python -m mpicoded train JOB"
        )
    code.networks.load_state_dict(dict(weights))
    code.networks.eval().requires_grad_(False)
