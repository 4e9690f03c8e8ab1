"""Evaluate codes under every erasure pattern on the whole test part, beside doing without a code.

Several jobs are one table, if they have the same base model and the same input: then all codes
answer the same queries. Test images are shuffled by a fixed seed: groups are mixed, whatever file.
"""

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from mpicoded.classes import check_scores
from mpicoded.codes.erasures import erasures
from mpicoded.deploy import deploy, images
from mpicoded.errors import DataError, JobError
from mpicoded.job import Job
from mpicoded.study import cost
from mpicoded.study.evaluation import Candidate, Evaluation
from mpicoded.study.schemes import Scheme, schemes
from mpicoded.study.score import Scorer, overall, table
from mpicoded.study.setup import threads

SHUFFLE = 20_210_511  # seed of the order in which test images are grouped
SHARES = (0.01, 0.05, 0.1)  # f of A_o
QUERIES = {"data", "size", "batch", "mean", "std"}  # keys of [input] that evaluations depend on


def evaluate(
    *jobs: Job, shares: Sequence[float] = SHARES, lost: int | None = None, quiet: bool = True
) -> Evaluation:
    """Measure the codes of all jobs on the whole test part of their input.

    ``lost`` is the largest number of units missing at once, by default as many as the codes are
    made for; ``shares`` are the f of A_o. Raises JobError if the jobs have not the same base model
    and input; DataError if the test part has no labels; and whatever else does not fit in a job.
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
    with threads(first), torch.inference_mode():
        found = schemes(jobs, deployments, lost)
        evaluator = _Evaluator(found[: len(jobs)], Scorer(found, above))
        return evaluator.run(x, labels, shares, query, quiet)


def _check_same(jobs: Sequence[Job]) -> None:
    """Raise JobError unless the jobs have one base model and the same queries."""
    first = jobs[0]
    wanted = _subject(first)
    for job in jobs[1:]:
        for key, value in _subject(job).items():
            if wanted[key] != value:
                raise JobError(
                    f"{first.file.name} has {key} = {wanted[key]} and {job.file.name} has {value}: "
                    "codes are compared on the same base model and the same queries. Make the two "
                    "alike (--set is for all jobs), or evaluate them one at a time"
                )


def _subject(job: Job) -> dict[str, object]:
    weights = None if job.model.weights is None else str(job.path(job.model.weights))
    model = {"name": job.model.name, "args": job.model.args, "weights": weights}
    queries = job.input.model_dump(include=QUERIES)
    return {f"[model] {key}": value for key, value in model.items()} | {
        f"[input] {key}": value for key, value in queries.items()
    }


class _Evaluator:
    """Score all schemes, and see whether codes leave alone the units that arrived."""

    def __init__(self, codes: Sequence[Scheme], scorer: Scorer) -> None:
        self.codes, self.scorer = codes, scorer
        self.same_bits = [scheme.systematic for scheme in codes]
        self.same_predictions = list(self.same_bits)

    def run(
        self, x: Tensor, labels: Tensor, shares: Sequence[float], query: int, quiet: bool
    ) -> Evaluation:
        """Evaluate images (N, C, H, W) with their labels (N,)."""
        chunks = self.scorer.chunks(len(x))
        for part in track(chunks, "evaluate", console=Console(stderr=True), disable=quiet):
            self.scorer.add(x[part], labels[part])
            for number in range(len(self.codes)):
                self._see_intact(number)
        scores = self.scorer.scores()
        available = float(scores[0].base.mean())
        axis = sorted({0.0, *shares})
        tables = [table(score) for score in scores]
        pairs = list(zip(self.scorer.schemes, tables, strict=True))
        return Evaluation(
            queries=len(x) // query,
            images=len(x),
            by_images=self.codes[0].by_images,
            available=available,
            candidates=tuple(self._candidate(i, x[:query]) for i in range(len(self.codes))),
            rows=tuple(row for rows, _ in tables for row in rows),
            outcomes=tuple(outcome for _, outcomes in tables for outcome in outcomes),
            overall=tuple(overall(s, available, *each, f) for s, each in pairs for f in axis),
        )

    def _see_intact(self, i: int) -> None:
        """See in the last chunk whether a code changes nothing while no data unit is missing."""
        if not (self.same_bits[i] or self.same_predictions[i]):
            return
        scheme = self.codes[i]
        cache = self.scorer.caches[id(scheme.deployment)]
        whole = [a for a in erasures(scheme.k + scheme.r, scheme.r) if a[: scheme.k].all()]
        self.same_bits[i] &= all(cache.same_bits(arrived) for arrived in whole)
        same = cache.predict(scheme, whole[0]) == scheme.by_query(self.scorer.base)
        self.same_predictions[i] &= bool(same.all())

    def _candidate(self, i: int, x: Tensor) -> Candidate:
        deployment, code = self.codes[i].deployment, self.codes[i].deployment.segment_codes[0]
        x = deployment.normalize(x)
        return Candidate(
            scheme=self.codes[i].name,
            code=repr(code),
            k=code.k,
            r=code.r,
            systematic=code.systematic,
            same_bits=self.same_bits[i],
            same_predictions=self.same_predictions[i],
            encoder=cost.encoder(deployment, x),
            decoder=cost.decoder(deployment, x),
            unit_flops=cost.unit_flops(deployment),
            coded_flops=cost.coded_flops(deployment),
            coded_parameters=sum(map(cost.coded_parameters, deployment.codes)),
        )
