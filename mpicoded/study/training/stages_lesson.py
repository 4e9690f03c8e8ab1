"""The lesson of several stages: each one's code is taught by itself, all in one training.

The map that a stage's code sees is that of a run in which nothing was missing before. So one lesson
is as good as several trainings; what is left of a hole when the next stage begins, its code has
never seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mpicoded.study.training.lessons import Images, Lesson


class StagesLesson:
    """The sum of the losses of the stages; ``network`` has their networks under their numbers."""

    def __init__(self, lessons: Sequence[Lesson]) -> None:
        self.lessons = lessons
        self.network: nn.Module = nn.ModuleDict({str(s): x.network for s, x in enumerate(lessons)})
        self.images: Images = lessons[0].images

    def loss(self, rows: Tensor, rng: torch.Generator) -> Tensor:
        """Loss of all stages on the same images, each jittered and erased in its own way."""
        return torch.stack([lesson.loss(rows, rng) for lesson in self.lessons]).sum()

    def validate(self) -> float:
        """Validation loss of all stages."""
        return sum(lesson.validate() for lesson in self.lessons)
