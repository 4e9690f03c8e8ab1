"""InceptionV3 of Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, CVPR 2016 (Table 1), for 299 pixels.

Layers are named as in torchvision, so that published weights load: with ``aux`` and, for images
normalised as theirs, ``transform_input``.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Convolutions of a block: name, which map it reads ("x": the block's own, "avg": its average pool),
# width, kernel, stride. The maps that none of them reads are joined, in this order.
Layers = Sequence[tuple[Any, ...]]
ROW, COLUMN = (1, 7), (7, 1)


def _a(pool: int) -> Layers:
    """Return Fig. 5, on 35x35."""
    return (
        ("branch1x1", "x", 64, 1),
        ("branch5x5_1", "x", 48, 1),
        ("branch5x5_2", "branch5x5_1", 64, 5),
        ("branch3x3dbl_1", "x", 64, 1),
        ("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
        ("branch3x3dbl_3", "branch3x3dbl_2", 96, 3),
        ("branch_pool", "avg", pool, 1),
    )


def _c(n: int) -> Layers:
    """Return Fig. 6, on 17x17: 7x7 as 1x7 and 7x1."""
    return (
        ("branch1x1", "x", 192, 1),
        ("branch7x7_1", "x", n, 1),
        ("branch7x7_2", "branch7x7_1", n, ROW),
        ("branch7x7_3", "branch7x7_2", 192, COLUMN),
        ("branch7x7dbl_1", "x", n, 1),
        ("branch7x7dbl_2", "branch7x7dbl_1", n, COLUMN),
        ("branch7x7dbl_3", "branch7x7dbl_2", n, ROW),
        ("branch7x7dbl_4", "branch7x7dbl_3", n, COLUMN),
        ("branch7x7dbl_5", "branch7x7dbl_4", 192, ROW),
        ("branch_pool", "avg", 192, 1),
    )


B: Layers = (  # Fig. 10: 35x35 -> 17x17
    ("branch3x3", "x", 384, 3, 2),
    ("branch3x3dbl_1", "x", 64, 1),
    ("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
    ("branch3x3dbl_3", "branch3x3dbl_2", 96, 3, 2),
)
D: Layers = (  # the same with a 7x7: 17x17 -> 8x8
    ("branch3x3_1", "x", 192, 1),
    ("branch3x3_2", "branch3x3_1", 320, 3, 2),
    ("branch7x7x3_1", "x", 192, 1),
    ("branch7x7x3_2", "branch7x7x3_1", 192, ROW),
    ("branch7x7x3_3", "branch7x7x3_2", 192, COLUMN),
    ("branch7x7x3_4", "branch7x7x3_3", 192, 3, 2),
)
E: Layers = (  # Fig. 7, on 8x8
    ("branch1x1", "x", 320, 1),
    ("branch3x3_1", "x", 384, 1),
    ("branch3x3_2a", "branch3x3_1", 384, (1, 3)),
    ("branch3x3_2b", "branch3x3_1", 384, (3, 1)),
    ("branch3x3dbl_1", "x", 448, 1),
    ("branch3x3dbl_2", "branch3x3dbl_1", 384, 3),
    ("branch3x3dbl_3a", "branch3x3dbl_2", 384, (1, 3)),
    ("branch3x3dbl_3b", "branch3x3dbl_2", 384, (3, 1)),
    ("branch_pool", "avg", 192, 1),
)


BLOCKS = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": B, "Mixed_6b": _c(128),
    "Mixed_6c": _c(160), "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": D, "Mixed_7b": E,
    "Mixed_7c": E,
}  # fmt: skip


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; padded to keep the map's size unless it has a stride."""

    def __init__(
        self, channels: int, width: int, kernel: int | tuple[int, int], stride: int = 1,
        pad: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        h, w = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        padding = (h // 2, w // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, width, (h, w), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H', W') of (B, channels, H, W)."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, their ``width`` maps joined; without "avg" half as high and wide."""

    def __init__(self, channels: int, layers: Layers) -> None:
        super().__init__()
        widths = {"x": channels, "avg": channels}
        for name, reads, *how in layers:
            self.add_module(name, Conv(widths[reads], *how))
            widths[name] = how[0]
        self.reads = {name: reads for name, reads, *_ in layers}
        self.halves = "avg" not in self.reads.values()
        self.ends = [name for name in self.reads if name not in self.reads.values()]
        self.width: int = sum(widths[name] for name in self.ends) + self.halves * channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, width, H, W), or (B, width, (H - 1) / 2, (W - 1) / 2)."""
        pool = F.max_pool2d(x, 3, stride=2) if self.halves else F.avg_pool2d(x, 3, 1, padding=1)
        maps = {"x": x, "avg": pool}
        for name, reads in self.reads.items():
            maps[name] = self.get_submodule(name)(maps[reads])
        return torch.cat([maps[name] for name in self.ends] + [pool] * self.halves, 1)


class InceptionAux(nn.Module):
    """Side classifier that only training uses: weights alone, as it never runs here."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv0, self.conv1 = Conv(768, 128, 1), Conv(128, 768, 5)
        self.fc = nn.Linear(768, classes)


class InceptionV3(nn.Module):
    """InceptionV3 for images of at least 75 pixels.

    ``aux`` makes room for the side classifier's weights, which torchvision's files have.
    ``transform_input`` takes images normalised by ImageNet's mean and deviation, as torchvision's
    own network with published weights does, and not by 0.5 and 0.5.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, classes: int = 1000, aux: bool = True, transform_input: bool = False
    ) -> None:
        super().__init__()
        self.transform_input = transform_input
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        channels = 192
        for name, layers in BLOCKS.items():
            mixed = Mixed(channels, layers)
            self.add_module(name, mixed)
            channels = mixed.width
        self.AuxLogits = InceptionAux(classes) if aux else None
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        # x * scale + shift: from ImageNet's mean and deviation to 0.5 and 0.5
        mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
        self.register_buffer("scale", (std / 0.5)[:, None, None], persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, (B, classes), of images (B, 3, H, W)."""
        if self.transform_input:
            x = x * self.scale + self.shift
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))  # (B, 192, 71, 71)
        x = self.maxpool2(x)  # (B, 192, 35, 35)
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
        x = self.dropout(self.avgpool(x))  # (B, 2048, 1, 1)
        out: Tensor = self.fc(torch.flatten(x, 1))  # (B, classes)
        return out
