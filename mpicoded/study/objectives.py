"""Training objectives, the images that they learn from, and the losses that a job's [train] names.

An objective has a network, a loss for some of its images, and a validation loss; all else of
training is :mod:`mpicoded.study.train`, which knows nothing of either.

Reference "Learned and approximate codes", section 6 (Kosaian et al., arXiv 1806.01259): o are the
base model's logits, R the reconstruction, both (Z, classes) with one row an erased output; y (Z,)
are the labels.

    mse-base     sum over classes of (R - o)^2
    kl-base      sum over classes of p (ln p - ln q),  p = softmax(o),  q = softmax(R)
    xent-label   -ln softmax(R)_y

Each is summed over classes, as in the learned code's own training, and averaged over rows.
"mixture" is no loss of its own: it stands for the objective's preference.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.network.ops import Normalize

CHUNK = 128  # images validated at once
MIXTURE = "mixture"


LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {  # of R, o, y
    "mse-base": lambda filled, base, labels: torch.square(filled - base).sum(1).mean(),
    "kl-base": lambda filled, base, labels: F.kl_div(
        filled.log_softmax(1), base.log_softmax(1), log_target=True, reduction="batchmean"
    ),
    "xent-label": lambda filled, base, labels: F.cross_entropy(filled, labels),
}


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W) as stored, 8-bit or as the network takes them, and labels (N,)."""

    pixels: Tensor
    labels: Tensor
    rows: Tensor  # trained on
    held_back: Tensor  # validated on
    normalize: Normalize

    @property
    def device(self) -> torch.device:
        """Device of the images and of the networks."""
        return self.pixels.device

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images ``rows`` as the network takes them, (B, C, H, W)."""
        x = self.pixels[rows]
        return self.normalize(x) if x.dtype == torch.uint8 else x


class Objective(Protocol):
    """``loss`` is of the images ``rows`` of the training part; ``validate`` of the held-back."""

    network: nn.Module
    images: Images

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss to minimise, with gradients; all chance comes from ``rng``."""

    def validate(self) -> float:
        """Return the loss on the validation part: the less, the better."""


@dataclass(frozen=True)
class Jitter:
    """Random affine maps: shift as a share of the image, rotate in degrees, scale as a share.

    With ``flip`` half of the images are mirrored. Images that are neither turned nor resized move
    by whole pixels, and so stay as sharp as they were.
    """

    shift: float
    rotate: float
    scale: float
    flip: bool = False

    @property
    def moves(self) -> bool:
        """True if images are shifted, rotated or scaled."""
        return bool(self.shift or self.rotate or self.scale)

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """Move each image of (B, C, H, W) by a map of its own; borders are repeated."""
        angle, size, dx, dy = (
            (2 * torch.rand(len(x), generator=rng).to(x.device) - 1) * most
            for most in (math.radians(self.rotate), self.scale, 2 * self.shift, 2 * self.shift)
        )
        if not self.rotate and not self.scale:
            height, width = x.shape[2:]  # the map is 2 wide and 2 high
            dx, dy = (torch.round(d * n / 2) * 2 / n for d, n in ((dx, width), (dy, height)))
        if self.flip:
            left = (torch.rand(len(x), generator=rng) < 0.5).to(x.device)
            x = torch.where(left[:, None, None, None], x.flip(3), x)
        cos, sin = torch.cos(angle) * torch.exp(size), torch.sin(angle) * torch.exp(size)
        rows = (torch.stack((cos, -sin, dx), 1), torch.stack((sin, cos, dy), 1))
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class BaseObjective:
    """Cross-entropy with the labels, smoothed so that the model stays unsure of what is odd."""

    def __init__(self, model: nn.Module, images: Images, jitter: Jitter, smoothing: float) -> None:
        self.network = model
        self.images, self.jitter, self.smoothing = images, jitter, smoothing

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Return the cross-entropy on jittered images."""
        self.network.train()
        x = self.jitter(self.images.batch(rows), rng)
        return self._entropy(x, rows)

    @torch.inference_mode()
    def validate(self) -> float:
        """Return the cross-entropy on the images as they are."""
        self.network.eval()
        chunks = torch.split(self.images.held_back, CHUNK)
        losses = [self._entropy(self.images.batch(c), c).item() * len(c) for c in chunks]
        return sum(losses) / len(self.images.held_back)

    def _entropy(self, x: Tensor, rows: Tensor) -> Tensor:
        labels = self.images.labels[rows]
        return F.cross_entropy(self.network(x), labels, label_smoothing=self.smoothing)


class StagesObjective:
    """The sum of the losses of stages, each on the map of a run in which nothing was missing."""

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = objectives
        networks = {str(s): each.network for s, each in enumerate(objectives)}
        self.network: nn.Module = nn.ModuleDict(networks)
        self.images: Images = objectives[0].images

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss of all stages on the same images, jittered and erased for each anew."""
        return torch.stack([each.loss(rows, rng) for each in self.objectives]).sum()

    def validate(self) -> float:
        """Return the validation loss of all stages."""
        return sum(each.validate() for each in self.objectives)


def fresh_blocks(rows: Tensor, done: set[int], count: int) -> Iterator[Tensor]:
    """Yield the blocks of ``rows`` that are not ``done``, each CHUNK neighbours of ``count``.

    The last bits of an answer depend on the batch around it: in the same blocks always, a training
    that goes on has the same answers.
    """
    for block in sorted(set((rows // CHUNK).tolist()) - done):
        done.add(block)
        yield torch.arange(block * CHUNK, min((block + 1) * CHUNK, count))
