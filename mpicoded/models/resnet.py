"""ResNet-18 and the CIFAR ResNet-20 of He, Zhang, Ren, Sun, CVPR 2016 (Table 1, section 4.2).

Where the shape changes, the shortcut is a 1x1 convolution (option B) in both; the paper's ResNet-20
has option A there. Layers are named as in torchvision, so that published weights load.
"""

from collections.abc import Sequence

import torch
from torch import nn

from mpicoded.errors import ModelError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (Fig. 2, Eq. 2)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != width:
            shortcut = nn.Conv2d(channels, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, width, ceil(H / stride), ceil(W / stride)) of (B, channels, H, W)."""
        out = torch.relu(self.bn1(self.conv1(x)))  # (B, width, H / stride, W / stride)
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


class ResNet(nn.Module):
    """Stem, groups ``layer1``, … of basic blocks, each half the map before, mean, dense layer."""

    def __init__(
        self,
        stem: nn.Conv2d,
        maxpool: nn.Module | None,
        groups: Sequence[tuple[int, int]],  # (blocks, width) of each
        classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        self.maxpool = maxpool
        self.groups = len(groups)
        channels = stem.out_channels
        for number, (blocks, width) in enumerate(groups, start=1):
            first = BasicBlock(channels, width, stride=1 if number == 1 else 2)
            rest = [BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            channels = width
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, classes), of images (B, C, H, W)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)  # ImageNet: (B, 64, H / 4, W / 4)
        for number in range(1, self.groups + 1):
            x = self.get_submodule(f"layer{number}")(x)  # halved from layer2 on
        x = self.avgpool(x)  # (B, width, 1, 1)
        out: torch.Tensor = self.fc(torch.flatten(x, 1))  # (B, classes)
        return out


def resnet18(classes: int = 1000, channels: int = 3, stem: str = "imagenet") -> ResNet:
    """Return ResNet-18.

    ``stem="imagenet"``: 7x7 convolution with stride 2, then a 3x3 max pool with stride 2.
    ``stem="cifar"``: 3x3 convolution with stride 1 and no pool, for images of 32 pixels.
    Raises ModelError for another stem.
    """
    groups = [(2, 64), (2, 128), (2, 256), (2, 512)]
    if stem == "imagenet":
        conv = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        return ResNet(conv, nn.MaxPool2d(3, stride=2, padding=1), groups, classes)
    if stem == "cifar":
        return ResNet(_stem3(channels, 64), None, groups, classes)
    raise ModelError(f'resnet18: stem = {stem!r} is not known; known: "imagenet", "cifar".')


def resnet20(classes: int = 10, channels: int = 3) -> ResNet:
    """Return ResNet-20 for images of 32 pixels: three groups of three blocks, 16 to 64 wide."""
    return ResNet(_stem3(channels, 16), None, [(3, 16), (3, 32), (3, 64)], classes)


def _stem3(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)
