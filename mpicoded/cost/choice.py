"""Plans for every k of n units, priced with stragglers: which k to take on a measured cluster.

The prediction of :mod:`mpicoded.cost.model` is what a query takes when nothing goes wrong; then no
redundancy ever pays. So each transfer and each computation is lengthened by a random share of
itself, exponential with mean ``straggling`` (0.5: half as long again on average), and a stage ends
with its k-th answer. All k get the same random numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import numpy as np

from mpicoded.cluster import Cluster
from mpicoded.cost.exchange import Load
from mpicoded.cost.model import CostModel
from mpicoded.cost.redundancy import DRAWS, Floats, Law, Laws, Layer
from mpicoded.network.graph import Block, Chain
from mpicoded.network.ops import Conv
from mpicoded.plan import Plan, aligned


@dataclass(frozen=True)
class Choice:
    """``seconds`` of a query for each k; ``refused`` says why there is none for another k.

    ``closed`` is CoCoI's k° of every stage that is a convolution, by its name; ``replicated`` the
    seconds of n/2 parts twice, where that was worked out.
    """

    n: int
    seconds: Mapping[int, float]
    refused: Mapping[int, str]
    closed: Mapping[str, int]
    replicated: float | None = None

    @property
    def best(self) -> int:
        """The k with the least seconds."""
        return min(self.seconds, key=lambda k: self.seconds[k])

    def table(self) -> str:
        """Return it as text: a line for every k, then the best one and k°."""
        rows = [("k", "r", "seconds of a query", "")]
        for k in range(1, self.n + 1):
            seconds = self.seconds.get(k, inf)
            note = "uncoded" if k == self.n else ""
            number = f"{seconds:.4f}" if k in self.seconds else "–"
            rows.append((f"{k}", f"{self.n - k}", number, "best" if k == self.best else note))
        lines = [line.rstrip() for line in aligned(rows)]
        if self.replicated is not None:
            lines.append(f"replication, {self.n // 2} parts twice: {self.replicated:.4f}")
        lines += [f"k° of {name} (CoCoI, closed form): {k}" for name, k in self.closed.items()]
        whys = dict.fromkeys(f"no plan with k = {k}: {why}" for k, why in self.refused.items())
        return "\n".join([*lines, *whys])


def delayed(model: CostModel, plan: Plan, straggling: float, seed: int = 0) -> float:
    """Return the expected seconds of a query by ``plan`` whose units straggle."""
    rest = np.random.default_rng(seed).exponential(size=(3, DRAWS, plan.n))
    stages = range(len(plan.stages))
    own = model.predict(plan)
    return own.rest + own.head + sum(_stage(model, plan, s, straggling * rest) for s in stages)


def _stage(model: CostModel, plan: Plan, s: int, rest: Floats) -> float:
    loads, times = model.exchange(plan, s)
    shares = np.array([_seconds(load, model.cluster) for load in loads]).T  # (3, n)
    arrived = np.array([each.arrived for each in times]) + (shares[:, None] * rest).sum(0)
    last = np.partition(arrived, plan.k - 1)[:, plan.k - 1].mean()  # of (draws, n)
    decode = model.stage(plan, s).decode
    if plan.r:  # of the r units that are not waited for, some are data; each is a sum of k
        lost = plan.r * plan.k / plan.n
        decode += lost * plan.k * plan.bytes_out(s, plan.k, 1) / model.cluster.devices[0].pack
    return float(last) + decode


def _seconds(load: Load, cluster: Cluster) -> tuple[float, float, float]:
    """Return how long a unit travels, is computed, and its answer travels, on a free link."""
    leader, link = cluster.links[0], cluster.links[load.rank]
    return (
        load.bytes_in / min(leader.sends, link.receives),
        load.compute,
        load.bytes_out / min(link.sends, leader.receives),
    )


def laws(cluster: Cluster, straggling: float) -> Laws:
    """Return the leader's laws and those of an average worker of a measured cluster."""
    workers = cluster.workers
    flops = float(np.mean([cluster.devices[p].flops for p in workers]))
    down = min(cluster.links[0].sends, float(np.mean([cluster.links[p].receives for p in workers])))
    up = min(cluster.links[0].receives, float(np.mean([cluster.links[p].sends for p in workers])))
    rest = straggling or 1e-9
    master = cluster.devices[0].flops
    rates = (master, down, flops, up)
    return Laws(*(Law(1 / rate, rate / rest) for rate in rates))


def layer(chain: Chain, block: Block) -> Layer | None:
    """Return the convolution that a block begins with, None if it begins with something else."""
    conv = block.ops[0].layer
    if not isinstance(conv, Conv):
        return None
    (channels, height, _), (filters, rows, cols) = (
        chain.shapes[name] for name in (block.entry, block.ops[0].name)
    )
    window = conv.windows[1]
    padded = height + conv.windows[0].before + conv.windows[0].after
    return Layer(channels, padded, filters, rows, cols, window.span, window.stride)
