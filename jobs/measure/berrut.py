"""What interpolation codes are worth: Berrut's (BACC, ApproxIFER) and nested regression (NeRCC).

    python jobs/measure/berrut.py mnist        # the reference's table: K = 2, 4, 8, 12, S = 0 … 3
    python jobs/measure/berrut.py images       # K = 8, S = 1: MNIST, Fashion-MNIST, CIFAR-10
    python jobs/measure/berrut.py smoothing    # NeRCC's parameters, on training images

Full test sets, dealt into groups of K once by seed 7 (what is left over of 10,000 is left out);
every set of S lost workers, each counted the same. So a figure has no chance in it but the groups'.
"All answers" is the mean over all K of a group, as ApproxIFER counts; A_d is of the answers whose
own worker is lost, which a code without systematic nodes does not have. One thread; `mnist` takes a
minute, `images` ten, `smoothing` twenty.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mpicoded import datasets, models
from mpicoded.codes import Arrived
from mpicoded.codes.berrut import Berrut
from mpicoded.codes.interpolation import NODES, Angles, Floats, Interpolation
from mpicoded.codes.nercc import Nercc

ROOT = Path(__file__).parents[2]
SEED, CHUNK = 7, 500

# The reference "Learned and approximate codes", section 8: (q = N-1, q = N), S = 0 … 3.
REFERENCE = {
    2: ((96.8, 81.1), (85.3, 85.9), (87.4, 23.2), (32.6, 84.4)),
    4: ((95.0, 71.0), (71.5, 84.4), (80.5, 78.2), (75.3, 75.9)),
    8: ((86.1, 70.0), (68.5, 85.0), (82.0, 80.4), (77.1, 78.2)),
    12: ((86.1, 69.7), (67.0, 84.6), (81.3, 82.7), (79.6, 79.5)),
}
# ApproxIFER, ResNet-18, K = 8, S = 1
PUBLISHED = {"mnist": 87.2, "fashion-mnist": 74.0, "cifar-10": 77.6}


@dataclass(frozen=True)
class Base:
    """A base model, its data set, and how pixels become its numbers."""

    model: str
    weights: str
    data: str
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    @property
    def file(self) -> Path | None:
        """Where the weights are: in data/ or in MPICODED_DATA."""
        homes = (ROOT / "data", Path(os.environ.get("MPICODED_DATA", ROOT / "data")))
        return next((h / self.weights for h in homes if (h / self.weights).exists()), None)

    @cached_property
    def network(self) -> nn.Module:
        """The network with its weights, in eval mode."""
        network = models.build(self.model, {})
        models.load_weights(network, self.file or ROOT / "data" / self.weights)
        return network

    def run(self, x: Tensor) -> Tensor:
        """Images (…, C, H, W) -> logits (…, classes)."""
        with torch.inference_mode():
            logits = [self.network(part) for part in x.flatten(0, -4).split(CHUNK)]
        return torch.cat(logits).unflatten(0, x.shape[:-3])

    def groups(self, part: str, k: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """Images (k, groups, C, H, W) and labels (k, groups), drawn once by the seed."""
        data = datasets.load(self.data, part, size=self.size, folder=ROOT)
        order = np.random.default_rng(SEED).permutation(len(data.images))[:limit]
        order = order[: len(order) // k * k].reshape(-1, k).T
        assert data.labels is not None
        x = torch.from_numpy(data.images[order.ravel()]).float() / 255
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return ((x - mean) / std).unflatten(0, order.shape), torch.from_numpy(data.labels[order])


MLP = Base("base-mlp", "base-mlp/mnist.t7", "mnist")
LENET = Base("lenet5", "lenet5-fashion.safetensors", "fashion-mnist", (32, 32), (0.286,), (0.353,))
NORM = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
VGG = Base("vgg9", "vgg9-cifar.safetensors", "cifar-10", **NORM)
RESNET = Base("resnet20", "resnet20-cifar.safetensors", "cifar-10", **NORM)


class Naive(Berrut):
    """The formula as it stands, 0 / 0 where a worker's node is a datum's."""

    def encoding(self, at: Angles, nodes: Angles) -> Floats:
        """Weights (at, nodes) of the inputs."""
        apart = self.nodes.cosines(at)[:, None] - self.nodes.cosines(nodes)
        with np.errstate(divide="ignore", invalid="ignore"):
            weights = (-1.0) ** np.arange(len(nodes)) / apart
            return np.asarray(weights / weights.sum(1, keepdims=True), np.float64)

    decoding = encoding


def patterns(n: int, lost: int) -> Iterator[Arrived]:
    """Yield every pattern with just so many of n units lost."""
    for gone in combinations(range(n), lost):
        arrived = np.ones(n, bool)
        arrived[list(gone)] = False
        yield arrived


def outputs(base: Base, code: Interpolation, x: Tensor, own: Tensor) -> Tensor:
    """Unit outputs (n, groups, classes); data units' are ``own`` (k, groups, classes)."""
    coded = base.run(code.parity(x))
    return torch.cat((own, coded)) if code.systematic else coded


def right(code: Interpolation, y: Tensor, labels: Tensor, lost: int) -> Floats:
    """Share of right answers for every pattern and data unit, (patterns, k), in percent."""
    found = [
        (code.decode(y, arrived).argmax(2) == labels).float().mean(1)
        for arrived in patterns(code.n, lost)
    ]
    return 100 * np.asarray(torch.stack(found).numpy(), np.float64)


def mnist() -> None:
    """The reference's table, with and without care for collisions."""
    print("MNIST, Base-MLP with the published weights: all answers in %, (reference), S lost")
    for k, told in REFERENCE.items():
        x, labels = MLP.groups("test", k)
        own = MLP.run(x)
        if k == 2:
            print(f"A_a = {accuracy(own, labels):.2f} %")
        for s, pair in enumerate(told):
            cells = [
                cell(k, s, nodes, reference, x, labels)
                for nodes, reference in zip(("N-1", "N"), pair, strict=True)
            ]
            print(f"K = {k:2d}  S = {s}   {cells[0]}   {cells[1]}", flush=True)


def cell(k: int, s: int, nodes: str, reference: float, x: Tensor, labels: Tensor) -> str:
    """Return one cell of the table as words."""
    own = torch.empty(0)
    code = Berrut(k, s, nodes)
    value = right(code, outputs(MLP, code, x, own), labels, s).mean()
    text = f"q = {nodes:3s} {value:5.1f} ({reference}, {value - reference:+.1f})"
    if np.intersect1d(code.nodes.data, code.nodes.workers).size:
        naive = Naive(k, s, nodes)
        value = right(naive, outputs(MLP, naive, x, own), labels, s).mean()
        text += f" with care; 0 / 0 {value:.1f} ({value - reference:+.1f})"
    return text


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers, in percent."""
    return 100 * float((logits.argmax(-1) == labels).float().mean())


def images(k: int = 8, r: int = 1) -> None:
    """Berrut's and NeRCC's answers beside what doing nothing gives."""
    for base in (MLP, LENET, VGG, RESNET):
        if base.file is None:
            print(f"\n{base.weights} is not there: left out")
            continue
        x, labels = base.groups("test", k)
        own = base.run(x)
        a = accuracy(own, labels)
        print(f"\n{base.data}, {base.model}: A_a = {a:.2f} % of {labels.numel()} images; K = {k},")
        print(f"n = {k + r} workers; published ApproxIFER {PUBLISHED[base.data]} (ResNet-18)")
        print(HEADING)
        for kind, nodes in product((Berrut, Nercc), NODES):
            code = kind(k, r, nodes)
            y = outputs(base, code, x, own)
            whole, lost = right(code, y, labels, 0), right(code, y, labels, 1)
            print(row(f"{code.name} {nodes}", whole, lost, code.systematic), flush=True)
        for name, lost in baselines(k, a):
            print(row(name, np.full((1, k), a), lost, True), flush=True)


HEADING = (
    "all answers in %           none lost   one worker lost   one with data lost   its answer, A_d"
)


def row(name: str, whole: Floats, lost: Floats, systematic: bool) -> str:
    """Return one line; ``lost`` (n, k) is by worker lost and data unit."""
    k = lost.shape[1]
    with_data = lost[:k] if systematic else lost
    missing = f"{np.diag(lost[:k]).mean():.2f}" if systematic else "-"
    means = (whole.mean(), lost.mean(), with_data.mean())
    return f"{name:20s} {means[0]:14.2f} {means[1]:17.2f} {means[2]:20.2f} {missing:>17s}"


def baselines(k: int, a: float) -> Iterator[tuple[str, Floats]]:
    """Yield what is right, (n, k), without a code: a missing answer is a wrong one."""
    uncoded = np.full((k, k), a)
    np.fill_diagonal(uncoded, 0)
    yield f"uncoded, n = {k}", uncoded
    copied = np.vstack((uncoded, np.full((1, k), a)))
    copied[0] = a  # unit 0 has a copy
    yield f"one copy, n = {k + 1}", copied
    yield f"all copied, n = {2 * k}", np.full((2 * k, k), a)


def smoothing(k: int = 8, r: int = 1, limit: int = 2000) -> None:
    """NeRCC's parameters: one unit lost, all answers, for each base model, on training images."""
    values = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
    print(f"all answers in %, one of n = {k + r} lost; {limit} training images; q = N")
    for base in (MLP, LENET, VGG):
        x, labels = base.groups("train", k, limit)
        print(f"{base.data}, {base.model}; decoder = " + "".join(f"{v:8g}" for v in values))
        for encoder in values:
            y = outputs(base, Nercc(k, r, "N", encoder), x, torch.empty(0))
            found = [
                right(Nercc(k, r, "N", encoder, decoder), y, labels, 1).mean() for decoder in values
            ]
            print(f"encoder = {encoder:8g}    " + "".join(f"{v:8.1f}" for v in found), flush=True)


def main() -> None:
    """Print what was asked for."""
    whats = {"mnist": mnist, "images": images, "smoothing": smoothing}
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=whats)
    torch.set_num_threads(1)
    whats[parser.parse_args().what]()


if __name__ == "__main__":
    main()
