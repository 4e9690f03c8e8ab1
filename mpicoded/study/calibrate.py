"""Measure the expected accuracy of a code on images never trained on, for every set of units.

The images are those of the training part that training held back, the code's and the base model's;
the test part stays out of it. Every set of units from which the code can fill erasures at all is
decoded, also with more than r missing. Up to MEASURED units these are all 2^n sets; beyond, a
seeded sample for each number of missing data and parity units. Units run in float32.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from pathlib import Path
from random import Random

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from mpicoded import deploy
from mpicoded.classes import border, check_scores
from mpicoded.codes import Arrived, Code
from mpicoded.errors import DataError, JobError, PlanError
from mpicoded.expected_accuracy import (
    KEY,
    MEASURED,
    AccuracyTable,
    about_job,
    read_about,
    table_path,
    word,
)
from mpicoded.job import Job
from mpicoded.outputs import write_whole
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment
from mpicoded.study.checkpoint import lock, write_weights
from mpicoded.study.schemes import Scheme
from mpicoded.study.score import Scorer
from mpicoded.study.setup import split, threads

SAMPLE = 32  # sets of each class, beyond MEASURED units
COLUMNS = ("missing: data", "parity", "sets", "accuracy", "worst", "best", "as unsplit")


@dataclass(frozen=True)
class Calibration:
    """The table, the code it is about, and the file it was written to."""

    code: str
    file: Path
    table: AccuracyTable

    def render(self) -> Table:
        """Return the table by what is missing: mean, worst and best of the sets."""
        q = self.table
        error = 100 * np.sqrt(q.best * (1 - q.best) / q.images)
        about = f"unsplit {100 * q.base / q.images:.2f} %, standard error {error:.2f}"
        table = Table(title=f"{self.code}, {q.images} images held back", caption=about)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for (data, parity), counts in q.by_missing().items():
            right, same = 100 * np.array(counts).T / q.images
            shares = (right.mean(), right.min(), right.max(), same.mean())
            cells = (f"{share:.2f} %" for share in shares)
            table.add_row(str(data), str(parity), str(len(counts)), *cells)
        return table


def calibrate(job: Job, held_back: int | None = None) -> Calibration:
    """Measure the job's code and write its table into the weights' file, or to [code] quality.

    Of a training job it is the code that the job trains. ``held_back`` is how many images training
    kept for validation, where the weights do not say it themselves. Raises DataError, JobError,
    PlanError if the images have no labels or nobody knows which were held back; if the job names no
    file for the table; if the plan has several stages; and whatever else does not fit in the job.
    """
    if job.train is not None and job.train.kind == "code" and job.code.weights is None:
        code = job.code.model_copy(update={"weights": job.train.out, "quality": None})
        job = job.model_copy(update={"code": code})
    path = table_path(job)
    if path is None:
        raise JobError(
            f"{job.file}: [code] {job.code.name!r} has no weights whose file could hold the table: "
            'name a file for it: quality = "….json"'
        )
    with threads(job), lock(path):  # nobody trains the weights anew while they are read
        table, subject = _measure_job(job, held_back)
        _write(job, path, table)
    return Calibration(repr(subject), path, table)


def _measure_job(job: Job, count: int | None) -> tuple[AccuracyTable, Code]:
    data = deploy.images(job, "train", None if job.train is None else job.input.limit)
    if data.labels is None:
        raise DataError(f"{job.input.data!r} has no labels to measure accuracy by")
    model = deploy.network(job).requires_grad_(False)
    chain = deploy.traced(job, model, tuple(data.images.shape[1:]))
    parts = deploy.plan(job, chain)
    if len(parts.segments) > 1:
        raise PlanError(
            f"the plan has {len(parts.segments)} stages: what answers are worth is measured for "
            "one, since sets of units that arrive in several do not add up; name one block in "
            "[plan] stages"
        )
    check_scores(chain, data.labels)
    built = deploy.codes(job, parts, chain, deploy.trained(job))
    deployment = Deployment(chain, parts, built, deploy.pixels(job))
    check(deployment, torch.from_numpy(data.images[: parts.batch]))
    rows = _rows(job, len(data.images), count)
    rows = rows[: len(rows) // parts.batch * parts.batch]  # whole queries
    if not len(rows):
        raise DataError(f"the images held back do not make one query of {parts.batch}")
    labels = torch.from_numpy(data.labels)[rows]
    about = about_job(job, deployment.codes[-1], parts, deploy.fingerprint(model.state_dict()))
    table = measure(deployment, torch.from_numpy(data.images)[rows], labels, about, job.seed)
    return table, deployment.codes[-1]


def _rows(job: Job, total: int, count: int | None) -> Tensor:
    """Return which of ``total`` training images neither the code nor its base was trained on."""
    files = [job.path(name) for name in (job.code.weights, job.model.weights) if name]
    kept = [_kept(file, job, total, count) for file in files] or [held_back({}, job, total, count)]
    rows = kept[0][torch.stack([torch.isin(kept[0], other) for other in kept]).all(0)]
    if not len(rows):
        raise DataError(
            f"none of the {total} training images was held back both from the code and from its "
            "base model: train both with the same seed"
        )
    return rows


def _kept(file: Path, job: Job, total: int, count: int | None) -> Tensor:
    try:
        return held_back(read_about(file), job, total, count)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def held_back(about: Mapping[str, str], job: Job, total: int, count: int | None) -> Tensor:
    """Return the images that a training left out; DataError if nothing says which."""
    if about.get("data", job.input.data) != job.input.data:
        raise DataError(
            f"the weights were trained on {about['data']!r}, and the job has {job.input.data!r}: "
            "what was held back there says nothing of it"
        )
    known = about.get("held_back", "")
    if not known and count is None:
        raise DataError(
            f"does not say how many of the {total} training images were held back for validation: "
            "say it with --held-back"
        )
    number, _, of = (known or f"{count} of {total}").partition(" of ")
    if not 0 < int(number) < total or int(of) != total:
        raise DataError(
            f"{number} of {of} training images were held back, and the job has {total}: give "
            "the job the same images, or say how many with --held-back"
        )
    return split(int(about.get("seed", job.seed)), total)[: int(number)]


@torch.inference_mode()
def measure(
    deployment: Deployment, x: Tensor, labels: Tensor, about: Mapping[str, str], seed: int = 0
) -> AccuracyTable:
    """Count right answers, and the unsplit model's, of images (N, …) for every set of units."""
    (code,) = deployment.segment_codes
    sets = {word(arrived): code.used(arrived) for arrived in patterns(code, seed)}
    used = {word(arrived): arrived for arrived in sets.values()}  # several sets come to the same
    scheme = Scheme(code.name, deployment, code.r, code.r, tuple(used.values()))
    scorer = Scorer([scheme], border(deployment.chain, labels))
    for part in scorer.chunks(len(x)):
        scorer.add(x[part], labels[part])
    (score,) = scorer.scores()
    sums = zip(score.right.sum((1, 2)).tolist(), score.same.sum((1, 2)).tolist(), strict=True)
    found = dict(zip(map(word, score.patterns), sums, strict=True))
    counts = {name: found[word(arrived)] for name, arrived in sets.items()}
    k, base = code.k if code.systematic else code.n, int(score.base.sum())
    return AccuracyTable(k, code.n, len(x), base, counts, code.n > MEASURED, dict(about))


def patterns(code: Code, seed: int) -> Iterator[Arrived]:
    """Yield the sets of units to measure, the whole one first: all, or a sample of every class."""
    random, n, k = Random(seed), code.n, code.k if code.systematic else code.n
    for data, parity in product(range(k + 1), range(n - k + 1)):
        sets: Iterable[tuple[int, ...]]
        if n <= MEASURED or comb(k, data) * comb(n - k, parity) <= SAMPLE:
            pairs = product(combinations(range(k), data), combinations(range(k, n), parity))
            sets = (a + b for a, b in pairs)
        else:
            sets = _drawn((k, data), (n - k, parity), random)
        for missing in sets:
            arrived = np.ones(n, bool)
            arrived[list(missing)] = False
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


def _write(job: Job, path: Path, table: AccuracyTable) -> None:
    if job.code.weights is not None:
        weights, about = deploy.read_weights(path)
        write_weights(path, weights, about | {KEY: table.text()})
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, (table.text() + "\n").encode())
    except OSError as error:
        why = f"cannot write {path}: {error.strerror}; mend quality in [code]"
        raise DataError(why) from error
