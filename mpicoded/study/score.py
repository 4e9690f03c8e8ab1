"""The one scorer of evaluations and calibrations: right answers, and those of the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, nan, sqrt

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mpicoded.classes import agree, classes
from mpicoded.codes import Arrived
from mpicoded.study.evaluation import Outcome, Overall, Row
from mpicoded.study.forward_cache import ForwardCache
from mpicoded.study.schemes import Scheme

Bools = npt.NDArray[np.bool_]
CHUNK = 360  # images at once, about
NORMAL = 1.959964  # two-sided 95 % of a normal distribution


@dataclass(frozen=True)
class Score:
    """Scores of one scheme: of each pattern, of each output of a query, of each query."""

    scheme: Scheme
    patterns: Sequence[Arrived]
    base: Bools  # (outputs, queries): the base model is right
    right: Bools  # (patterns, outputs, queries)
    same: Bools  # (patterns, outputs, queries): the class is the base model's


class Scorer:
    """Score schemes on the same queries, chunk by chunk.

    ``caches`` has the forward passes of the last chunk, one a deployment, since baselines share
    theirs; ``base`` the base model's classes. A single output ``above`` it means class 1.
    """

    def __init__(self, schemes: Sequence[Scheme], above: float | None) -> None:
        self.schemes, self.above = schemes, above
        self.patterns = [[a for a in s.patterns if s.possible(a)] for s in schemes]
        self.caches: dict[int, ForwardCache] = {}
        self.base = np.zeros(0, np.int64)
        self._parts: list[list[tuple[Bools, Bools, Bools]]] = [[] for _ in schemes]

    def chunks(self, count: int) -> tuple[Tensor, ...]:
        """Split the numbers of ``count`` images into chunks of whole queries."""
        query = self.schemes[0].deployment.plan.batch
        return torch.split(torch.arange(count), query * -(-CHUNK // query))

    def add(self, x: Tensor, labels: Tensor) -> None:
        """Score a chunk: images (B, C, H, W) as stored and their labels (B,)."""
        self.caches = {}
        self.base = classes(self.schemes[0].deployment.base(x), self.above)
        for scheme, patterns, parts in zip(self.schemes, self.patterns, self._parts, strict=True):
            cache = self._cache(scheme, x)
            truth, base = scheme.by_query(labels), scheme.by_query(self.base)
            found = np.zeros((len(patterns), *truth.shape), np.int64)
            for row, arrived in zip(found, patterns, strict=True):
                row[:] = cache.predict(scheme, arrived)
            parts.append((agree(base, truth), agree(found, truth), agree(found, base)))

    def scores(self) -> list[Score]:
        """Return the scores of every scheme over all chunks."""
        joined = ([np.concatenate(kind, -1) for kind in zip(*p, strict=True)] for p in self._parts)
        each = zip(self.schemes, self.patterns, joined, strict=True)
        return [Score(scheme, patterns, *arrays) for scheme, patterns, arrays in each]

    def _cache(self, scheme: Scheme, x: Tensor) -> ForwardCache:
        deployment = scheme.deployment
        if id(deployment) not in self.caches:
            known = None if scheme.fill is None else self._known(scheme)
            self.caches[id(deployment)] = ForwardCache(
                deployment, deployment.normalize(x), known, self.above
            )
        return self.caches[id(deployment)]

    def _known(self, baseline: Scheme) -> Tensor | None:
        """Return the outputs of a baseline's data units, if a code has the same units."""
        for s in self.schemes:
            same = s.deployment.plan.stages == baseline.deployment.plan.stages
            if s.fill is None and s.systematic and same:
                return self.caches[id(s.deployment)].data
        return None


def table(score: Score) -> tuple[tuple[Row, ...], tuple[Outcome, ...]]:
    """Return the rows and outcomes of a scheme."""
    found: dict[tuple[int, int], list[tuple[Outcome, npt.NDArray[np.float64]]]] = {}
    for number, arrived in enumerate(score.patterns):
        missing, right = score.scheme.outputs_missing(arrived), score.right[number]
        lost = (score.base * 1.0 - right)[missing].mean(0)  # (queries,): what filling in cost
        key = score.scheme.missing(arrived)
        outcome = Outcome(
            score.scheme.name, arrived, *key,
            accuracy=float(right[missing].mean()),
            drop=100 * float(score.base[missing].mean() - right[missing].mean()),
            recovery=float(score.same[number][missing].mean()),
            group=float(np.where(missing[:, None], right, score.base).mean()),
        )  # fmt: skip
        found.setdefault(key, []).append((outcome, lost))
    rows = tuple(_row(score.scheme, key, *zip(*found[key], strict=True)) for key in sorted(found))
    return rows, tuple(outcome for key in sorted(found) for outcome, _ in found[key])


def _row(
    scheme: Scheme,
    key: tuple[int, int],
    outcomes: Sequence[Outcome],
    losses: Sequence[npt.NDArray[np.float64]],
) -> Row:
    def mean(name: str) -> float:
        return float(np.mean([getattr(outcome, name) for outcome in outcomes]))

    lost = np.mean(losses, 0)  # (queries,), mean over the patterns
    deviation = float(lost.std(ddof=1)) if len(lost) > 1 else nan
    return Row(
        scheme.name, *key,
        patterns=len(outcomes),
        possible=sum(scheme.missing(a) == key for a in scheme.patterns),
        accuracy=mean("accuracy"),
        drop=mean("drop"),
        interval=100 * NORMAL * deviation / sqrt(len(lost)),
        worst=max(outcome.drop for outcome in outcomes),
        recovery=mean("recovery"),
        group=mean("group"),
    )  # fmt: skip


def overall(
    scheme: Scheme, available: float, rows: Sequence[Row], outcomes: Sequence[Outcome], f: float
) -> Overall:
    """Return A_o(f) in both forms of the reference, section 2.

    *Answers*: a share f of the outputs is filled in, (1 - f) A_a + f A_d. A_d is of all sets of
    ``scheme.scenario`` lost units, those of parity alone left out; with one parity unit these are
    the k single losses. Where all outputs are filled in, f is the share of queries with as many
    lost. *Units*: each of the n units is lost with probability f, independently. Patterns that were
    not measured or cannot be filled count as wrong, which is the reference's A_def = 0.
    """
    units = _of_units(scheme, available, outcomes, f)
    return Overall(scheme.name, f, _of_answers(scheme, available, rows, f), units)


def _of_answers(scheme: Scheme, available: float, rows: Sequence[Row], f: float) -> float:
    measured = {(row.data, row.parity): row for row in rows}
    r = scheme.scenario
    if not scheme.systematic:
        none, some = measured.get((0, 0)), measured.get((r, 0))
        return nan if none is None or some is None else (1 - f) * none.group + f * some.group
    total = weight = 0.0
    for data in range(1, min(scheme.k, r) + 1):
        row = measured.get((data, r - data if scheme.r else 0))
        sets = comb(scheme.k, data) * comb(r, r - data) * (data if scheme.by_images else 1)
        total += sets * row.accuracy * row.patterns / row.possible if row else 0.0
        weight += sets
    return (1 - f) * available + f * (total / weight)


def _of_units(scheme: Scheme, available: float, outcomes: Sequence[Outcome], f: float) -> float:
    n = scheme.k + scheme.r
    filled = sum(
        f**o.lost * (1 - f) ** (n - o.lost) * o.accuracy
        * float(scheme.outputs_missing(o.arrived).mean())  # share of outputs that is filled in
        for o in outcomes
    )  # fmt: skip
    if not scheme.systematic:
        return filled
    return (1 - f if scheme.by_images else (1 - f) ** scheme.k) * available + filled
