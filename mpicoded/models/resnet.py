"""ResNet-18, -34, -50 and the CIFAR ResNet-20 of He, Zhang, Ren, Sun, CVPR 2016 (Table 1, 4.2).

Where the shape changes, the shortcut is a 1x1 convolution (option B) in all; the paper's ResNet-20
has option A there. As in torchvision, whose names the layers have so that published weights load,
a bottleneck strides in its 3x3 convolution.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from mpicoded.errors import ModelError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (Fig. 2, Eq. 2)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, width, ceil(H / stride), ceil(W / stride)) of (B, channels, H, W)."""
        out = torch.relu(self.bn1(self.conv1(x)))  # (B, width, H / stride, W / stride)
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, the last 4 times as wide, and a shortcut (Fig. 5)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = _shortcut(channels, 4 * width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, 4 width, ceil(H / stride), ceil(W / stride)) of (B, channels, H, W)."""
        out = torch.relu(self.bn1(self.conv1(x)))  # (B, width, H, W)
        out = torch.relu(self.bn2(self.conv2(out)))  # (B, width, H / stride, W / stride)
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + shortcut)


def _shortcut(channels: int, width: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    """Stem, groups ``layer1``, … of blocks, each half the map before, mean, dense layer."""

    def __init__(
        self,
        stem: nn.Conv2d,
        maxpool: nn.Module | None,
        groups: Sequence[tuple[int, int]],  # (blocks, width) of each
        classes: int,
        block: type[BasicBlock | Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        self.maxpool = maxpool
        self.groups = len(groups)
        channels = stem.out_channels
        for number, (blocks, width) in enumerate(groups, start=1):
            layer = nn.Sequential(block(channels, width, stride=1 if number == 1 else 2))
            channels = block.expansion * width
            layer.extend(block(channels, width, stride=1) for _ in range(blocks - 1))
            self.add_module(f"layer{number}", layer)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, classes), of images (B, C, H, W)."""
        x = torch.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)  # ImageNet: (B, 64, H / 4, W / 4)
        for number in range(1, self.groups + 1):
            x = self.get_submodule(f"layer{number}")(x)  # halved from layer2 on
        x = self.avgpool(x)  # (B, channels, 1, 1)
        out: torch.Tensor = self.fc(torch.flatten(x, 1))  # (B, classes)
        return out


def _resnet(
    block: type[BasicBlock | Bottleneck], blocks: Sequence[int],
    classes: int = 1000, channels: int = 3, stem: str = "imagenet",
) -> ResNet:  # fmt: skip
    """Return a ResNet of four groups.

    ``stem="imagenet"``: 7x7 convolution with stride 2, then a 3x3 max pool with stride 2.
    ``stem="cifar"``: 3x3 convolution with stride 1 and no pool, for images of 32 pixels.
    Raises ModelError for another stem.
    """
    groups = list(zip(blocks, (64, 128, 256, 512), strict=True))
    if stem == "imagenet":
        conv = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        pool = nn.MaxPool2d(3, stride=2, padding=1)
        return ResNet(conv, pool, groups, classes, block)
    if stem == "cifar":
        return ResNet(_stem3(channels, 64), None, groups, classes, block)
    raise ModelError(f'resnet: stem = {stem!r} is not known; known: "imagenet", "cifar".')


resnet18 = partial(_resnet, BasicBlock, (2, 2, 2, 2))
resnet34 = partial(_resnet, BasicBlock, (3, 4, 6, 3))
resnet50 = partial(_resnet, Bottleneck, (3, 4, 6, 3))


def resnet20(classes: int = 10, channels: int = 3) -> ResNet:
    """Return ResNet-20 for images of 32 pixels: three groups of three blocks, 16 to 64 wide."""
    return ResNet(_stem3(channels, 16), None, [(3, 16), (3, 32), (3, 64)], classes)


def _stem3(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)
