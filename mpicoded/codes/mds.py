"""The exact code: any k of the n units give every answer, where a stage is linear.

Input coding (CoCoI: Liu, Huang, Tang, arXiv 2501.06856), systematic: parity windows, and so their
outputs, are sums of the k windows with factors C (r, k).

    windows    0   1   2   3    0+1+2+3            C = 1 1 1 1
    outputs    y0  y1  –   y3   y0+y1+y2+y3        y2 = p - y0 - y1 - y3

Filter coding, where a stage is split by output channels: parity *filters* are sums of the others,
made once when the job is loaded, and every unit reads the map as it is. Nothing is encoded.

A stage is F(x) = A x + c, and a worker runs all of it, its fused kernels as they are: a sum of
outputs with factors g holds c (sum of g) times and a coded output once, which decoding mends. What
is lost is solved for in float64; digits: :mod:`mpicoded.codes.generator`.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mpicoded.codes.code import Arrived, Code, CodeRequest
from mpicoded.codes.generator import Matrix, factors, parity_matrix
from mpicoded.codes.options import read
from mpicoded.errors import PlanError
from mpicoded.geometry import Range
from mpicoded.network.filters import Filters
from mpicoded.network.graph import Chain, Head, whole_network
from mpicoded.network.linear import why_not_linear
from mpicoded.network.pieces import stage_ops
from mpicoded.network.program import Program
from mpicoded.plan import Stage
from mpicoded.split import SPLITS

CHUNK = 1 << 14  # numbers of each unit that are solved for at once


class Mds(Code):
    """Survives any r losses; ``constant`` (1, …) is c, a unit's output for zeros, None if 0."""

    name = "mds"

    def __init__(self, k: int, r: int, constant: Tensor | None = None) -> None:
        super().__init__(k, r)
        self.constant = constant
        self._known: dict[bytes, Matrix] = {}

    @cached_property
    def matrix(self) -> Matrix:
        """Return C (r, k), the factors of parity units."""
        return parity_matrix(self.k, self.r)

    def exact(self, arrived: Arrived) -> bool:
        """True if decodable: the answer is right, but for rounding."""
        return self.decodable(arrived)

    def used(self, arrived: Arrived) -> Arrived:
        """Return the data that arrived, and as many parity units as data is missing."""
        used = arrived.copy()
        used[self.k :] = (self._factors(arrived) != 0).any(0)[self.k :]
        return used

    def parity(self, x: Tensor) -> Tensor:
        """Data units (k, …) -> parity units (r, …)."""
        coded: Tensor = torch.tensordot(torch.tensor(self.matrix).to(x), x, 1)
        return coded

    def decode(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Decode as :meth:`Code.decode`, with one copy less: :meth:`fill` reads no lost unit."""
        if self.decodable(arrived) and not arrived[: self.k].all():
            return self.fill(y, arrived)
        return super().decode(y, arrived)

    def fill(self, y: Tensor, arrived: Arrived) -> Tensor:
        """Unit outputs (n, …) -> data outputs (k, …), solved for where they are missing."""
        data, made = y[: self.k].clone(), torch.from_numpy(self._factors(arrived))  # (lost, n)
        used = torch.nonzero(made.any(0)).flatten()  # (k,)
        few, flat = made[:, used].to(y.device), y.flatten(1)  # (lost, k), (n, N)
        parts = [few @ part[used].double() for part in torch.split(flat, CHUNK, 1)]  # in the cache
        solved = torch.cat(parts, 1).reshape(-1, *y.shape[1:])
        if self.constant is not None:
            rest = 1 - few.sum(1)
            solved += rest.reshape(-1, *[1] * (y.dim() - 1)) * self.constant.to(solved)
        data[torch.from_numpy(~arrived[: self.k])] = solved.to(y.dtype)
        return data

    def _factors(self, arrived: Arrived) -> Matrix:
        """Return how the lost data is made of the units, (lost, n)."""
        key = arrived.tobytes()
        if key not in self._known:
            lost, parities = np.flatnonzero(~arrived[: self.k]), np.flatnonzero(arrived[self.k :])
            self._known[key] = np.zeros((0, self.n))
            if 0 < len(lost) <= len(parities):
                self._known[key] = factors(self.matrix, tuple(lost), tuple(parities))
        return self._known[key]


class FilterMds(Mds):
    """The same for groups of output channels: parity units run sums of filters."""

    codes_filters = True

    def __init__(self, k: int, r: int, filters: Filters, groups: tuple[Range, ...]) -> None:
        super().__init__(k, r)
        self.filters, self.groups = filters, groups

    def worker_model(self, unit: int, base: Program | Head) -> Program | Head:
        """Return the program of a parity unit's filters."""
        return self.filters.combined(self.groups, self.matrix[unit - self.k].tolist())


def build(request: CodeRequest) -> Code:
    """Return the code; PlanError if the stage is not linear, shards differ, or digits are lost."""
    read(Mds.name, request, {})
    stage, chain = request.stage, request.chain
    assert chain is not None, "exact codes look into the stage"
    if stage.split == "batch":
        code = Mds(request.k, request.r, _network_constant(chain))
    elif stage.split == "channels":
        groups = tuple(s.channels for s in stage.shards if s.channels)
        filters = Filters.of(chain, stage.first, stage.last)
        code = FilterMds(request.k, request.r, filters, groups)
    else:
        code = Mds(request.k, request.r, _stage_constant(chain, stage))
    assert code.matrix.size  # now, not with the first query
    return code


def _network_constant(chain: Chain) -> Tensor:
    """Return the whole network's output for an image of zeros, (1, …)."""
    network = whole_network(chain)
    if why := why_not_linear(network.ops, network.entry):
        raise PlanError(
            f"code mds: the network is not linear, {why}. A code for images of such a network is "
            'learned ("parity", "berrut"); or let stages be linear: split = "width" and '
            "linear = true in [plan]"
        )
    result = network(torch.zeros(1, *chain.input_shape))
    assert isinstance(result, Tensor)
    return result.detach()


def _stage_constant(chain: Chain, stage: Stage) -> Tensor:
    """Return the stage's output for a window of zeros, (1, C', h, w)."""
    cut = (stage.grid[0] > 1, stage.grid[1] > 1)
    ops, entry = stage_ops(chain, stage.first, stage.last), chain.blocks[stage.first].entry
    if why := why_not_linear(ops, entry, cut):
        raise PlanError(
            f"code mds: stage {stage.name} is not linear, {why}. With linear = true in [plan] "
            "every stage is one convolution and the leader runs what lies between; or use a code "
            'that learns, or "replication"'
        )
    if any((s.writes.rows.size, s.writes.cols.size) != stage.unit_output for s in stage.shards):
        raise PlanError(_uneven(stage))
    program = SPLITS[stage.split].program(chain, stage, None)
    shape = [axis.size for axis in stage.windows[0]]
    return program(torch.zeros(1, stage.input_shape[0], *shape)).detach()


def _uneven(stage: Stage) -> str:
    boxes = [shard.writes for shard in stage.shards]
    small, large = (each(boxes, key=lambda box: box.area) for each in (min, max))
    sizes = [f"{box.rows.size} x {box.cols.size}" for box in (large, small)]
    return (
        f"code mds: stage {stage.name} has shards of {sizes[0]} and of {sizes[1]} positions, and "
        "sums need one size: linear = true in [plan] makes them so (leave out weights)"
    )
