"""Expected accuracy of a code's answers, for every set of units that may arrive, and its file.

:mod:`mpicoded.study.calibrate` measures the table, into the metadata of a code's weights or else a
.json file. Beyond ``MEASURED`` units it is a sample: other sets are worth the mean of those alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpicoded.errors import DataError
from mpicoded.paths import check_regular, read_text
from mpicoded.plan import Plan, Shard, Stage

if TYPE_CHECKING:
    from mpicoded.codes import Code
    from mpicoded.job import Job

Arrived = npt.NDArray[np.bool_]  # (n,)
Missing = tuple[int, int]  # data units and parity units
AGAIN = "measure it again: python -m mpicoded calibrate JOB"
BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
MEASURED = 12  # units of which all 2^n sets are measured
KEY = "quality"  # in the metadata of a weights file
MOST = 16 << 20  # bytes of a table; one of 12 units has 0.1 MB


@dataclass(frozen=True)
class AccuracyTable:
    """``counts`` has, for a set of units as text, answers that are right and that are the base's.

    "1101" means that unit 2 of four did not arrive. ``images`` is how many answers there were for
    each set, ``base`` how many of the unsplit model's are right. ``sampled``: not all sets were
    measured. ``of`` names the code and plan. ``k`` is n where no unit is a data unit.
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
        """The accuracy when every unit has arrived."""
        return self.accuracy(np.ones(self.n, bool))

    def by_missing(self) -> dict[Missing, list[tuple[int, int]]]:
        """Return the counts of all sets with as many data and parity units missing, in order."""
        found: dict[Missing, list[tuple[int, int]]] = {}
        for text, count in self.counts.items():
            found.setdefault(self._missing(text), []).append(count)
        return dict(sorted(found.items()))

    def _shares(self, arrived: Arrived) -> tuple[float, float]:
        text = word(arrived)
        if text in self.counts:
            right, same = self.counts[text]
            return right / self.images, same / self.images
        return self._means.get(self._missing(text), (nan, nan)) if self.sampled else (nan, nan)

    @cached_property
    def _means(self) -> dict[Missing, tuple[float, float]]:
        shares = {key: np.mean(each, 0) / self.images for key, each in self.by_missing().items()}
        return {key: (float(right), float(same)) for key, (right, same) in shares.items()}

    def _missing(self, text: str) -> Missing:
        return text[: self.k].count("0"), text[self.k :].count("0")

    def text(self) -> str:
        """Return the table as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> AccuracyTable:
        """Read the JSON of ``text()``; DataError if it is not that."""
        try:
            given: dict[str, Any] = json.loads(text)
            counts = {key: (int(a), int(b)) for key, (a, b) in given.pop("counts").items()}
            table = cls(counts=counts, **given)
            whole = table._whole()
        except BROKEN as error:
            why = "nested too deep" if isinstance(error, RecursionError) else error
            raise DataError(f"its quality table cannot be read ({why}); {AGAIN}") from None
        if not whole:
            raise DataError(f"its quality table is damaged; {AGAIN}")
        return table

    def _whole(self) -> bool:
        """True if the table can be a measured one."""
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
        """Return in words every difference between its code and plan and those wanted."""
        return [
            f"{key} = {self.of.get(key, 'not said')} where the job needs {value}"
            for key, value in want.items()
            if self.of.get(key) != value
        ]


def word(arrived: Arrived) -> str:
    """Return a set of units as text, 1 where one arrived: "110"."""
    return "".join("1" if unit else "0" for unit in arrived)


def about_code(name: str, k: int, r: int, stage: Stage) -> dict[str, str]:
    """Name the subject of a table: a code, and how its stage is cut."""
    units = "images" if stage.split == "batch" else " ".join(map(_place, stage.shards))
    return {"code": name, "k": str(k), "r": str(r), "stage": stage.name, "units": units}


def _place(shard: Shard) -> str:
    """Name a shard's part of the stage's output: rows x columns, or channels."""
    if shard.channels is not None:
        return f"{shard.channels.start}:{shard.channels.stop}"
    (top, bottom), (left, right) = shard.writes
    return f"{top}:{bottom}x{left}:{right}"


def about_job(job: Job, code: Code, plan: Plan, base: str) -> dict[str, str]:
    """Name the subject of a table of the job's code; ``base``: the base model's fingerprint."""
    stage = plan.fused(plan.last_of(0))
    about = about_code(code.name, code.k, code.r, stage) | {"base_weights": base}
    if job.code.args and job.code.weights is None:  # a weights file says its own
        about["args"] = json.dumps(job.code.args, sort_keys=True)
    return about


def table_path(job: Job) -> Path | None:
    """Return the file that has, or may have, the table of the job's code."""
    name = job.code.weights or job.code.quality
    return None if name is None else job.path(name)


def read_table(job: Job) -> AccuracyTable | None:
    """Read the table of the job's code, None if there is none; DataError if it is damaged."""
    path = table_path(job)
    if path is None:
        return None
    try:
        text = read_text(path, MOST) if job.code.quality else read_about(path).get(KEY)
        return None if text is None else AccuracyTable.parse(text)
    except OSError as error:
        raise DataError(
            f"quality table {path}: {error.strerror}; make it: python -m mpicoded calibrate JOB"
        ) from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: its quality table is no text; {AGAIN}") from None
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_about(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file; nothing if it is none."""
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except SafetensorError:
        return {}


def fitting(job: Job, table: AccuracyTable, about: Mapping[str, str]) -> AccuracyTable | None:
    """Return the table if it is about this job; DataError if it is not, and the job needs it."""
    misfits = table.misfits(about)
    if misfits and (job.code.quality is not None or job.gather.min_accuracy is not None):
        raise DataError(
            f"{table_path(job) or 'about'}: its quality table does not fit the job: it has "
            f"{'; '.join(misfits[:3])}. {AGAIN[0].upper()}{AGAIN[1:]}"
        )
    return None if misfits else table
