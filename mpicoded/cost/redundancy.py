"""How many of n workers a coded convolution should wait for: the model of CoCoI, and its k.

CoCoI (Liu, Huang, Tang, arXiv 2501.06856): an amount N of work or bytes takes a shift and a random
rest, T = N theta + Exp(mean N / mu). A worker receives, computes and sends; the layer ends with the
k-th answer of n, between encoding and decoding on the leader:

    T(k) = (N_enc + N_dec)(theta + 1/mu of the leader) + k-th smallest of n (T_rec + T_cmp + T_sen)

:func:`expected` draws it, with the same random numbers for every k, so that differences are not
noise. :func:`surrogate` is the closed form L(k), where the k-th smallest of a sum is replaced by
the sum of the k-th smallest; its minimum, :func:`closed_form`, is 0 to 2 too small.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, log

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
DRAWS = 20_000
GRID = 2000  # points of the search for the minimum of L


@dataclass(frozen=True)
class Law:
    """``theta`` seconds a unit at the least; ``mu`` units a second of the random rest."""

    theta: float
    mu: float

    @property
    def mean(self) -> float:
        """Seconds a unit on average."""
        return self.theta + 1 / self.mu


@dataclass(frozen=True)
class Laws:
    """Of the leader's and a worker's FLOPs, and of the bytes to and from a worker."""

    master: Law
    receive: Law
    compute: Law
    send: Law


@dataclass(frozen=True)
class Layer:
    """A convolution: C, H of its input (padded), C', H', W' of its output, kernel, stride."""

    channels: int
    height: int
    filters: int
    rows: int
    cols: int
    kernel: int
    stride: int

    def receive(self, k: float) -> float:
        """Bytes to a worker that has one of k parts, float32."""
        width = self.kernel + (self.cols / k - 1) * self.stride
        return 4 * self.channels * self.height * width

    def compute(self, k: float) -> float:
        """FLOPs of a worker."""
        taps = self.channels * self.kernel**2
        return 2 * self.filters * self.rows * self.cols / k * taps

    def send(self, k: float) -> float:
        """Bytes from a worker, float32."""
        return 4 * self.filters * self.rows * self.cols / k

    def master(self, n: int, k: int) -> float:
        """FLOPs of the leader: encoding n parts and decoding k, as if nothing was systematic."""
        return 2 * k * n * self.receive(k) / 4 + 2 * k * k * self.send(k) / 4


def expected(
    layer: Layer, laws: Laws, n: int, draws: int = DRAWS, failed: int = 0, seed: int = 0
) -> Floats:
    """Return the expected seconds for k = 1 … n, (n,); the last is uncoded, without the leader.

    ``failed`` workers, the last drawn, never answer: it is infinite for k > n - failed.
    """
    rest = np.random.default_rng(seed).exponential(size=(3, draws, n))
    seconds = np.full(n, np.inf)
    for k in range(1, n - failed + 1):
        times = _worker(layer, laws, k, rest)[:, : n - failed]
        seconds[k - 1] = np.partition(times, k - 1)[:, k - 1].mean()
        if k < n:
            seconds[k - 1] += layer.master(n, k) * laws.master.mean
    return seconds


def replicated(layer: Layer, laws: Laws, n: int, draws: int = DRAWS, seed: int = 0) -> float:
    """Return the expected seconds of n/2 parts, each on two workers."""
    rest = np.random.default_rng(seed).exponential(size=(3, draws, n // 2 * 2))
    times = _worker(layer, laws, n // 2, rest)
    return float(times.reshape(draws, 2, -1).min(1).max(1).mean())


def _worker(layer: Layer, laws: Laws, k: int, rest: Floats) -> Floats:
    """Return the seconds of every worker in every draw; ``rest`` (3, draws, n) are Exp(1)."""
    works = (layer.receive(k), layer.compute(k), layer.send(k))
    parts = zip(works, (laws.receive, laws.compute, laws.send), rest, strict=True)
    return np.asarray(sum(work * (law.theta + each / law.mu) for work, law, each in parts))


def surrogate(layer: Layer, laws: Laws, n: int, k: float) -> float:
    """Return L(k), CoCoI's closed form, in seconds; for real k in [1, n)."""
    overlap = layer.channels * layer.height * (layer.kernel - layer.stride)
    map_in = layer.channels * layer.height * layer.cols * layer.stride
    map_out = layer.filters * layer.rows * layer.cols
    flops = layer.compute(1)
    leader, rec, cmp, sen = laws.master, laws.receive, laws.compute, laws.send
    h1 = 2 * leader.mean * (n * overlap + map_out)
    h2 = 4 * map_in * rec.theta + 4 * map_out * sen.theta + flops * cmp.theta
    h3 = 4 * map_in / rec.mu + 4 * map_out / sen.mu + flops / cmp.mu
    h4 = 4 * overlap / rec.mu
    fixed = 2 * n * map_in * leader.mean + 4 * overlap * rec.theta
    return h1 * k + h2 / k + (h3 / k + h4) * log(n / (n - k)) + fixed


def closed_form(layer: Layer, laws: Laws, n: int) -> int:
    """Return k°: where L is least over real k, rounded to the better side, n - 1 at the most."""
    if n < 3:
        return 1
    grid = np.linspace(1, n, GRID, endpoint=False)
    least = float(min(grid, key=lambda k: surrogate(layer, laws, n, float(k))))
    sides = {min(max(side, 1), n - 1) for side in (floor(least), ceil(least))}
    return min(sides, key=lambda k: surrogate(layer, laws, n, k))
