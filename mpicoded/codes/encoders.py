"""Encoders of parity models: k images become one of the same shape, for the parity worker.

    addition        weighted sums; P_0 = X_1 + … + X_k as published
    concatenation   each image made smaller and laid in its place of a grid
    packing         P = q_1 + L q_2 + L^2 q_3 + …,  q in 0 … L - 1,  L^k <= 2^24

The first two are those of parity models (Kosaian et al., SOSP 2019; reference "Learned and
approximate codes", section 3). Packing is ours: a float32 number is exact up to 2^24, and an 8-bit
pixel needs few of these bits: with k = 2 an image has 4,096 levels a number, with k = 4 64. So a
parity image holds k images at full resolution; on a wire that rounds it holds nothing.
"""

from abc import ABC, abstractmethod
from math import ceil, isqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.codes.generator import vandermonde
from mpicoded.network.ops import Call, Ref

EXACT = 2**24  # float32 holds every whole number up to this one


class ImageEncoder(nn.Module, ABC):
    """Makes the parity images; all r are the same one, unless they are sums."""

    view: tuple[int, ...]  # (C, h, w) of one image as a parity image shows it
    parts = True  # whether a parity image can be taken apart

    def __init__(self, k: int, r: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.k, self.r, self.shape = k, r, shape

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Images (k, B, C, H, W) -> parity images (r, B, C, H, W)."""

    def see(self, x: Tensor) -> None:
        """Look at some of the images to come, (B, C, H, W)."""

    def views(self) -> Call:
        """Return the inverse: a parity image (B, C, H, W) -> (k B, C, h, w), ``view`` each."""
        raise NotImplementedError


class Addition(ImageEncoder):
    """P_j = sum_i c_ji X_i, without any division by k."""

    c: Tensor
    parts = False

    def __init__(self, k: int, r: int, shape: tuple[int, ...]) -> None:
        super().__init__(k, r, shape)
        self.view = shape
        self.register_buffer("c", weights(k, r), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (k, B, C, H, W) -> (r, B, C, H, W)."""
        y: Tensor = torch.tensordot(self.c.to(x.dtype), x, 1)
        return y


class Concatenation(ImageEncoder):
    """The mean over the positions that fall together, which is the resizing of whole factors."""

    def __init__(self, k: int, r: int, shape: tuple[int, ...]) -> None:
        super().__init__(k, r, shape)
        rows, cols = grid(k)
        height, width = shape[1] // rows, shape[2] // cols
        self.view = (shape[0], height, width)
        self.corners = [(height * (i // cols), width * (i % cols)) for i in range(k)]

    def forward(self, x: Tensor) -> Tensor:
        """Images (k, B, C, H, W) -> (r, B, C, H, W), r times the same."""
        _, height, width = self.view
        small = F.adaptive_avg_pool2d(x.flatten(0, 1), (height, width))
        small = small.reshape(*x.shape[:3], height, width)  # (k, B, C, h, w)
        parity = x.new_zeros(x.shape[1:])  # (B, C, H, W)
        for image, (row, col) in zip(small, self.corners, strict=True):
            parity[:, :, row : row + height, col : col + width] = image
        return parity.expand(self.r, *parity.shape)

    def views(self) -> Call:
        """Return the cut of the grid."""
        return Call(_tiles, (Ref(0), self.corners, self.view), {})


class Packing(ImageEncoder):
    """Each channel's own range, of the images seen before training, in L - 1 equal steps."""

    low: Tensor
    high: Tensor

    def __init__(self, k: int, r: int, shape: tuple[int, ...]) -> None:
        super().__init__(k, r, shape)
        self.view = shape
        self.levels = levels(k)
        self.register_buffer("low", torch.full((shape[0], 1, 1), -3.0))
        self.register_buffer("high", torch.full((shape[0], 1, 1), 3.0))

    @property
    def step(self) -> Tensor:
        """Difference of neighbouring levels, (C, 1, 1)."""
        return (self.high - self.low).clamp(min=1e-6) / (self.levels - 1)

    def see(self, x: Tensor) -> None:
        """Take the range of each channel of images (B, C, H, W)."""
        self.low.copy_(x.amin((0, 2, 3))[:, None, None])
        self.high.copy_(x.amax((0, 2, 3))[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Images (k, B, C, H, W) -> (r, B, C, H, W), r times the same."""
        q = torch.round((x - self.low) / self.step).clamp(0, self.levels - 1)
        parity = q[-1]
        for digit in q.flip(0)[1:]:
            parity = parity * self.levels + digit  # exact
        return parity.expand(self.r, *parity.shape)

    def views(self) -> Call:
        """Return the reading of the digits."""
        return Call(_digits, (Ref(0), self.k, self.levels, self.low, self.step), {})


def _tiles(x: Tensor, corners: list[tuple[int, int]], view: tuple[int, ...]) -> Tensor:
    """(B, C, H, W) -> (k B, C, h, w): cut a parity image at the corners of its k views."""
    _, height, width = view
    return torch.cat([x[:, :, a : a + height, b : b + width] for a, b in corners])


def _digits(x: Tensor, k: int, levels: int, low: Tensor, step: Tensor) -> Tensor:
    """(B, C, H, W) -> (k B, C, H, W): read one digit after the other, the least first."""
    images = []
    for _ in range(k):
        rest = torch.floor(x / levels)
        images.append(x - rest * levels)
        x = rest
    return torch.cat(images) * step + low


ENCODERS: dict[str, type[ImageEncoder]] = {
    "addition": Addition,
    "concatenation": Concatenation,
    "packing": Packing,
}


def weights(k: int, r: int) -> Tensor:
    """Return c (r, k), every square part of which can be inverted; the first row is the sum."""
    return torch.from_numpy(vandermonde(k, r)).float()


def grid(k: int) -> tuple[int, int]:
    """Rows and columns for k images: 1 x 2, 1 x 3, 2 x 2, 2 x 3, … 2 x 4, 3 x 3."""
    rows = isqrt(k)
    return rows, ceil(k / rows)


def levels(k: int) -> int:
    """Return the largest L with L^k <= 2^24."""
    largest = int(round(EXACT ** (1 / k)))
    return largest if largest**k <= EXACT else largest - 1
