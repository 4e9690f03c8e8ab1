"""What a code's answers are worth: measured for every set of units that may arrive.

Counts of a calibration (:mod:`mpicoded.study.training.calibration`), kept as text: in the
metadata of the code's weights file, or in a file of its own for a code without weights. Up to
``MEASURED`` units every set is measured. Beyond, a sample is; a set that was not drawn is taken to
be worth the mean of those that were drawn with as many data units and as many parity units missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import nan
from typing import Any

import numpy as np
import numpy.typing as npt

from mpicoded.errors import DataError
from mpicoded.plan import Shard, Stage

Arrived = npt.NDArray[np.bool_]  # (n,)
Class = tuple[int, int]  # data units and parity units that are missing
AGAIN = "measure it again: python -m mpicoded calibrate JOB"
BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
MEASURED = 12  # units of which all 2^n sets are measured
KEY = "quality"  # in the metadata of a weights file


@dataclass(frozen=True)
class Quality:
    """``counts`` has, for a set of units as text, answers that are right and that are the base's.

    "1101" means that unit 2 of four did not arrive. ``images`` is how many answers there were for
    each set, ``base`` how many of the unsplit model's are right. ``sampled``: not all sets were
    measured. ``of`` says which code and plan it is about. ``k`` is n where no unit is a data unit.
    """

    k: int
    n: int
    images: int
    base: int
    counts: Mapping[str, tuple[int, int]]
    sampled: bool = False
    of: Mapping[str, str] = field(default_factory=dict)

    def accuracy(self, arrived: Arrived) -> float:
        """Return the expected share of right answers, NaN where there is no answer."""
        return self._shares(arrived)[0]

    def agreement(self, arrived: Arrived) -> float:
        """Return the expected share of answers that the unsplit model gives too, or NaN."""
        return self._shares(arrived)[1]

    @property
    def best(self) -> float:
        """The accuracy when every unit is here."""
        return self.accuracy(np.ones(self.n, bool))

    def _shares(self, arrived: Arrived) -> tuple[float, float]:
        count = self.counts.get(word(arrived))
        if count is not None:
            return count[0] / self.images, count[1] / self.images
        return self._classes.get(self._class(arrived), (nan, nan)) if self.sampled else (nan, nan)

    @cached_property
    def _classes(self) -> dict[Class, tuple[float, float]]:
        found: dict[Class, list[tuple[int, int]]] = {}
        for text, count in self.counts.items():
            arrived = np.array([bit == "1" for bit in text])
            found.setdefault(self._class(arrived), []).append(count)
        shares = {key: np.mean(counts, 0) / self.images for key, counts in found.items()}
        return {key: (float(right), float(same)) for key, (right, same) in shares.items()}

    def _class(self, arrived: Arrived) -> Class:
        return int((~arrived[: self.k]).sum()), int((~arrived[self.k :]).sum())

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Quality:
        """Return what ``text()`` wrote.

        Raises
        ------
        DataError
            If it is not that.
        """
        try:
            given: dict[str, Any] = json.loads(text)
            counts = {key: (int(a), int(b)) for key, (a, b) in given.pop("counts").items()}
            quality = cls(counts=counts, **given)
            whole = quality._whole()
        except BROKEN as error:
            why = "nested too deep" if isinstance(error, RecursionError) else error
            raise DataError(f"its quality table cannot be read ({why}); {AGAIN}") from None
        if not whole:
            raise DataError(f"its quality table is damaged; {AGAIN}")
        return quality

    def _whole(self) -> bool:
        """Whether it can be a measured one."""
        numbers = (self.k, self.n, self.images, self.base)
        return (
            all(type(number) is int for number in numbers)
            and type(self.sampled) is bool
            and 0 < self.k <= self.n
            and 0 <= self.base <= self.images
            and 0 < self.images < 2**53
            and all(len(key) == self.n and set(key) <= {"0", "1"} for key in self.counts)
            and all(0 <= count <= self.images for pair in self.counts.values() for count in pair)
            and any("0" not in key for key in self.counts)
            and all(isinstance(word, str) for pair in self.of.items() for word in pair)
        )

    def misfits(self, want: Mapping[str, str]) -> list[str]:
        """Say in which words it is about something else than what is wanted."""
        return [
            f"{key} = {self.of.get(key, 'not said')} where the job needs {value}"
            for key, value in want.items()
            if self.of.get(key) != value
        ]


def word(arrived: Arrived) -> str:
    """Return a set of units as text: 1 where one is here.

    >>> word(np.array([True, True, False]))
    '110'
    """
    return "".join("1" if here else "0" for here in arrived)


def about_code(name: str, k: int, r: int, stage: Stage) -> dict[str, str]:
    """Return what a quality table is about: a code, and how its stage is cut."""
    units = "images" if stage.split == "batch" else " ".join(map(_place, stage.shards))
    return {"code": name, "k": str(k), "r": str(r), "stage": stage.name, "units": units}


def _place(shard: Shard) -> str:
    """Say what part of the stage's output a shard writes: rows x columns, or channels."""
    if shard.channels is not None:
        return f"{shard.channels.start}:{shard.channels.stop}"
    (top, bottom), (left, right) = shard.writes
    return f"{top}:{bottom}x{left}:{right}"
