"""What training teaches: a base model its labels, a learned code to fill holes.

A lesson has a network, a loss for some of its images, and a validation loss; everything else of
training is :mod:`mpicoded.study.training.train`, which knows nothing of either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.codes import Trainable
from mpicoded.codes.erasures import erasures
from mpicoded.codes.learned import owned
from mpicoded.network.ops import Normalize
from mpicoded.network.pieces import shard_program, whole_box
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS
from mpicoded.study.training.losses import LOSSES, MIXTURE

CHUNK = 128  # images validated at once
MEMORY = 2**30  # bytes of features kept
BEYOND = 0.1  # share of loss patterns beyond what a code is made for


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
    normalize: Normalize

    @property
    def device(self) -> torch.device:
        """Where the images lie, and the networks too."""
        return self.pixels.device

    def batch(self, rows: Tensor) -> Tensor:
        """Return the images ``rows`` as the network takes them, (B, C, H, W)."""
        x = self.pixels[rows]
        return self.normalize(x) if x.dtype == torch.uint8 else x


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
            (2 * torch.rand(len(x), generator=rng).to(x.device) - 1) * most
            for most in (math.radians(self.rotate), self.scale, 2 * self.shift, 2 * self.shift)
        )
        if not self.rotate and not self.scale:
            height, width = x.shape[2:]  # the map is 2 wide and 2 high here
            dx, dy = (torch.round(d * n / 2) * 2 / n for d, n in ((dx, width), (dy, height)))
        if self.flip:
            left = (torch.rand(len(x), generator=rng) < 0.5).to(x.device)
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
    gradients reach the encoder through the parity units. Another ``loss`` than "mixture" is that of
    :mod:`mpicoded.study.training.losses` on the logits alone.

    Every image has a loss pattern of its own: of at most r lost units, the likelier the more data
    is missing; and in ``BEYOND`` of all cases one that the code is not made for, with all parity
    units here and up to 2r data units missing.

    With ``alone`` every image is answered from each parity unit alone besides, with no data, and so
    much does that count: else large parity networks learn little, as what is here tells most.
    """

    def __init__(
        self,
        deployment: Deployment,
        code: Trainable,
        images: Images,
        jitter: Jitter,
        features: float = 1.0,
        loss: str = MIXTURE,
        alone: float = 0.0,
    ) -> None:
        self.code, self.features, self.name, self.alone = code, features, loss, alone
        self.network: nn.Module = code.networks
        self.stage = deployment.plan.stages[0]
        self.split = SPLITS[self.stage.split]
        self.base = Base(deployment, images, jitter)
        self.images, self.jitter = images, jitter
        self.parities = deployment.programs()[0][code.k :]
        self.owned = owned(self.stage).to(images.device)
        self.patterns, self.weights = _patterns(code)

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Loss on jittered images, each with an erasure pattern of its own."""
        self.network.train()
        seen = self.base.jittered(rows, rng)
        drawn = torch.multinomial(self.weights, len(rows), replacement=True, generator=rng)
        y, labels = self.outputs(seen), self.images.labels[rows]
        loss = self._loss(seen, y, self.patterns[drawn], labels)
        if self.alone:
            ones = F.pad(torch.eye(self.code.r), (self.code.k, 0))  # (r, n)
            each = [self._loss(seen, y, one.expand(len(rows), -1), labels) for one in ones]
            loss = loss + self.alone * torch.stack(each).mean()
        return loss

    @torch.inference_mode()
    def validate(self) -> float:
        """Mean loss on the images as they are, each with one of the patterns of at most r losses.

        The patterns take turns, so that every epoch is judged by the same.
        """
        self.network.eval()
        within = self.patterns[(1 - self.patterns).sum(1) <= self.code.r]
        total, done = 0.0, 0
        for rows in torch.split(self.images.held_back, CHUNK):
            turns = (done + torch.arange(len(rows))) % len(within)
            seen = self.base.plain(rows)
            loss = self._loss(seen, self.outputs(seen), within[turns], self.images.labels[rows])
            total, done = total + loss.item() * len(rows), done + len(rows)
        return total / done

    def outputs(self, seen: Seen) -> Tensor:
        """Return the outputs of all units, (n, B, C', h, w)."""
        coded = self.code.parity(self.split.windows(seen.images, self.stage))
        parities = [run(x).float() for run, x in zip(self.parities, coded, strict=True)]
        boxes = [shard.writes for shard in self.stage.shards]
        data = [
            seen.features[:, :, b.rows.start : b.rows.stop, b.cols.start : b.cols.stop]
            for b in boxes
        ]
        return self.split.stack([*data, *parities], self.stage)

    def _loss(self, seen: Seen, y: Tensor, here: Tensor, labels: Tensor) -> Tensor:
        """Loss where of each image's outputs ``y`` the pattern ``here`` (B, n) arrived."""
        k, here = self.code.k, here.to(seen.features.device)
        there = here.T[..., None, None, None]  # (n, B, 1, 1, 1)
        filled = self.code.reconstruct(y * there, here).float()
        holes = (1 - there[:k]) * self.owned  # (k, B, 1, h, w); a small shard's rest does not count
        target = y[:k]
        parts = torch.where(holes > 0, filled, target)
        logits = self.base.logits(self.split.stitch(list(parts), self.stage))
        if self.name != MIXTURE:
            return LOSSES[self.name](logits, seen.logits, labels)
        squares = torch.square(filled - target) * holes
        error = squares.sum() / (holes.sum() * target.shape[2])
        loss: Tensor = self.features * error / target.var() + LOSSES["kl-base"](
            logits, seen.logits, labels
        )
        return loss


@dataclass(frozen=True)
class Seen:
    """What a stage reads, the images (B, C, H, W) where it is the first; its map; the logits."""

    images: Tensor
    features: Tensor
    logits: Tensor


class Base:
    """The frozen base model of a lesson: the map behind the coded stage, and the logits.

    Where images are moved only by ``flip``, or not at all, its answers are computed once for all,
    if they are not too many; features are kept in float16.
    """

    def __init__(self, deployment: Deployment, images: Images, jitter: Jitter) -> None:
        (stage,) = deployment.plan.stages
        self.deployment, self.head = deployment, deployment.head
        self.images, self.jitter = images, jitter
        whole = whole_box(stage.output_shape)
        self.run = shard_program(deployment.chain, stage.first, stage.last, whole)
        self.flips = 1 + jitter.flip
        fixed = not (jitter.shift or jitter.rotate or jitter.scale)
        count = self.flips * len(images.pixels)
        self.known = fixed and 2 * count * prod(stage.output_shape) <= MEMORY
        self.maps = torch.empty(count if self.known else 0, *stage.output_shape, dtype=torch.half)
        self.answers = torch.empty(len(self.maps), *deployment.chain.output_shape)
        self.filled = torch.zeros(len(self.maps), dtype=torch.bool)

    def jittered(self, rows: Tensor, rng: torch.Generator) -> Seen:
        """Return the images ``rows``, each moved in its own way."""
        if not self.known:
            return self._see(self.jitter(self.images.batch(rows), rng))
        flipped = torch.rand(len(rows), generator=rng) < (0.5 if self.jitter.flip else 0.0)
        return self._recall(rows, flipped)

    def plain(self, rows: Tensor) -> Seen:
        """Return the images ``rows`` as they are."""
        if not self.known:
            return self._see(self.images.batch(rows))
        return self._recall(rows, torch.zeros(len(rows), dtype=torch.bool))

    def logits(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W) -> what the network answers, (B, classes)."""
        if self.head is None:
            return features.flatten(1)
        logits: Tensor = self.head(features).float()
        return logits

    @torch.no_grad()
    def _see(self, x: Tensor) -> Seen:
        x = self.deployment.prologue(0, x)
        features = self.run(x).float()
        return Seen(x, features, self.logits(features))

    def _recall(self, rows: Tensor, flipped: Tensor) -> Seen:
        """Look up what was seen before, and see the rest.

        It is seen in blocks of the same images always: the last bits of a map depend on what is in
        the batch with it, and a training that goes on shall have the same.
        """
        x = self.images.batch(rows)
        x = torch.where(flipped.to(x.device)[:, None, None, None], x.flip(3), x)
        places = rows + len(self.images.pixels) * flipped
        for block in sorted(set((places[~self.filled[places]] // CHUNK).tolist())):
            self._fill(torch.arange(block * CHUNK, min((block + 1) * CHUNK, len(self.maps))))
        maps, answers = self.maps[places].to(x.device).float(), self.answers[places].to(x.device)
        return Seen(self.deployment.prologue(0, x), maps, answers)

    def _fill(self, places: Tensor) -> None:
        """See images (P,), those from N on mirrored, in float32."""
        count = len(self.images.pixels)
        x = self.images.batch(places % count)
        x = torch.where((places >= count).to(x.device)[:, None, None, None], x.flip(3), x)
        with torch.autocast(x.device.type, enabled=False):
            seen = self._see(x)
        self.maps[places], self.answers[places] = seen.features.half().cpu(), seen.logits.cpu()
        self.filled[places] = True


def _patterns(code: Trainable) -> tuple[Tensor, Tensor]:
    """Return patterns of loss (P, n), 1 where a unit arrived, and how likely each is, (P,)."""
    arrived = torch.from_numpy(erasures(code.n, code.r)).float()
    arrived = arrived[arrived[:, : code.k].sum(1) < code.k]  # else nothing is filled
    within = (code.k - arrived[:, : code.k].sum(1)).float()
    deep = torch.from_numpy(erasures(code.k, min(2 * code.r, code.k))).float()
    deep = deep[deep.sum(1) < code.k - code.r]
    deep = F.pad(deep, (0, code.r), value=1.0)
    share = BEYOND / max(1, len(deep))
    weights = torch.cat((within / within.sum() * (1 - BEYOND), torch.full((len(deep),), share)))
    return torch.cat((arrived, deep)), weights
