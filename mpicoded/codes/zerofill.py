"""Fill missing units with zero: ADCNN (Zhang et al., ICPP 2020), a policy without any redundancy.

The leader waits for every data unit until its deadline and goes on with what came: where a shard's
part of the map is missing the map is 0, which is what a ReLU makes of nothing. So accuracy is paid
for a loss instead of work for a parity unit; every code is to be compared with it.
"""

import torch
from torch import Tensor

from mpicoded.codes.code import Arrived
from mpicoded.codes.uncoded import Uncoded


class ZeroFill(Uncoded):
    """k data units, and one of them is enough for an answer."""

    name = "zerofill"
    over_segments = False

    def decodable(self, arrived: Arrived) -> bool:
        """True if anything arrived; of nothing but zeros there is nothing to learn."""
        return bool(arrived.any())

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """(k, …) -> zeros (k, …)."""
        return torch.zeros_like(y)
