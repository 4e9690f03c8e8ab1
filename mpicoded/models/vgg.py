"""VGG-11, -13, -16 (Simonyan, Zisserman, ICLR 2015, Table 1, columns A, B, D), and a small VGG-9.

Layers have the numbers that torchvision gives them, so that published weights load.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from mpicoded.errors import ModelError

# Channels of the 3x3 convolutions; "M" is the 2x2 max pool that ends a group.
LAYERS: dict[int, tuple[int | str, ...]] = {
    11: (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    13: (64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"),
    16: (64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"),
}
NINE = (32, 32, "M", 64, 64, "M", 128, 128, "M")  # six convolutions; 77 MFLOP for 32 pixels


class VGG(nn.Module):
    """Features that end with a ``width`` x ``side`` x ``side`` map, and three dense layers."""

    def __init__(
        self, features: nn.Sequential, width: int, side: int, classes: int, hidden: int,
        dropout: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Linear(width * side * side, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, classes), of images (B, 3, H, W)."""
        x = self.features(x)  # (B, width, H // 2^pools, W // 2^pools)
        x = self.avgpool(x)  # (B, width, side, side)
        x = torch.flatten(x, 1)  # (B, width * side * side)
        out: torch.Tensor = self.classifier(x)  # (B, classes)
        return out


def features(
    widths: Sequence[int | str], batch_norm: bool = False, channels: int = 3
) -> nn.Sequential:
    """Return the convolutional part, (B, channels, H, W) -> (B, 512, H // 32, W // 32)."""
    layers: list[nn.Module] = []
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU())
        channels = width
    return nn.Sequential(*layers)


def vgg(
    depth: int = 16, classes: int = 1000, batch_norm: bool = False, size: int = 224,
    hidden: int = 4096,
) -> VGG:  # fmt: skip
    """Return VGG-11, VGG-13 or VGG-16 for square images of about ``size`` pixels.

    ``hidden`` is the width of the two hidden dense layers. The defaults are the ImageNet network;
    for CIFAR-10 say ``classes=10, size=32, hidden=512``. Raises ModelError for another depth, or
    for a size below the 32 pixels that five pools leave something of.
    """
    if size < 32:
        raise ModelError(f"vgg: size = {size} is too small; five 2x2 pools need 32 pixels or more.")
    if depth not in LAYERS:
        raise ModelError(f"vgg: depth = {depth!r} is not known; known: {sorted(LAYERS)}.")
    return VGG(features(LAYERS[depth], batch_norm), 512, size // 32, classes, hidden)


def vgg9(classes: int = 10) -> VGG:
    """Return a narrow VGG for images of 32 pixels: six convolutions with batch norm."""
    return VGG(features(NINE, batch_norm=True), 128, 4, classes, hidden=128, dropout=0.2)


vgg11, vgg13, vgg16 = partial(vgg, 11), partial(vgg, 13), partial(vgg, 16)


def vgg16_features(batch_norm: bool = False) -> nn.Sequential:
    """Return the convolutional part of VGG-16 alone: 31 layers, "0" to "30", without batch norm."""
    return features(LAYERS[16], batch_norm)
