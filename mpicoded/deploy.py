"""From a job to a Deployment: images, network, plan, codes, all checked against one another."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mpicoded import calibrated, datasets, models
from mpicoded.build import Recipe, Trained, build, fingerprint
from mpicoded.codes import Code
from mpicoded.codes.quality import Quality
from mpicoded.cost.model import CostModel, Formats
from mpicoded.cost.prediction import Prediction
from mpicoded.errors import JobError
from mpicoded.models.check import check_weights
from mpicoded.models.weights import read_weights as read_weights
from mpicoded.network.graph import Chain
from mpicoded.network.ops import Pixels
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import Deployment

if TYPE_CHECKING:
    from mpicoded.job import Job


def images(job: Job, split: str, limit: int | None = None) -> datasets.Data:
    """Return the images of ``split`` of the job's input, resized as the job says.

    Raises
    ------
    DataError
        If there are none.
    JobError
        If the job's mean and std do not fit them.
    """
    given = job.input
    data = datasets.load(given.data, split, size=given.size, limit=limit, folder=job.file.parent)
    _tell(data.note)
    channels, values = data.images.shape[1], max(len(given.mean), len(given.std))
    if values == data.images.shape[3] <= 4 < channels:
        raise JobError(
            f"[input] {data.name} has shape {data.images.shape}, channels last; images are "
            "(N, C, H, W): save it again with .transpose(0, 3, 1, 2)"
        )
    if values not in (1, channels):
        raise JobError(
            f"[input] mean and std are of {values} channels, and {data.name} has {channels}: give "
            "one value for all channels, or one for each"
        )
    if data.images.dtype != "uint8" and given.model_fields_set & {"mean", "std"}:
        raise JobError(
            f"[input] mean and std are for 8-bit images, {data.name} holds {data.images.dtype} and "
            "the model gets that as it is: leave them out"
        )
    return data


@functools.cache
def _tell(note: str) -> None:
    """Print what a user should know of the images, once."""
    if note:
        print(f"r0 | {note}", file=sys.stderr)


def network(job: Job) -> nn.Module:
    """Return the job's base model, in eval mode, with its weights if it names any."""
    model = models.build(job.model.name, job.model.args)
    if job.model.weights is not None:
        models.load_weights(model, job.path(job.model.weights))
    check_weights(model)
    return model


def recipe(job: Job) -> Recipe:
    """Return what the job's plan and codes are made from."""
    plan, code = job.plan, job.code
    return Recipe(
        k=code.k,
        r=code.r,
        code=code.name,
        split=plan.split,
        stages=() if plan.stages == "auto" else plan.stages,
        tiles=plan.tiles,
        shares=plan.weights,
        batch=job.input.batch,
        linear=plan.linear,
        direct=plan.exchange == "neighbours",
        args=code.args,
        seed=job.seed,
        untrained=code.untrained,
    )


def traced(job: Job, model: nn.Module, input_shape: tuple[int, ...]) -> Chain:
    """Return the job's base model, read and divided into blocks as its plan needs them."""
    return recipe(job).trace(model, input_shape)


def plan(job: Job, chain: Chain) -> Plan:
    """Return the job's plan for ``chain``; with stages = "auto", the one predicted fastest."""
    return recipe(job).plan(chain, cost_model(job, chain) if job.plan.stages == "auto" else None)


def cost_model(job: Job, chain: Chain) -> CostModel | None:
    """Return what prices the job's plans; None if the job names no measured cluster."""
    cluster = job.measured()
    if cluster is None:
        return None
    formats = Formats.of(job.runtime.wire, job.runtime.parity, job.runtime.answers)
    return CostModel(chain, cluster, formats, first_k=job.gather.deadline == 0)


def predict(job: Job, deployment: Deployment) -> Prediction | None:
    """Return what a query takes by the job's plan; None if the job names no measured cluster."""
    model = cost_model(job, deployment.chain)
    return None if model is None else model.predict(deployment.plan)


def trained(job: Job) -> Trained | None:
    """Return the weights of the job's codes; None if it names none."""
    if job.code.weights is None:
        return None
    path = job.path(job.code.weights)
    return Trained(*read_weights(path), str(path))


def deploy(job: Job, input_shape: tuple[int, ...], query: Tensor | None = None) -> Deployment:
    """Return the job's deployment for images of ``input_shape`` (C, H, W), checked on a query."""
    model = network(job).requires_grad_(False)
    chain = traced(job, model, input_shape)

    def worth(code: Code, plan: Plan) -> Quality | None:
        table = calibrated.table(job)
        about = calibrated.subject(job, code, plan, fingerprint(model.state_dict()))
        return None if table is None else calibrated.fitting(job, table, about)

    return build(
        recipe(job),
        chain,
        job.settings,
        plan=plan(job, chain),
        trained=trained(job),
        worth=worth,
        pixels=pixels(job),
        query=query,
    )


def pixels(job: Job) -> Pixels:
    """Return how 8-bit pixels become the network's numbers in this job."""
    return Pixels.of(job.input.mean, job.input.std)
