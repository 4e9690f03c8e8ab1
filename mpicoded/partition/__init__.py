"""Planners: from a traced network to a Plan. One file a planner, one line here."""

from __future__ import annotations

from collections.abc import Callable

from mpicoded.partition import auto, channels, fused, images
from mpicoded.partition.request import Request
from mpicoded.plan import Plan

PARTITIONS: dict[str, Callable[[Request], Plan]] = {
    "height": fused.by_height,
    "width": fused.by_width,
    "tiles": fused.by_tiles,
    "channels": channels.by_channels,
    "batch": images.by_images,
}

__all__ = ["PARTITIONS", "Request", "auto"]
