"""How good a code is: every erasure pattern, on the whole test part, beside doing without it.

    mpicoded evaluate jobs/quickstart.toml

Words are those of the reference "Learned and approximate codes", section 2: available accuracy A_a
of the unsplit model; degraded accuracy A_d, of queries with holes, against the labels; recovery,
the share of those queries with the prediction that the unsplit model makes. A drop is A_a - A_d, in
points. Every unit runs the very program that a worker runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mpicoded import units
from mpicoded.codes import Arrived, Code
from mpicoded.codes.erasures import erasures
from mpicoded.deploy import deploy, images
from mpicoded.errors import DataError
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.threads import use_threads

if TYPE_CHECKING:
    from mpicoded.job import Job

CHUNK = 360  # images at once, about
COLUMNS = (
    "data units missing", "filled by", "patterns", "A_d", "drop", "worst drop", "recovery",
)  # fmt: skip
ROUNDS, WARM_UP = 200, 20  # of a timing


@dataclass(frozen=True)
class Outcome:
    """One way to fill holes under one erasure pattern; shares of all queries, from 0 to 1."""

    way: str
    arrived: Arrived  # (n,)
    missing: int  # data units
    accuracy: float
    recovery: float


@dataclass(frozen=True)
class Cost:
    """Of an encoder or decoder for one query: numbers trained, FLOPs, seconds (quartiles)."""

    parameters: int
    flops: int
    seconds: tuple[float, float, float]


@dataclass(frozen=True)
class Evaluation:
    """``same_bits``: with every data unit here the answers are the uncoded split's, bit for bit.

    ``same_predictions``: and their predictions the unsplit model's.
    """

    code: str
    queries: int
    available: float
    same_bits: bool
    same_predictions: bool
    outcomes: tuple[Outcome, ...]
    encoder: Cost
    decoder: Cost
    unit_flops: int  # of the largest data unit

    def drops(self, way: str, missing: int) -> npt.NDArray[np.float64]:
        """Drop in points of every pattern with ``missing`` data units lost, (patterns,)."""
        return np.array([100 * (self.available - o.accuracy) for o in self._of(way, missing)])

    def recovery(self, way: str, missing: int) -> float:
        """Mean recovery over the patterns with ``missing`` data units lost."""
        return float(np.mean([o.recovery for o in self._of(way, missing)]))

    def _of(self, way: str, missing: int) -> list[Outcome]:
        return [o for o in self.outcomes if (o.way, o.missing) == (way, missing)]

    def tables(self) -> tuple[Table, Table]:
        """Return accuracy by what is missing, and what the code costs."""
        return self._accuracy(), self._costs()

    def _accuracy(self) -> Table:
        title = f"{self.code}: {self.queries} queries, A_a = {100 * self.available:.2f} %"
        said = {True: "the same", False: "NOT the same"}
        caption = (
            f"no data unit missing: bits {said[self.same_bits]} as uncoded, predictions "
            f"{said[self.same_predictions]} as unsplit"
        )
        table = Table(title=title, caption=caption)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for way, missing in dict.fromkeys((o.way, o.missing) for o in self.outcomes):
            drops = self.drops(way, missing)
            table.add_row(
                str(missing),
                way,
                str(len(drops)),
                f"{100 * self.available - drops.mean():.2f} %",
                f"{drops.mean():.2f}",
                f"{drops.max():.2f}",
                f"{100 * self.recovery(way, missing):.2f} %",
            )
        return table

    def _costs(self) -> Table:
        table = Table(title="one query")
        for column in ("", "parameters", "kFLOPs", "of a data unit", "ms (quartiles)"):
            table.add_column(column, justify="right")
        for name, cost in (("encoder", self.encoder), ("decoder", self.decoder)):
            low, median, high = (1e3 * s for s in cost.seconds)
            table.add_row(
                name,
                f"{cost.parameters:,}",
                f"{cost.flops / 1e3:,.1f}",
                f"{cost.flops / self.unit_flops:.2f}" if self.unit_flops else "–",
                f"{median:.3f} ({low:.3f} … {high:.3f})",
            )
        return table


def evaluate(job: Job) -> Evaluation:
    """Measure the job's code on the whole test part of its input.

    Raises
    ------
    DataError
        If the test part has no labels; and whatever else does not fit in the job.
    """
    data = images(job, "test")
    if data.labels is None:
        raise DataError(f"{job.input.data!r} has no labels to measure accuracy by")
    deployment = deploy(job, tuple(data.images.shape[1:]))
    threads = torch.get_num_threads()
    use_threads(job.runtime.threads)
    try:
        with torch.inference_mode():
            x = deployment.numbers(torch.from_numpy(data.images))
            return _evaluate(deployment, x, torch.from_numpy(data.labels))
    finally:
        torch.set_num_threads(threads)


def _evaluate(deployment: Deployment, x: Tensor, labels: Tensor) -> Evaluation:
    query, code = deployment.plan.batch, deployment.codes[0]
    count = len(x) // query * query  # whole queries only
    if not count:
        raise DataError(f"{len(x)} test images do not make one query of {query}: lower batch")
    parts = [_Part(deployment, p) for p in torch.split(x[:count], query * -(-CHUNK // query))]
    alone = torch.cat([part.alone for part in parts])  # (N,)
    complete = [arrived for arrived in erasures(code.n, code.r) if code.complete(arrived)]
    outcomes = []
    for way, arrived in _cases(code):
        found = torch.cat([part.predict(arrived, way) for part in parts])
        missing = int((~arrived[: code.k]).sum())
        shares = (float((found == truth).float().mean()) for truth in (labels[:count], alone))
        outcomes.append(Outcome(way, arrived, missing, *shares))
    return Evaluation(
        code=repr(code),
        queries=count // query,
        available=float((alone == labels[:count]).float().mean()),
        same_bits=all(part.same_bits(arrived) for part in parts for arrived in complete),
        same_predictions=all(
            torch.equal(part.predict(arrived, code.name), part.alone)
            for part in parts
            for arrived in complete
        ),
        outcomes=tuple(sorted(outcomes, key=lambda outcome: outcome.missing)),
        encoder=_encoder(deployment, x[:query]),
        decoder=_decoder(deployment, x[:query]),
        unit_flops=max(deployment.plan.flops(0, unit) for unit in range(code.k)),
    )


def _cases(code: Code) -> Iterator[tuple[str, Arrived]]:
    """Yield every way to fill with every pattern that leaves it something to fill."""
    for arrived in erasures(code.n, code.r):
        if arrived[: code.k].all():
            continue
        if code.decodable(arrived):
            yield code.name, arrived
        if arrived[code.k :].all():  # the others look at no parity unit
            yield from ((way, arrived) for way in BASELINES)


def _zero(y: Tensor, arrived: Arrived) -> Tensor:
    """Zero for what is missing, as ADCNN (Zhang et al., ICPP 2020) does."""
    here = torch.from_numpy(arrived[: len(y)]).view(-1, *[1] * (y.dim() - 1))
    return y * here  # (k, …)


def _mean(y: Tensor, arrived: Arrived) -> Tensor:
    """The mean of the data units that are here for each that is not."""
    here = torch.from_numpy(arrived[: len(y)]).view(-1, *[1] * (y.dim() - 1))
    return torch.where(here, y, (y * here).sum(0) / max(1, int(here.sum())))  # (k, …)


BASELINES: dict[str, Callable[[Tensor, Arrived], Tensor]] = {"zero-fill": _zero, "mean": _mean}


class _Part:
    """Some images (B, C, H, W), and what the units of the first stage make of them."""

    def __init__(self, deployment: Deployment, x: Tensor) -> None:
        self.deployment = deployment
        self.programs = deployment.ready_programs
        self.alone = deployment.alone(x).argmax(1)  # (B,)
        self.first = self._outputs(0, x)  # (n, B, C, h, w)

    def predict(self, arrived: Arrived, way: str) -> Tensor:
        """Predictions (B,) when of every stage only ``arrived`` came."""
        head, result = self.deployment.ready_head, self._map(arrived, way)
        logits: Tensor = result if head is None else head(result)
        return logits.argmax(1)

    def same_bits(self, arrived: Arrived) -> bool:
        """Whether decoding changes nothing when no data unit is missing."""
        code = self.deployment.codes[0]
        return torch.equal(code.decode(self.first, arrived), self.first[: code.k])

    def _map(self, arrived: Arrived, way: str) -> Tensor:
        """Return the last stage's output map (B, C, H, W)."""
        result = self.first
        for s, code in enumerate(self.deployment.codes):
            stage = self.deployment.plan.stages[s]
            y = self._outputs(s, result) if s else self.first
            fill = BASELINES.get(way)
            data = code.decode(y, arrived) if fill is None else fill(y[: code.k], arrived)
            result = units.stitch([units.trim(d, stage, i) for i, d in enumerate(data)], stage)
        return result

    def _outputs(self, s: int, x: Tensor) -> Tensor:
        """Run all units of a stage on its input map: (n, B, C, h, w)."""
        inputs = self.deployment.inputs(s, x, self.deployment.parity(s, x))
        outputs = [run(u) for run, u in zip(self.programs[s], inputs, strict=True)]
        return units.stack(outputs, self.deployment.plan.stages[s])


def _encoder(deployment: Deployment, x: Tensor) -> Cost:
    parameters = _parameters(deployment.codes[0], "encoder")
    return _cost(parameters, lambda: deployment.parity(0, x))


def _decoder(deployment: Deployment, x: Tensor) -> Cost:
    """Cost of decoding with as many data units missing as the code is made for."""
    code, part = deployment.codes[0], _Part(deployment, x)
    arrived = max(
        (a for a in erasures(code.n, code.r) if code.decodable(a)),
        key=lambda a: int((~a[: code.k]).sum()),
    )
    return _cost(_parameters(code, "decoder"), lambda: code.decode(part.first, arrived))


def _parameters(code: Code, part: str) -> int:
    network = getattr(code, part, None)
    return sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0


def _cost(parameters: int, action: Callable[[], object]) -> Cost:
    with FlopCounterMode(display=False) as counter:
        action()
    seconds = []
    for _ in range(WARM_UP + ROUNDS):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    low, median, high = np.quantile(seconds[WARM_UP:], (0.25, 0.5, 0.75)).tolist()
    return Cost(parameters, counter.get_total_flops(), (low, median, high))
