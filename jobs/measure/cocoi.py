"""CoCoI's model of a coded convolution and its k°, for its own layers: `python cocoi.py`.

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
class ShiftedExponential:
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

    master: ShiftedExponential
    receive: ShiftedExponential
    compute: ShiftedExponential
    send: ShiftedExponential


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


def expected(layer: Layer, laws: Laws, n: int) -> Floats:
    """Return the expected seconds for k = 1 … n, (n,); the last is uncoded, without the leader."""
    rest = np.random.default_rng(0).exponential(size=(3, DRAWS, n))
    seconds = np.empty(n)
    for k in range(1, n + 1):
        times = _worker(layer, laws, k, rest)
        seconds[k - 1] = np.partition(times, k - 1)[:, k - 1].mean()
        if k < n:
            seconds[k - 1] += layer.master(n, k) * laws.master.mean
    return seconds


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


LAYERS = {  # C, H, C', H', W', kernel, stride
    "VGG-16, 224": Layer(64, 224, 64, 224, 224, 3, 1),
    "VGG-16, 56": Layer(256, 56, 256, 56, 56, 3, 1),
    "ResNet, strided": Layer(64, 56, 128, 28, 28, 3, 2),
}
ONE = ShiftedExponential(1.1415e-9, 1.375e9)
TWO = ShiftedExponential(5e-9, 5e9), ShiftedExponential(1e-7, 1e6), ShiftedExponential(1e-8, 1e9)
LAWS = {  # moment fits of their stored experiments; their simulation
    "Pi 4B": Laws(
        ONE, ShiftedExponential(7.83e-7, 6.644e5), ONE, ShiftedExponential(3.318e-7, 1.197e6)
    ),
    "simulation": Laws(*TWO, TWO[1]),
}


def main(n: int = 10) -> None:
    """Print the best k by Monte Carlo and k° of every layer, and their seconds."""
    for laws, name in ((laws, name) for laws in LAWS for name in LAYERS):
        seconds = expected(LAYERS[name], LAWS[laws], n)
        best, k = int(np.argmin(seconds[:-1])) + 1, closed_form(LAYERS[name], LAWS[laws], n)
        print(
            f"{laws:10}  {name:15}  best k {best}: {seconds[best - 1]:6.3f} s   "
            f"k° {k}: {seconds[k - 1]:6.3f} s   uncoded {seconds[-1]:6.3f} s"
        )


if __name__ == "__main__":
    main()
