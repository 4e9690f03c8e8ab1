"""What training teaches: a base model its labels, a learned code to fill holes.

A lesson has a network, a loss for some of its images, and a validation loss; everything else of
training is :mod:`mpicoded.training.train`, which knows nothing of either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded import units
from mpicoded.codes.erasures import erasures
from mpicoded.codes.learned import Learned, owned
from mpicoded.network.ops import Pixels
from mpicoded.runtime.deployment import Deployment

CHUNK = 128  # images validated at once


class Lesson(Protocol):
    """``loss`` is of the images ``rows`` of the training part; ``validate`` of the held-back."""

    network: nn.Module
    images: Images

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss to minimise, with gradients; all chance comes from ``rng``."""

    def validate(self) -> float:
        """Return the loss on the validation part: the less, the better."""


@dataclass(frozen=True)
class Images:
    """Images (N, C, H, W) as stored, 8-bit or as the network takes them, and labels (N,)."""

    pixels: Tensor
    labels: Tensor
    rows: Tensor  # trained on
    held_back: Tensor  # validated on
    numbers: Pixels

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images ``rows`` as the network takes them, (B, C, H, W)."""
        x = self.pixels[rows]
        return self.numbers(x) if x.dtype == torch.uint8 else x


@dataclass(frozen=True)
class Jitter:
    """Random affine maps: shift as a share of the image, rotate in degrees, scale as a share.

    With ``flip`` half of the images are mirrored. What is neither turned nor resized is moved by
    whole pixels, and so stays as sharp as it was.
    """

    shift: float
    rotate: float
    scale: float
    flip: bool = False

    def __call__(self, x: Tensor, rng: torch.Generator) -> Tensor:
        """(B, C, H, W) -> as many images, each moved in its own way; borders are repeated."""
        angle, size, dx, dy = (
            (2 * torch.rand(len(x), generator=rng) - 1) * most
            for most in (math.radians(self.rotate), self.scale, 2 * self.shift, 2 * self.shift)
        )
        if not self.rotate and not self.scale:
            height, width = x.shape[2:]  # the map is 2 wide and 2 high here
            dx, dy = (torch.round(d * n / 2) * 2 / n for d, n in ((dx, width), (dy, height)))
        if self.flip:
            left = torch.rand(len(x), generator=rng) < 0.5
            x = torch.where(left[:, None, None, None], x.flip(3), x)
        cos, sin = torch.cos(angle) * torch.exp(size), torch.sin(angle) * torch.exp(size)
        rows = (torch.stack((cos, -sin, dx), 1), torch.stack((sin, cos, dy), 1))
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class BaseLesson:
    """Cross-entropy with the labels, smoothed so that the model stays unsure of what is odd."""

    def __init__(
        self, network: nn.Module, images: Images, jitter: Jitter, smoothing: float
    ) -> None:
        self.network = network
        self.images, self.jitter, self.smoothing = images, jitter, smoothing

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Cross-entropy on jittered images."""
        self.network.train()
        x = self.jitter(self.images.batch(rows), rng)
        return self._entropy(x, rows)

    @torch.inference_mode()
    def validate(self) -> float:
        """Cross-entropy on the images as they are."""
        self.network.eval()
        chunks = torch.split(self.images.held_back, CHUNK)
        losses = [self._entropy(self.images.batch(c), c).item() * len(c) for c in chunks]
        return sum(losses) / len(self.images.held_back)

    def _entropy(self, x: Tensor, rows: Tensor) -> Tensor:
        labels = self.images.labels[rows]
        return F.cross_entropy(self.network(x), labels, label_smoothing=self.smoothing)


class CodeLesson:
    """Features and logits with holes filled shall be those without holes.

    The loss is ``features`` times the mean squared error of what was missing, over the variance of
    the features, plus KL(p || q) of the logits; p with every unit's own output, q with the holes
    filled (sections 6 and 10 of the reference: MSE-Base and KL-Base). The base model is frozen;
    gradients reach the encoder through the parity units.
    """

    def __init__(
        self,
        deployment: Deployment,
        code: Learned,
        images: Images,
        jitter: Jitter,
        features: float = 1.0,
    ) -> None:
        self.code, self.features = code, features
        self.network: nn.Module = code.networks
        self.images, self.jitter = images, jitter
        self.deployment, self.stage = deployment, deployment.plan.stages[0]
        self.programs, self.head = deployment.programs()[0], deployment.head
        self.owned = owned(self.stage)
        arrived = torch.from_numpy(erasures(code.n, code.r)).float()
        missing = (1 - arrived[:, : code.k]).sum(1)
        self.patterns = arrived[missing > 0]  # (P, n); with every data unit here nothing is filled
        self.weights = missing[missing > 0]  # the more is missing, the more there is to learn

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Loss on jittered images, each with an erasure pattern of its own."""
        x = self.jitter(self.images.batch(rows), rng)
        drawn = torch.multinomial(self.weights, len(x), replacement=True, generator=rng)
        return self._loss(self.outputs(x), self.patterns[drawn])

    @torch.inference_mode()
    def validate(self) -> float:
        """Mean loss on the images as they are, over all patterns with a data unit missing."""
        total = 0.0
        for rows in torch.split(self.images.held_back, CHUNK):
            y = self.outputs(self.images.batch(rows))
            losses = [self._loss(y, pattern.expand(len(rows), -1)) for pattern in self.patterns]
            total += torch.stack(losses).mean().item() * len(rows)
        return total / len(self.images.held_back)

    def outputs(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) -> outputs of all units, (n, B, C', h, w)."""
        parity = self.code.parity(units.windows(x, self.stage))
        inputs = self.deployment.inputs(0, x, parity)
        outputs = [run(u).float() for run, u in zip(self.programs, inputs, strict=True)]
        return units.stack(outputs, self.stage)

    def _loss(self, y: Tensor, here: Tensor) -> Tensor:
        """Outputs (n, B, C, h, w) and what arrived, (B, n)."""
        k = self.code.k
        there = here.T[..., None, None, None]  # (n, B, 1, 1, 1)
        filled = self.code.decoder(y * there, here).float()
        holes = (1 - there[:k]) * self.owned  # (k, B, 1, h, w); a small shard's rest does not count
        target = y[:k]
        squares = torch.square(filled - target) * holes
        error = squares.sum() / (holes.sum() * target.shape[2])
        q = self._logits(torch.where(holes > 0, filled, target)).log_softmax(1)
        p = self._logits(target).log_softmax(1)
        kl = F.kl_div(q, p, log_target=True, reduction="batchmean")
        loss: Tensor = self.features * error / target.var() + kl
        return loss

    def _logits(self, y: Tensor) -> Tensor:
        own = [units.trim(part, self.stage, i) for i, part in enumerate(y)]
        feature_map = units.stitch(own, self.stage)
        if self.head is None:
            return feature_map
        logits: Tensor = self.head(feature_map).float()
        return logits
