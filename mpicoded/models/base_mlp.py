"""Base-MLP 784-200-100-10, the small base model of the learned-code papers.

J. Kosaian, K. V. Rashmi, S. Venkataraman, "Learning a code: machine learning for approximate
non-linear coded computation", arXiv 1806.01259, 2018. The layers are named as in the released
weights (github.com/Thesys-lab/learned-coded-computation), so that these load as they are.
"""

import torch
from torch import nn


class BaseMLP(nn.Module):
    """Base-MLP for images (B, 1, 28, 28) of ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.nn = nn.Sequential(
            nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, 10), of images (B, 1, 28, 28) with values 0..1."""
        out: torch.Tensor = self.nn(torch.flatten(x, 1))  # (B, 784) -> (B, 10)
        return out
