"""The objective of a code whose units are images: filling in missing answers of a group of k.

Groups are drawn anew in every epoch, and decoded under every pattern of at most r lost units that
leaves a data unit missing (reference "Learned and approximate codes", section 6).
"""

import torch
from torch import Tensor, nn

from mpicoded.codes import Trainable
from mpicoded.codes.erasures import erasures
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS
from mpicoded.study.objectives import CHUNK, LOSSES, MIXTURE, Images, Jitter, fresh_blocks

SEEN = 5000  # images that a code may look at before training
MOST_PATTERNS = 64  # at once; of more, as many are drawn for every batch


class ImageObjective:
    """Fill in missing logits so that they are the base model's, the labels', or both.

    "mixture" is KL-Base plus XENT-Label, as there are no features. The base
    model's answers are computed once, for the images as they are; the encoder's images may be
    moved a little (both as published).
    """

    def __init__(
        self,
        deployment: Deployment,
        code: Trainable,
        images: Images,
        jitter: Jitter,
        loss: str = MIXTURE,
    ) -> None:
        self.code, self.images, self.name = code, images, loss
        self.network: nn.Module = code.networks
        self.stage = deployment.plan.stages[0]
        self.split = SPLITS[self.stage.split]
        self.jitter = jitter if jitter.moves or jitter.flip else None
        code.prepare(images.batch(images.rows[:SEEN]))
        self.base, *_ = programs = deployment.programs()[0]
        self.parities = programs[code.k :]
        self.answers: Tensor | None = None  # (N, classes), the base model's; NaN: not asked yet
        self.asked: set[int] = set()  # blocks of CHUNK images
        arrived = torch.from_numpy(erasures(code.n, code.r)).float()
        missing = (1 - arrived[:, : code.k]).sum(1)
        self.patterns = arrived[missing > 0].to(images.device)  # (P, n)

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss of the groups that the images ``rows`` make, over the patterns."""
        self.network.train()
        x = self.images.batch(rows)
        if self.jitter:
            with torch.autocast(x.device.type, enabled=False):  # places of pixels are exact
                x = self.jitter(x, rng)
        patterns = self.patterns
        if len(patterns) > MOST_PATTERNS:
            drawn = torch.randperm(len(patterns), generator=rng)[:MOST_PATTERNS]
            patterns = patterns[drawn.to(patterns.device)]
        return self._loss(self.outputs(x, rows), rows, patterns)

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean loss on the images as they are, in fixed groups, over all patterns."""
        self.network.eval()
        total, k = 0.0, self.code.k
        parts = torch.split(self.images.held_back, max(1, CHUNK // k) * k)
        for rows in parts:
            y = self.outputs(self.images.batch(rows), rows)
            total += self._loss(y, rows, self.patterns).item() * len(rows)
        return total / sum(map(len, parts))

    def outputs(self, x: Tensor, rows: Tensor) -> Tensor:
        """Return the outputs (n, B / k, …) of all units for images ``x`` (B, C, H, W)."""
        k = self.code.k
        data = self._base_answers(rows).chunk(k)
        inputs = self.code.parity(self.split.windows(x, self.stage))
        coded = [run(p).float() for run, p in zip(self.parities, inputs, strict=True)]
        return self.split.stack([*data, *coded], self.stage)

    @torch.no_grad()
    def _base_answers(self, rows: Tensor) -> Tensor:
        """Return the base model's logits (B, classes) for images as they are, computed once."""
        images, count = self.images, len(self.images.pixels)
        if self.answers is None:
            size = (count, self.stage.output_shape[0])
            self.answers = torch.full(size, torch.nan, device=images.device)
        for own in fresh_blocks(rows, self.asked, count):
            with torch.autocast(images.device.type, enabled=False):
                self.answers[own] = self.base(images.batch(own)).float()
        return self.answers[rows]

    def _loss(self, y: Tensor, rows: Tensor, patterns: Tensor) -> Tensor:
        """Return the loss of outputs (n, G, W) of the groups under the patterns (P, n)."""
        k, classes, groups = self.code.k, self.stage.output_shape[0], y.shape[1]
        arrived = patterns.repeat_interleave(groups, 0)  # (P G, n)
        every = y.repeat(1, len(patterns), 1)  # (n, P G, W)
        filled = self.code.reconstruct(every * arrived.T[..., None], arrived)
        missing = arrived.T[:k] == 0  # (k, P G)
        base = every[:k, :, :classes][missing]  # (Z, classes)
        labels = self.images.labels[rows].reshape(k, groups).repeat(1, len(patterns))[missing]
        names = ("kl-base", "xent-label") if self.name == MIXTURE else (self.name,)
        return torch.stack([LOSSES[n](filled[missing].float(), base, labels) for n in names]).sum()
