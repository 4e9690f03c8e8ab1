"""Predictions counted: the outcomes of one way, and its rows with their confidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import comb, sqrt

import numpy as np
import numpy.typing as npt

from mpicoded.classes import NONE
from mpicoded.codes import Arrived
from mpicoded.study.training.evaluation import Outcome, Overall, Row
from mpicoded.study.training.ways import Way

Classes = npt.NDArray[np.int64]  # (outputs, queries)
Losses = npt.NDArray[np.float64]  # (queries,): share of right answers that filling in cost
NORMAL = 1.959964  # two-sided 95 % of a normal distribution


@dataclass
class Tally:
    """What one way predicted under each of its patterns, part by part of the queries."""

    way: Way
    labels: list[Classes] = field(default_factory=list)
    alone: list[Classes] = field(default_factory=list)
    filled: list[list[Classes]] = field(default_factory=list)  # of each part, of each pattern

    def __post_init__(self) -> None:
        """Find the patterns that the way can fill."""
        self.patterns = [a for a in self.way.patterns if self.way.possible(a)]

    def add(self, labels: Classes, alone: Classes, filled: list[Classes]) -> None:
        """Count a part; ``filled`` are the predictions under each pattern, in their order."""
        self.labels.append(labels)
        self.alone.append(alone)
        self.filled.append(filled)

    def close(self) -> tuple[tuple[Row, ...], tuple[Outcome, ...]]:
        """Return all rows and outcomes."""
        labels, alone = np.concatenate(self.labels, 1), np.concatenate(self.alone, 1)
        found: dict[tuple[int, int], list[tuple[Outcome, Losses]]] = {}
        for number, arrived in enumerate(self.patterns):
            classes = np.concatenate([part[number] for part in self.filled], 1)
            missing = self.way.outputs_missing(arrived)
            lost = ((alone == labels) * 1.0 - (classes == labels))[missing].mean(0)  # (queries,)
            outcome = self._outcome(arrived, missing, classes, labels, alone)
            found.setdefault((outcome.data, outcome.parity), []).append((outcome, lost))
        rows = tuple(self._row(key, found[key]) for key in sorted(found))
        return rows, tuple(outcome for key in sorted(found) for outcome, _ in found[key])

    def _outcome(
        self, arrived: Arrived, missing: Arrived, classes: Classes, labels: Classes, alone: Classes
    ) -> Outcome:
        right, same = classes == labels, (classes == alone) & (alone != NONE)
        data, parity = self.way.missing(arrived)
        return Outcome(
            way=self.way.name,
            arrived=arrived,
            data=data,
            parity=parity,
            accuracy=float(right[missing].mean()),
            drop=100 * float((alone == labels)[missing].mean() - right[missing].mean()),
            recovery=float(same[missing].mean()),
            group=float(np.where(missing[:, None], right, alone == labels).mean()),
        )

    def _row(self, key: tuple[int, int], found: list[tuple[Outcome, Losses]]) -> Row:
        outcomes = [outcome for outcome, _ in found]
        lost = np.mean([each for _, each in found], 0)  # (queries,), mean over the patterns
        deviation = float(lost.std(ddof=1)) if len(lost) > 1 else np.nan
        return Row(
            way=self.way.name,
            data=key[0],
            parity=key[1],
            patterns=len(found),
            possible=sum(self.way.missing(a) == key for a in self.way.patterns),
            accuracy=_mean(o.accuracy for o in outcomes),
            drop=_mean(o.drop for o in outcomes),
            interval=100 * NORMAL * deviation / sqrt(len(lost)),
            worst=max(o.drop for o in outcomes),
            recovery=_mean(o.recovery for o in outcomes),
            group=_mean(o.group for o in outcomes),
        )


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


def overall(
    way: Way, available: float, rows: tuple[Row, ...], outcomes: tuple[Outcome, ...], f: float
) -> Overall:
    """Return A_o(f) in both forms of the reference, section 2.

    *Answers*: a share f of the outputs is filled in, (1 - f) A_a + f A_d. A_d is of all sets of
    ``way.scenario`` lost units, those of parity alone left out; with one parity unit these are the
    k single losses. Where all outputs are filled in, f is the share of queries with as many lost.
    *Units*: each of the n units is lost with probability f, independently. Patterns that were not
    measured or cannot be filled count as wrong, which is the reference's A_def = 0.
    """
    return Overall(
        way.name, f, _of_answers(way, available, rows, f), _of_units(way, available, outcomes, f)
    )


def _of_answers(way: Way, available: float, rows: tuple[Row, ...], f: float) -> float:
    measured = {(row.data, row.parity): row for row in rows}
    r = way.scenario
    if not way.systematic:
        none, some = measured.get((0, 0)), measured.get((r, 0))
        return np.nan if none is None or some is None else _mix(f, none.group, some.group)
    total = weight = 0.0
    for data in range(1, min(way.k, r) + 1):
        row = measured.get((data, r - data if way.r else 0))
        sets = comb(way.k, data) * comb(r, r - data) * (data if way.by_images else 1)
        total += sets * row.accuracy * row.patterns / row.possible if row else 0.0
        weight += sets
    return _mix(f, available, total / weight)


def _mix(f: float, here: float, missing: float) -> float:
    return (1 - f) * here + f * missing


def _of_units(way: Way, available: float, outcomes: tuple[Outcome, ...], f: float) -> float:
    n = way.k + way.r
    chances = [f**o.lost * (1 - f) ** (n - o.lost) for o in outcomes]
    weights = list(_weights(way, outcomes))
    filled = sum(c * w * o.accuracy for c, w, o in zip(chances, weights, outcomes, strict=True))
    if not way.systematic:
        return filled
    here = (1 - f) if way.by_images else (1 - f) ** way.k
    return here * available + filled


def _weights(way: Way, outcomes: tuple[Outcome, ...]) -> Iterator[float]:
    """Yield which share of a query's outputs is filled in under each pattern."""
    for outcome in outcomes:
        yield float(way.outputs_missing(outcome.arrived).mean())
