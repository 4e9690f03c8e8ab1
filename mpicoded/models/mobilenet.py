"""MobileNetV2 of Sandler, Howard, Zhu, Zhmoginov, Chen, CVPR 2018 (Table 2).

Layers are named as in torchvision, so that published weights load.
"""

import torch
import torch.nn.functional as F
from torch import nn

# Expansion t, channels c, number n and first stride s of the groups.
GROUPS = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


class MobileNetV2(nn.Module):
    """``width`` multiplies all channels but the last 1280, and these if it is above 1."""

    def __init__(self, classes: int = 1000, channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        inner, last = _eighths(32 * width), _eighths(1280 * max(1.0, width))
        layers: list[nn.Module] = [_conv(channels, inner, 3, stride=2)]
        for t, c, n, s in GROUPS:
            for i in range(n):
                layers.append(InvertedResidual(inner, _eighths(c * width), s if i == 0 else 1, t))
                inner = _eighths(c * width)
        self.features = nn.Sequential(*layers, _conv(inner, last, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, classes), of images (B, C, H, W)."""
        x = self.features(x)  # (B, last, H / 32, W / 32)
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)  # (B, last)
        out: torch.Tensor = self.classifier(x)  # (B, classes)
        return out


class InvertedResidual(nn.Module):
    """Expand by 1x1, 3x3 a channel, project by 1x1 without activation (Table 1, Fig. 4d)."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        expand = [_conv(channels, hidden, 1)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *expand, _conv(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.shortcut = stride == 1 and channels == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, width, ceil(H / stride), ceil(W / stride)) of (B, channels, H, W)."""
        out: torch.Tensor = self.conv(x)
        return x + out if self.shortcut else out


def _conv(channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(channels, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU6(inplace=True))


def _eighths(channels: float) -> int:
    """Round to a multiple of 8 that is at least 90 % of ``channels``, as the authors' code does."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
