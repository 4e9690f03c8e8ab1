"""``plan --choose-k``: the same job with every k of its n units, by the clock of a cost model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpicoded import clusterfile
from mpicoded.cost import choice
from mpicoded.cost.redundancy import Laws, closed_form, expected, replicated
from mpicoded.deploy import codes, cost_model, network, plan, traced
from mpicoded.errors import JobError, PlanError
from mpicoded.job import Job
from mpicoded.network.graph import Chain
from mpicoded.plan import Plan


def choose(
    job: Job, input_shape: tuple[int, ...], laws: Path | None, straggling: float
) -> choice.Choice:
    """Return the seconds of a query for every k that its k + r units may have.

    With a file of ``laws``, by CoCoI's model of independent workers; otherwise on the job's
    measured cluster, with units that straggle.

    Raises
    ------
    JobError
        If there is neither, or the job leaves no choice.
    """
    if job.plan.tiles is not None or job.plan.weights is not None:
        raise JobError(f"{job.file}: tiles and weights in [plan] are for one k; leave them out")
    chain = traced(job, network(job).requires_grad_(False), input_shape)
    n = job.code.k + job.code.r
    if laws is not None:
        return _by_laws(plan(job, chain), chain, n, clusterfile.read_laws(laws))
    model = cost_model(job, chain)
    if model is None:
        raise JobError(
            f"{job.file}: [plan] cluster is missing, a measured cluster to price plans on; or give "
            "--laws FILE, as data/laws/pi.toml"
        )
    seconds, refused = _every(job, chain, n, lambda p: choice.delayed(model, p, straggling))
    fitted = choice.laws(model.cluster, straggling)
    return choice.Choice(n, seconds, refused, _closed(plan(job, chain), chain, n, fitted))


def _every(
    job: Job, chain: Chain, n: int, price: Callable[[Plan], float]
) -> tuple[dict[int, float], dict[int, str]]:
    seconds, refused = dict[int, float](), dict[int, str]()
    for k in range(1, n + 1):
        name = job.code.name if k < n else "uncoded"
        code = job.code.model_copy(update={"k": k, "r": n - k, "name": name})
        its = job.model_copy(update={"code": code})
        try:
            its_plan = plan(its, chain)
            codes(its, its_plan, chain, fresh=True)
        except PlanError as error:
            refused[k] = str(error)
            continue
        seconds[k] = price(its_plan)
    if not seconds:
        raise PlanError(next(iter(refused.values())))
    return seconds, refused


def _by_laws(its_plan: Plan, chain: Chain, n: int, laws: Laws) -> choice.Choice:
    layers = [choice.layer(chain, chain.blocks[stage.last]) for stage in its_plan.stages]
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(layers):
        raise JobError("--laws is a model of convolutions: let stages be such, linear = true")
    total = np.sum([expected(layer, laws, n) for layer in known], axis=0)
    return choice.Choice(
        n,
        {k: float(total[k - 1]) for k in range(1, n + 1)},
        {},
        _closed(its_plan, chain, n, laws),
        sum(replicated(layer, laws, n) for layer in known),
    )


def _closed(its_plan: Plan, chain: Chain, n: int, laws: Laws) -> dict[str, int]:
    layers = {s.name: choice.layer(chain, chain.blocks[s.last]) for s in its_plan.stages}
    return {name: closed_form(layer, laws, n) for name, layer in layers.items() if layer}
