"""LeNet-5 in style, for 32x32 images (LeCun, Bottou, Bengio, Haffner, Proc. IEEE 86(11), 1998).

As there: 5x5 convolutions, widths 6 and 16, dense layers of 120 and 84. Unlike there: max pooling,
ReLU, conv2 sees every map of pool1, and conv1 is padded, so that the last map is 6x6.
"""

from collections.abc import Sequence

import torch
from torch import nn


class LeNet5(nn.Module):
    """LeNet-5-style network for (B, channels, 32, 32); ``width``: maps of conv1 and conv2."""

    def __init__(
        self, channels: int = 1, classes: int = 10, width: Sequence[int] = (6, 16)
    ) -> None:
        super().__init__()
        first, second = width
        self.conv1 = nn.Conv2d(channels, first, 5, padding=2)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(first, second, 5)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(second * 6 * 6, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, classes), of images (B, C, 32, 32)."""
        x = self.pool1(self.relu1(self.conv1(x)))  # (B, first, 16, 16)
        x = self.pool2(self.relu2(self.conv2(x)))  # (B, second, 12, 12) -> (B, second, 6, 6)
        x = torch.flatten(x, 1)  # (B, second * 36)
        x = torch.relu(self.fc1(x))  # (B, 120)
        x = torch.relu(self.fc2(x))  # (B, 84)
        out: torch.Tensor = self.fc3(x)  # (B, classes)
        return out
