"""The objective of a learned code whose units are shards: filling in the erasures of a map."""

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpicoded.codes import Trainable
from mpicoded.codes.erasures import erasures
from mpicoded.codes.learned import owned
from mpicoded.network.pieces import shard_program, whole_box
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS
from mpicoded.study.objectives import CHUNK, LOSSES, MIXTURE, Images, Jitter, fresh_blocks

MEMORY = 2**30  # bytes of features kept
BEYOND = 0.1  # share of erasure patterns beyond the r that a code is made for


@dataclass(frozen=True)
class Seen:
    """The input of a stage (the images, where it is the first), its map, and the logits."""

    images: Tensor
    features: Tensor
    logits: Tensor


class Base:
    """The frozen base model's map and logits; kept in float16 where images are at most flipped."""

    def __init__(self, deployment: Deployment, images: Images, jitter: Jitter) -> None:
        (stage,) = deployment.plan.stages
        self.deployment, self.head = deployment, deployment.head
        self.images, self.jitter = images, jitter
        whole = whole_box(stage.output_shape)
        self.run = shard_program(deployment.chain, stage.first, stage.last, whole)
        count = (1 + jitter.flip) * len(images.pixels)
        self.known = not jitter.moves and 2 * count * prod(stage.output_shape) <= MEMORY
        self.maps = torch.empty(count if self.known else 0, *stage.output_shape, dtype=torch.half)
        self.answers = torch.empty(len(self.maps), *deployment.chain.output_shape)
        self.filled: set[int] = set()  # blocks

    def jittered(self, rows: Tensor, rng: torch.Generator) -> Seen:
        """Return the images ``rows``, each jittered."""
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
        """Map (B, C, H, W) -> logits, (B, classes)."""
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
        """Look up the maps and answers of images, and compute those not seen before."""
        x = self._images(rows, flipped)
        places = rows + len(self.images.pixels) * flipped
        for block in fresh_blocks(places, self.filled, len(self.maps)):
            self._fill(block)
        maps, answers = self.maps[places].to(x.device).float(), self.answers[places].to(x.device)
        return Seen(self.deployment.prologue(0, x), maps, answers)

    def _fill(self, places: Tensor) -> None:
        """See images (P,), those from N on mirrored, in float32."""
        count = len(self.images.pixels)
        x = self._images(places % count, places >= count)
        with torch.autocast(x.device.type, enabled=False):
            seen = self._see(x)
        self.maps[places], self.answers[places] = seen.features.half().cpu(), seen.logits.cpu()

    def _images(self, rows: Tensor, flipped: Tensor) -> Tensor:
        x = self.images.batch(rows)
        return torch.where(flipped.to(x.device)[:, None, None, None], x.flip(3), x)


class CodeObjective:
    """Fill erasures so that features and logits are those without erasures.

    The loss is ``features`` times the mean squared error of the missing units, over the variance
    of the features, plus KL(p || q) of the logits; p with every unit's own output, q with erasures
    filled (sections 6 and 10 of the reference: MSE-Base and KL-Base). The base model is frozen;
    gradients reach the encoder through the parity units. Another ``loss`` than "mixture" is that of
    ``LOSSES`` on the logits alone.

    Every image has an erasure pattern of its own: of at most r lost units, the likelier the more
    data is missing; and in ``BEYOND`` of all cases one that the code is not made for, with all
    parity units and up to 2r data units missing.

    With ``alone`` every image is answered from each parity unit alone besides, with no data, and so
    much does that count: else large parity networks learn little beside the data that arrived.
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
        """Return the loss on jittered images, each with an erasure pattern of its own."""
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
        """Return the mean loss on the images as they are, with patterns of at most r losses."""
        self.network.eval()
        within = self.patterns[(1 - self.patterns).sum(1) <= self.code.r]
        total, done = 0.0, 0
        for rows in torch.split(self.images.held_back, CHUNK):
            # patterns take turns, so that every epoch is judged by the same
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

    def _loss(self, seen: Seen, y: Tensor, arrived: Tensor, labels: Tensor) -> Tensor:
        """Return the loss where ``arrived`` (B, n) of each image's outputs ``y`` did."""
        k, arrived = self.code.k, arrived.to(seen.features.device)
        mask = arrived.T[..., None, None, None]  # (n, B, 1, 1, 1)
        filled = self.code.reconstruct(y * mask, arrived).float()
        missing = (1 - mask[:k]) * self.owned  # (k, B, 1, h, w); less the rest of a small shard
        target = y[:k]
        parts = torch.where(missing > 0, filled, target)
        logits = self.base.logits(self.split.stitch(list(parts), self.stage))
        if self.name != MIXTURE:
            return LOSSES[self.name](logits, seen.logits, labels)
        squares = torch.square(filled - target) * missing
        error = squares.sum() / (missing.sum() * target.shape[2])
        kl = LOSSES["kl-base"](logits, seen.logits, labels)
        loss: Tensor = self.features * error / target.var() + kl
        return loss


def _patterns(code: Trainable) -> tuple[Tensor, Tensor]:
    """Return erasure patterns (P, n), 1 where a unit arrived, and their weights, (P,)."""
    arrived = torch.from_numpy(erasures(code.n, code.r)).float()
    arrived = arrived[arrived[:, : code.k].sum(1) < code.k]  # else nothing is filled
    within = (code.k - arrived[:, : code.k].sum(1)).float()
    deep = torch.from_numpy(erasures(code.k, min(2 * code.r, code.k))).float()
    deep = deep[deep.sum(1) < code.k - code.r]
    deep = F.pad(deep, (0, code.r), value=1.0)
    share = BEYOND / max(1, len(deep))
    weights = torch.cat((within / within.sum() * (1 - BEYOND), torch.full((len(deep),), share)))
    return torch.cat((arrived, deep)), weights
