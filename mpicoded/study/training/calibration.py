"""What a code's answers are worth: every set of units that may arrive, on images never trained on.

    mpicoded calibrate jobs/lab/fashion.toml

The images are those of the training part that training held back, the code's and the base model's;
the test part stays out of it. Every set of units from which the code can fill holes at all is
decoded, also with more than r missing. Up to MEASURED units these are all 2^n sets. Beyond, at most
SAMPLE sets are drawn, seeded, for each number of missing data units and of missing parity units.

Units run in float32, as workers run them; what a smaller type on the wire changes is not in it. Of
units that are images an answer is every image of a query, also those whose own unit is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from mpicoded import calibrated
from mpicoded.classes import NONE, border, check_scores, classes
from mpicoded.codes import Arrived, Code
from mpicoded.codes.quality import KEY, MEASURED, Quality, word
from mpicoded.deploy import (
    codes,
    fingerprint,
    images,
    network,
    pixels,
    plan,
    read_weights,
    traced,
    trained,
)
from mpicoded.errors import DataError, JobError, PlanError
from mpicoded.outputs import write_whole
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.threads import use_threads
from mpicoded.study.training.checkpoint import alone, write_weights
from mpicoded.study.training.curriculum import SPLIT_SEED
from mpicoded.study.training.rehearsal import Rehearsal
from mpicoded.study.training.ways import Way

if TYPE_CHECKING:
    from mpicoded.job import Job

SAMPLE = 32  # sets of each class, beyond MEASURED units
CHUNK = 360  # images at once, about
COLUMNS = ("missing: data", "parity", "sets", "accuracy", "worst", "best", "as unsplit")


@dataclass(frozen=True)
class Calibration:
    """The table, the code it is about, and the file it was written to."""

    code: str
    file: Path
    quality: Quality

    def table(self) -> Table:
        """Return the table by what is missing: mean, worst and best of the sets."""
        q = self.quality
        error = 100 * np.sqrt(q.best * (1 - q.best) / q.images)
        about = f"unsplit {100 * q.base / q.images:.2f} %, standard error {error:.2f}"
        table = Table(title=f"{self.code}, {q.images} images held back", caption=about)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for (data, parity), counts in self._by_missing().items():
            right, same = 100 * np.array(counts).T / q.images
            shares = (right.mean(), right.min(), right.max(), same.mean())
            cells = (f"{share:.2f} %" for share in shares)
            table.add_row(str(data), str(parity), str(len(counts)), *cells)
        return table

    def _by_missing(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        k, found = self.quality.k, dict[tuple[int, int], list[tuple[int, int]]]()
        for text, count in self.quality.counts.items():
            found.setdefault((text[:k].count("0"), text[k:].count("0")), []).append(count)
        return dict(sorted(found.items()))


def calibrate(job: Job, held_back: int | None = None) -> Calibration:
    """Measure the job's code and write its table into the weights' file, or to [code] quality.

    Of a training job it is the code that the job trains. ``held_back`` is how many images training
    kept for validation, where the weights do not say it themselves.

    Raises
    ------
    DataError, JobError, PlanError
        If the images have no labels or nobody knows which were held back; if the job names no file
        for the table; if the plan has several stages; and whatever else does not fit in the job.
    """
    job = _served(job)
    path = calibrated.path_of(job)
    if path is None:
        raise JobError(
            f"{job.file}: [code] {job.code.name!r} has no weights whose file could hold the table: "
            'name a file for it: quality = "….json"'
        )
    threads = torch.get_num_threads()
    use_threads(job.runtime.threads)
    try:
        with alone(path):  # nobody trains the weights anew between their reading and writing
            quality, code = _measure_job(job, held_back)
            _write(job, path, quality)
    finally:
        torch.set_num_threads(threads)
    return Calibration(repr(code), path, quality)


def _served(job: Job) -> Job:
    """Return the job with the weights that it trains, if it trains a code."""
    trains = job.train is not None and job.train.kind == "code" and job.code.weights is None
    if not trains:
        return job
    assert job.train is not None
    code = job.code.model_copy(update={"weights": job.train.out, "quality": None})
    return job.model_copy(update={"code": code})


def _measure_job(job: Job, held_back: int | None) -> tuple[Quality, Code]:
    data = images(job, "train", None if job.train is None else job.input.limit)
    if data.labels is None:
        raise DataError(f"{job.input.data!r} has no labels to measure accuracy by")
    model = network(job).requires_grad_(False)
    chain = traced(job, model, tuple(data.images.shape[1:]))
    its_plan = plan(job, chain)
    if len(its_plan.stages) > 1:
        raise PlanError(
            f"the plan has {len(its_plan.stages)} stages: what answers are worth is measured for "
            "one, since sets of units that arrive in several do not add up; name one block in "
            "[plan] stages"
        )
    check_scores(chain, data.labels)
    built = codes(job, its_plan, chain, trained(job))
    deployment = Deployment(chain, its_plan, built, pixels(job))
    check(deployment, torch.from_numpy(data.images[: its_plan.batch]))
    rows = _rows(job, len(data.images), held_back)
    rows = rows[: len(rows) // its_plan.batch * its_plan.batch]  # whole queries
    if not len(rows):
        raise DataError(f"the images held back do not make one query of {its_plan.batch}")
    labels = torch.from_numpy(data.labels)[rows]
    about = calibrated.subject(job, deployment.codes[0], its_plan, fingerprint(model.state_dict()))
    quality = measure(deployment, torch.from_numpy(data.images)[rows], labels, about, job.seed)
    return quality, deployment.codes[0]


def _rows(job: Job, count: int, told: int | None) -> Tensor:
    """Return which of ``count`` training images neither the code nor its base was trained on."""
    files = [job.path(name) for name in (job.code.weights, job.model.weights) if name]
    kept = [_kept(file, job, count, told) for file in files] or [held_back({}, job, count, told)]
    rows = kept[0][torch.stack([torch.isin(kept[0], other) for other in kept]).all(0)]
    if not len(rows):
        raise DataError(
            f"none of the {count} training images was held back both from the code and from its "
            "base model: train both with the same seed"
        )
    return rows


def _kept(file: Path, job: Job, count: int, told: int | None) -> Tensor:
    try:
        return held_back(calibrated.read_about(file), job, count, told)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def held_back(about: Mapping[str, str], job: Job, count: int, told: int | None) -> Tensor:
    """Return the images that a training left out for validation, by its weights' metadata.

    Raises
    ------
    DataError
        If it does not say how many, and ``told`` does not either; if it is of other images.
    """
    if about.get("data", job.input.data) != job.input.data:
        raise DataError(
            f"the weights were trained on {about['data']!r}, and the job has {job.input.data!r}: "
            "what was held back there says nothing of it"
        )
    said = about.get("held_back", "")
    if not said and told is None:
        raise DataError(
            f"does not say how many of the {count} training images were held back for validation: "
            "say it with --held-back"
        )
    number, _, total = (said or f"{told} of {count}").partition(" of ")
    if not 0 < int(number) < count or int(total) != count:
        raise DataError(
            f"{number} of {total} training images were held back, and the job has {count}: give "
            "the job the same images, or say how many with --held-back"
        )
    rng = torch.Generator().manual_seed(int(about.get("seed", job.seed)) * SPLIT_SEED)
    return torch.randperm(count, generator=rng)[: int(number)]


@torch.inference_mode()
def measure(
    deployment: Deployment, x: Tensor, labels: Tensor, about: Mapping[str, str], seed: int = 0
) -> Quality:
    """Count right answers and the unsplit model's for every set of units.

    ``x`` (N, C, H, W) is as stored, ``labels`` (N,); N is a multiple of the plan's batch.
    """
    (code,), query = deployment.codes, deployment.plan.batch
    sets = {word(arrived): code.used(arrived) for arrived in patterns(code, seed)}
    used = {word(arrived): arrived for arrived in sets.values()}  # several sets come to the same
    way = Way(code.name, deployment, code.r, code.r, tuple(used.values()))
    above = border(deployment.chain, labels)
    size = query * -(-CHUNK // query)
    right, same, base = Counter[str](), Counter[str](), 0
    for part, truth in zip(torch.split(x, size), torch.split(labels, size), strict=True):
        alone, true = classes(deployment.base(part), above), truth.numpy()  # (B,)
        base += int((alone == true).sum())
        units = Rehearsal(deployment, deployment.normalize(part), above=above)
        for name, arrived in used.items():
            answers = units.predict(way, arrived).reshape(-1)  # (B,)
            right[name] += int((answers == true).sum())
            same[name] += int(((answers == alone) & (alone != NONE)).sum())
    counts = {name: (right[word(a)], same[word(a)]) for name, a in sets.items()}
    k = code.k if code.systematic else code.n
    return Quality(k, code.n, len(x), base, counts, code.n > MEASURED, dict(about))


def patterns(code: Code, seed: int) -> Iterator[Arrived]:
    """Yield the sets of units to measure, the whole one first: all, or a sample of every class."""
    random, n, k = Random(seed), code.n, code.k if code.systematic else code.n
    for data, parity in product(range(k + 1), range(n - k + 1)):
        lost: Iterable[tuple[int, ...]]
        if n <= MEASURED or comb(k, data) * comb(n - k, parity) <= SAMPLE:
            pairs = product(combinations(range(k), data), combinations(range(k, n), parity))
            lost = (a + b for a, b in pairs)
        else:
            lost = _drawn((k, data), (n - k, parity), random)
        for gone in lost:
            arrived = np.ones(n, bool)
            arrived[list(gone)] = False
            if code.fillable(arrived):
                yield arrived


def _drawn(data: tuple[int, int], parity: tuple[int, int], random: Random) -> list[tuple[int, ...]]:
    """Draw SAMPLE different sets of units to lose, so many of k and so many of the others."""
    (k, few), (r, more) = data, parity
    drawn: dict[tuple[int, ...], None] = {}
    while len(drawn) < SAMPLE:
        lost = random.sample(range(k), few) + random.sample(range(k, k + r), more)
        drawn[tuple(sorted(lost))] = None
    return list(drawn)


def _write(job: Job, path: Path, quality: Quality) -> None:
    if job.code.weights is None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (quality.text() + "\n").encode())
        except OSError as error:
            why = f"cannot write {path}: {error.strerror}; mend quality in [code]"
            raise DataError(why) from error
        return
    weights, about = read_weights(path)
    write_weights(path, weights, about | {KEY: quality.text()})
