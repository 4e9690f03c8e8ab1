"""``plan --choose-k``: the same job with every k of its n units, simulated on its cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mpicoded.cost.model import CostModel
from mpicoded.deploy import codes, cost_model, network, plan, traced
from mpicoded.errors import JobError, PlanError
from mpicoded.job import Job
from mpicoded.network.graph import Chain
from mpicoded.plan import aligned
from mpicoded.runtime.deployment import Deployment
from mpicoded.simulate import simulate

QUERIES, FIRST = 120, 20  # of a simulated run; those left out, until deadlines have been learned


@dataclass(frozen=True)
class Choice:
    """Seconds of a query for each k of ``n`` units; ``refused`` says why another k has no plan."""

    n: int
    seconds: Mapping[int, float]
    refused: Mapping[int, str]

    @property
    def best(self) -> int:
        """The k with the least seconds."""
        return min(self.seconds, key=lambda k: self.seconds[k])

    def table(self) -> str:
        """Return it as text: a line for every k, then why others are refused."""
        rows = [("k", "r", "seconds of a query", "")]
        for k in range(1, self.n + 1):
            note = "uncoded" if k == self.n else ""
            number = f"{self.seconds[k]:.4f}" if k in self.seconds else "–"
            rows.append((f"{k}", f"{self.n - k}", number, "best" if k == self.best else note))
        whys = dict.fromkeys(f"no plan with k = {k}: {why}" for k, why in self.refused.items())
        return "\n".join([*(line.rstrip() for line in aligned(rows)), *whys])


def choose(job: Job, input_shape: tuple[int, ...], straggling: float) -> Choice:
    """Return the mean latency of a query for every k that the job's k + r units may have.

    Raises JobError if the job names no cluster or leaves no choice, PlanError if no k has a plan.
    """
    if job.plan.planner is not None:
        raise JobError(f"{job.file}: planner in [plan] decides k; leave it out, or --choose-k")
    if job.plan.tiles is not None or job.plan.weights is not None:
        raise JobError(f"{job.file}: tiles and weights in [plan] are for one k; leave them out")
    chain = traced(job, network(job).requires_grad_(False), input_shape)
    model = cost_model(job, chain)
    if model is None:
        raise JobError(
            f"{job.file}: [plan] cluster is missing, a measured cluster to simulate the job on: "
            "name a file that mpicoded profile makes"
        )
    n, seconds, refused = job.code.k + job.code.r, dict[int, float](), dict[int, str]()
    for k in range(1, n + 1):
        try:
            seconds[k] = _latency(job, chain, model, k, n, straggling)
        except PlanError as error:
            refused[k] = str(error)
    if not seconds:
        raise PlanError(next(iter(refused.values())))
    return Choice(n, seconds, refused)


def _latency(job: Job, chain: Chain, model: CostModel, k: int, n: int, straggling: float) -> float:
    """Return the mean seconds of a query, one in flight; its accuracy plays no part."""
    name = job.code.name if k < n else "uncoded"
    code = job.code.model_copy(update={"k": k, "r": n - k, "name": name})
    its = job.model_copy(update={"code": code})
    its_plan = plan(its, chain)
    deployment = Deployment(chain, its_plan, codes(its, its_plan, chain, fresh=True))
    settings = job.settings.model_copy(update={"window": 1, "min_accuracy": None})
    answers, _ = simulate(
        deployment, model, settings, QUERIES, seed=job.seed, straggling=straggling
    )
    return float(np.mean([answer.latency for answer in answers[FIRST:]]))
