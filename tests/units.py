"""From a map to units and back, by the split that a stage names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mpicoded.plan import Stage
from mpicoded.split import SPLITS


def cut(x: Tensor, stage: Stage) -> list[Tensor]:
    return SPLITS[stage.split].cut(x, stage)


def windows(x: Tensor, stage: Stage) -> Tensor:
    return SPLITS[stage.split].windows(x, stage)


def stack(outputs: Sequence[Tensor | None], stage: Stage) -> Tensor:
    return SPLITS[stage.split].stack(outputs, stage)


def trim(y: Tensor, stage: Stage, unit: int) -> Tensor:
    return SPLITS[stage.split].trim(y, stage, unit)


def stitch(outputs: Sequence[Tensor], stage: Stage) -> Tensor:
    return SPLITS[stage.split].stitch(outputs, stage)
