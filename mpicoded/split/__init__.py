"""Splits: how a stage is cut into units. One file a split, one line here for each name."""

from mpicoded.split.base import Request, Split
from mpicoded.split.channels import Channels
from mpicoded.split.images import Images
from mpicoded.split.tiles import Tiles

SPLITS: dict[str, Split] = {
    "height": Tiles("height"),
    "width": Tiles("width"),
    "tiles": Tiles("tiles"),
    "channels": Channels("channels"),
    "batch": Images("batch"),
}

__all__ = ["SPLITS", "Request", "Split"]
