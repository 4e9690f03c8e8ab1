"""Base-MLP 784-200-100-10 of the learned-code papers (Kosaian et al., arXiv 1806.01259).

Layers are named as in the released weights (github.com/Thesys-lab/learned-coded-computation).
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
