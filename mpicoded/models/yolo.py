"""YOLOv2 and Tiny YOLOv2 of Redmon, Farhadi, CVPR 2017: yolov2.cfg, yolov2-tiny.cfg of Darknet.

The result is the map of the last convolution: for each of five anchors four numbers of a box, one
of confidence, and the classes', 425 with COCO's 80. Images are 416x416 or 608x608, or another
multiple of 32.

The passthrough layer stacks 2x2 neighbours in channels, as the paper says, place by place:
channel (2 dy + dx) 64 + c. (Darknet's own reorg counts its memory otherwise and mixes places.)
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

# Channels of the convolutions; a negative one has a 1x1 kernel, all others 3x3. "M": 2x2 max pool.
BACKBONE = (
    32, "M", 64, "M", 128, -64, 128, "M", 256, -128, 256, "M", 512, -256, 512, -256, 512,
)  # fmt: skip
DEEP = (1024, -512, 1024, -512, 1024, 1024, 1024)
TINY = (16, "M", 32, "M", 64, "M", 128, "M", 256, "M", 512, "same", 1024, 512)
ANCHORS, FINE = 5, 256  # boxes a cell; channels of the passthrough


class Conv(nn.Module):
    """Convolution, batch norm, leaky ReLU of 0.1."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        nn.init.kaiming_normal_(self.conv.weight, a=0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, width, H, W) of (B, channels, H, W)."""
        return F.leaky_relu(self.bn(self.conv(x)), 0.1)


class Beside(Conv):
    """The same on all channels but the first ``FINE``, which go along as they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, FINE + width, H, W) of (B, FINE + channels, H, W)."""
        return torch.cat([x[:, :FINE], super().forward(x[:, FINE:])], 1)


def _layers(channels: int, widths: Sequence[int | str], conv: type[Conv] = Conv) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        elif width == "same":  # 2x2 with stride 1, a row and a column beyond the map
            pad = nn.ConstantPad2d((0, 1, 0, 1), float("-inf"))
            layers.append(nn.Sequential(pad, nn.MaxPool2d(2, stride=1)))
        else:
            layers.append(conv(channels, abs(int(width)), 3 if int(width) > 0 else 1))
            channels = abs(int(width))
    return nn.Sequential(*layers)


class Passthrough(nn.Module):
    """Half the map, and beside it the map itself, narrowed and stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.pool = Conv(512, FINE // 4, 1), nn.MaxPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, FINE + 512, H / 2, W / 2) of (B, 512, H, W)."""
        fine = self.narrow(x)  # (B, 64, H, W)
        _, c, h, w = fine.shape
        fine = fine.view(-1, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
        return torch.cat([fine.reshape(-1, FINE, h // 2, w // 2), self.pool(x)], 1)


class YOLOv2(nn.Module):
    """Darknet-19 with a passthrough of its last 26x26 map, for images (B, 3, 416, 416).

    The passthrough goes along beside the deep maps to where it is read, in one value with them: one
    value alone is alive between any two layers, and the network can be cut at each.
    """

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.backbone, self.passthrough = _layers(3, BACKBONE), Passthrough()
        self.deep = _layers(512, DEEP, Beside)
        self.joined = Conv(FINE + 1024, 1024, 3)
        self.detect = nn.Conv2d(1024, ANCHORS * (5 + classes), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, 5 (5 + classes), H / 32, W / 32) of images (B, 3, H, W)."""
        x = self.backbone(x)  # (B, 512, H / 16, W / 16)
        x = self.deep(self.passthrough(x))  # (B, FINE + 1024, H / 32, W / 32)
        out: torch.Tensor = self.detect(self.joined(x))
        return out


class TinyYOLOv2(nn.Module):
    """Eight convolutions in a row and a ninth, for images (B, 3, 416, 416)."""

    def __init__(self, classes: int = 80) -> None:
        super().__init__()
        self.backbone = _layers(3, TINY)
        self.detect = nn.Conv2d(512, ANCHORS * (5 + classes), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (B, 5 (5 + classes), H / 32, W / 32) of images (B, 3, H, W)."""
        out: torch.Tensor = self.detect(self.backbone(x))
        return out
