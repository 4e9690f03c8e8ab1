"""The losses that a job's [train] names, of logits that were filled in beside the base model's own.

Reference "Learned and approximate codes", section 6 (Kosaian et al., arXiv 1806.01259): o are the
base model's logits, R the reconstruction, both (Z, classes) with one row an erased output; y (Z,)
are the labels.

    mse-base     sum over classes of (R - o)^2
    kl-base      sum over classes of p (ln p - ln q),  p = softmax(o),  q = softmax(R)
    xent-label   -ln softmax(R)_y

Each is summed over classes, as in the learned code's own training, and averaged over rows.
"mixture" is no loss of its own: it is what a lesson prefers where the job names none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MIXTURE = "mixture"
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # R, o (Z, classes) and y (Z,) -> a number


def mse_base(filled: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """Squared error of the logits."""
    return torch.square(filled - base).sum(1).mean()


def kl_base(filled: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """How far the filled-in distribution of classes is from the base model's."""
    q, p = filled.log_softmax(1), base.log_softmax(1)
    return F.kl_div(q, p, log_target=True, reduction="batchmean")


def xent_label(filled: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels; the base model's own answer does not count."""
    return F.cross_entropy(filled, labels)


LOSSES: dict[str, Loss] = {"mse-base": mse_base, "kl-base": kl_base, "xent-label": xent_label}
