"""How good codes are: every erasure pattern, on the whole test part, beside doing without a code.

    mpicoded evaluate jobs/quickstart.toml [JOB …]

Several jobs are one table, if they have the same base model and the same input: then all codes
answer the same queries. The test images are shuffled by a seed of their own, so that groups of k
images are mixed even where a file is sorted by class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mpicoded.classes import check_scores, classes
from mpicoded.codes.erasures import erasures
from mpicoded.deploy import deploy, images
from mpicoded.errors import DataError, JobError
from mpicoded.runtime.threads import use_threads
from mpicoded.study.training import expense
from mpicoded.study.training.evaluation import Candidate, Evaluation
from mpicoded.study.training.rehearsal import Rehearsal, by_query
from mpicoded.study.training.tally import Classes, Tally, overall
from mpicoded.study.training.ways import Way, ways

if TYPE_CHECKING:
    from mpicoded.job import Job

CHUNK = 360  # images at once, about
SHUFFLE = 20_210_511  # seed of the order in which test images are grouped
SHARES = (0.01, 0.05, 0.1)  # f of A_o
QUERIES = {"data", "size", "batch", "mean", "std"}  # keys of [input] that evaluations depend on


def evaluate(
    *jobs: Job, shares: Sequence[float] = SHARES, lost: int | None = None, quiet: bool = True
) -> Evaluation:
    """Measure the codes of all jobs on the whole test part of their input.

    ``lost`` is the largest number of units missing at once, by default as many as the codes are
    made for; ``shares`` are the f of A_o.

    Raises
    ------
    JobError
        If the jobs have not the same base model and input.
    DataError
        If the test part has no labels; and whatever else does not fit in a job.
    """
    _check_same(jobs)
    first, *_ = jobs
    data = images(first, "test")
    if data.labels is None:
        raise DataError(f"{first.input.data!r} has no labels to measure accuracy by")
    query = first.input.batch
    some = torch.from_numpy(data.images[:query])
    deployments = [deploy(job, tuple(some.shape[1:]), some) for job in jobs]
    above = check_scores(deployments[0].chain, data.labels)
    order = torch.randperm(len(data.images), generator=torch.Generator().manual_seed(SHUFFLE))
    order = order[: len(order) // query * query]  # whole queries only
    if not len(order):
        raise DataError(f"{len(data.images)} test images do not make one query of {query}")
    x, labels = torch.from_numpy(data.images)[order], torch.from_numpy(data.labels)[order]
    threads = torch.get_num_threads()
    use_threads(first.runtime.threads)
    try:
        with torch.inference_mode():
            found = ways(jobs, deployments, lost)
            return _Evaluator(found, len(jobs), query, above, quiet).run(x, labels, shares)
    finally:
        torch.set_num_threads(threads)


def _check_same(jobs: Sequence[Job]) -> None:
    """Codes are compared on one base model and on the same queries, or not at all."""
    first = jobs[0]
    model, given = _model(first), first.input.model_dump(include=QUERIES)
    for job in jobs[1:]:
        theirs = {f"[model] {key}": (model[key], value) for key, value in _model(job).items()}
        others = job.input.model_dump(include=QUERIES)
        theirs |= {f"[input] {key}": (given[key], value) for key, value in others.items()}
        for key, (here, there) in theirs.items():
            if here != there:
                raise JobError(
                    f"{first.file.name} has {key} = {here} and {job.file.name} has {there}: codes "
                    "are compared on the same base model and the same queries. Make the two alike "
                    "(--set is for all jobs), or evaluate them one at a time"
                )


def _model(job: Job) -> dict[str, object]:
    weights = None if job.model.weights is None else str(job.path(job.model.weights))
    return {"name": job.model.name, "args": job.model.args, "weights": weights}


class _Evaluator:
    """All ways on the same queries, part by part; a single output ``above`` it means class 1."""

    def __init__(
        self, found: Sequence[Way], codes: int, query: int, above: float | None, quiet: bool
    ) -> None:
        self.codes, self.query, self.above, self.quiet = found[:codes], query, above, quiet
        self.tallies = [Tally(way) for way in found]
        self.same_bits = [way.systematic for way in self.codes]
        self.same_predictions = list(self.same_bits)

    def run(self, x: Tensor, labels: Tensor, shares: Sequence[float]) -> Evaluation:
        """Evaluate images (N, C, H, W) with their labels (N,)."""
        parts = torch.split(torch.arange(len(x)), self.query * -(-CHUNK // self.query))
        right = 0
        told = track(parts, "evaluate", console=Console(stderr=True), disable=self.quiet)
        for part in told:
            alone = classes(self.codes[0].deployment.base(x[part]), self.above)
            right += int((alone == labels[part].numpy()).sum())
            self._part(x[part], labels[part], alone)
        available = right / len(x)
        axis = sorted({0.0, *shares})
        closed = [tally.close() for tally in self.tallies]
        pairs = list(zip((t.way for t in self.tallies), closed, strict=True))
        return Evaluation(
            queries=len(x) // self.query,
            images=len(x),
            by_images=self.codes[0].by_images,
            available=available,
            candidates=tuple(self._candidate(i, x[: self.query]) for i in range(len(self.codes))),
            rows=tuple(row for rows, _ in closed for row in rows),
            outcomes=tuple(outcome for _, outcomes in closed for outcome in outcomes),
            overall=tuple(overall(way, available, *each, f) for way, each in pairs for f in axis),
        )

    def _part(self, x: Tensor, labels: Tensor, alone: Classes) -> None:
        rehearsals: dict[int, Rehearsal] = {}  # by deployment: baselines share one
        for tally in self.tallies:
            way = tally.way
            if id(way.deployment) not in rehearsals:
                numbers, known = way.deployment.normalize(x), self._known(way, rehearsals)
                made = Rehearsal(way.deployment, numbers, known, self.above)
                rehearsals[id(way.deployment)] = made
            rehearsal = rehearsals[id(way.deployment)]
            filled = [rehearsal.predict(way, arrived) for arrived in tally.patterns]
            tally.add(by_query(labels, way), by_query(alone, way), filled)
        for i, way in enumerate(self.codes):
            if self.same_bits[i] or self.same_predictions[i]:
                self._intact(i, way, rehearsals[id(way.deployment)], alone)

    def _known(self, way: Way, rehearsals: dict[int, Rehearsal]) -> Tensor | None:
        """Return what data units of a baseline give, if a code has the same ones."""
        for code in self.codes if way.fill is not None else ():
            if code.systematic and code.deployment.plan.stages == way.deployment.plan.stages:
                return rehearsals[id(code.deployment)].data
        return None

    def _intact(self, i: int, way: Way, rehearsal: Rehearsal, alone: Classes) -> None:
        """See whether the code leaves alone what is here."""
        k, n = way.k, way.k + way.r
        whole = [a for a in erasures(n, way.r) if a[:k].all()]
        self.same_bits[i] &= all(rehearsal.same_bits(arrived) for arrived in whole)
        same = rehearsal.predict(way, whole[0]) == by_query(alone, way)
        self.same_predictions[i] &= bool(same.all())

    def _candidate(self, i: int, x: Tensor) -> Candidate:
        way = self.codes[i]
        deployment, code = way.deployment, way.deployment.codes[0]
        x = deployment.normalize(x)
        return Candidate(
            way=way.name,
            code=repr(code),
            k=code.k,
            r=code.r,
            systematic=code.systematic,
            same_bits=self.same_bits[i],
            same_predictions=self.same_predictions[i],
            encoder=expense.encoder(deployment, x),
            decoder=expense.decoder(deployment, x),
            unit_flops=expense.unit_flops(deployment),
            coded_flops=expense.coded_flops(deployment),
            coded_parameters=sum(map(expense.coded_parameters, deployment.codes)),
        )
