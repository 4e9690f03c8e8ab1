"""Deploy a job: images, network, plan and codes, all checked against one another."""

from __future__ import annotations

import functools
import hashlib
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mpicoded import datasets, expected_accuracy, models
from mpicoded.cluster import Cluster
from mpicoded.codes import CODES, Code, CodeRequest, Trainable
from mpicoded.codes.trainable import WAY_OUT
from mpicoded.cost.memory import Memory
from mpicoded.cost.model import CostModel, Formats
from mpicoded.cost.prediction import Prediction
from mpicoded.cost.usage import Usage
from mpicoded.errors import DataError, JobError
from mpicoded.expected_accuracy import AccuracyTable
from mpicoded.geometry import Range
from mpicoded.models.check import check_weights
from mpicoded.models.weights import read_weights as read_weights
from mpicoded.network.graph import Chain, trace
from mpicoded.network.linear import split_at_activations
from mpicoded.network.ops import Normalize
from mpicoded.plan import Plan
from mpicoded.planners import PLANNERS, Problem, boundaries
from mpicoded.planners.edges import hiding
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.replanner import Replanner
from mpicoded.runtime.setup import check_packs
from mpicoded.scheduling.switch import Speed, Switch
from mpicoded.split import SPLITS, Request

if TYPE_CHECKING:
    from mpicoded.job import Job

ALIKE = 1.1  # times: speeds that differ by less are the noise of their measurement

# of a run that is simulated for its p99: random delays as a share of what messages and units take
TAIL_QUERIES, STRAGGLING = 200, 0.5


class Trained(NamedTuple):
    """Trained codes of all stages: the weights file's tensors, its metadata, and its name."""

    weights: Mapping[str, Tensor]
    about: Mapping[str, str]
    source: str = "given as weights"


def images(job: Job, split: str, limit: int | None = None) -> datasets.Data:
    """Return the images of ``split``, resized as the job says; DataError, JobError."""
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


def traced(job: Job, model: nn.Module, input_shape: tuple[int, ...]) -> Chain:
    """Return the job's base model, read and divided into blocks as its plan needs them."""
    chain = trace(model, input_shape)
    return split_at_activations(chain) if opens(job) else chain


def opens(job: Job) -> bool:
    """Return whether stages are linear, and so may end within a block, before its activation."""
    return job.plan.linear or job.plan.split == "channels"


def plan(job: Job, chain: Chain, cluster: Cluster | None = None) -> Plan:
    """Return the job's plan for ``chain``: its own, its planner's, or in part that of "auto".

    ``cluster`` has the speeds that are measured now; default: those that the job names.
    """
    spec, split = job.plan, SPLITS[job.plan.split]
    if spec.planner is not None:
        return PLANNERS[spec.planner](problem(job, chain, cluster))
    request = Request(
        chain,
        job.code.k,
        job.code.r,
        stages=() if spec.stages == "auto" else spec.stages,
        tiles=spec.tiles,
        weights=spec.weights or shares(job, chain, cluster),
        batch=job.input.batch,
        linear=opens(job),
        direct=spec.exchange == "neighbours",
        keeps=job.code.r > 0 and spec.lost_halo == "recompute",
    )
    model = cost_model(job, chain, cluster)
    if spec.stages == "auto":
        assert model is not None, "the job was checked: auto has a cluster"
        request = replace(request, stages=boundaries.stages(request, split, model))
    found = split.plan(request)
    return hiding(found, model) if request.direct and model is not None else found


def shares(job: Job, chain: Chain, now: Cluster | None = None) -> tuple[float, ...] | None:
    """Return the shares of strips or filters by the measured speeds of their ranks.

    None, for equal ones, where no speeds are known or they hardly differ, and where a code gives
    slow ranks the parity.
    """
    spec, cluster = job.plan, now or job.measured()
    if cluster is None or spec.split == "batch" or spec.linear or job.code.r:
        return None
    model, blocks = cost_model(job, chain, cluster), range(len(chain.blocks))
    assert model is not None, "there is a cluster"
    workers = cluster.workers[: job.code.k]
    seconds = [model.blocks(blocks, 1, rank=p) for p in workers]
    if len(workers) < job.code.k or not seconds or max(seconds) <= ALIKE * min(seconds):
        return None
    speeds = tuple(min(seconds) / each for each in seconds)
    if now is None:
        told = " : ".join(f"{speed:.2f}" for speed in speeds)
        _tell(f"shares of the k = {job.code.k} units by the speeds in {spec.cluster}: {told}")
    return speeds


def replanner(job: Job, deployment: Deployment) -> Replanner | None:
    """Return what makes another plan while the job runs; None if it wants none."""
    chain, model = deployment.chain, cost_model(job, deployment.chain)
    if job.plan.bound is None or model is None:
        return None
    made = Replanner(job.plan.bound, lambda now: plan(job, chain, now.cluster), model, deployment)
    if job.plan.objective == "throughput" or job.plan.planner in ("pico", "replicas"):
        made.price = lambda now, its_plan: Usage.of(now, its_plan).period
    return made


def problem(job: Job, chain: Chain, cluster: Cluster | None = None) -> Problem:
    """Return what planners are to solve; JobError if the job names no measured cluster."""
    model = cost_model(job, chain, cluster)
    if model is None:
        raise JobError(
            f"{job.file}: [plan] cluster is missing, a measured cluster to plan for: name a file "
            "that mpicoded profile makes"
        )
    tail = partial(_tail, job, model)
    objective, limit = job.plan.objective, job.plan.latency_limit or inf
    return Problem(model, job.input.batch, job.runtime.window, objective, tail, latency_limit=limit)


def _tail(job: Job, model: CostModel, its_plan: Plan) -> float:
    """Return the latency that 99 of 100 queries of a simulated run do not exceed, in seconds."""
    from mpicoded.simulate import simulate  # a run of the job has no use for it

    chain, queries = model.chain, TAIL_QUERIES
    deployment = Deployment(chain, its_plan, codes(job, its_plan, chain, fresh=True))
    offers = job.schedule(queries)
    answers, _ = simulate(
        deployment,
        model,
        job.settings,
        queries,
        offers=None if offers is None else offers.tolist(),
        seed=job.seed,
        straggling=STRAGGLING,
    )
    return float(np.percentile([answer.latency for answer in answers], 99))


def cost_model(job: Job, chain: Chain, cluster: Cluster | None = None) -> CostModel | None:
    """Return the cost model of the job's plans on a cluster, the job's own; None without any."""
    cluster = cluster or job.measured()
    if cluster is None:
        return None
    formats = Formats.of(job.runtime.wire, job.runtime.parity, job.runtime.answers)
    return CostModel(chain, cluster, formats, first_k=job.gather.deadline == 0)


def predict(job: Job, deployment: Deployment) -> Prediction | None:
    """Predict the time of a query by the job's plan; None if the job names no measured cluster."""
    model = cost_model(job, deployment.chain)
    return None if model is None else model.predict(deployment.plan)


def trained(job: Job) -> Trained | None:
    """Return the weights of the job's codes; None if it names none."""
    if job.code.weights is None:
        return None
    path = job.path(job.code.weights)
    return Trained(*read_weights(path), str(path))


def codes(
    job: Job, plan: Plan, chain: Chain, given: Trained | None = None, *, fresh: bool = False
) -> tuple[Code, ...]:
    """Return the code of every stage; only a ``fresh`` one may still have to learn.

    The job's own is of the last stage of every segment; those before it have none.

    Raises DataError if the weights do not fit the stage, or were trained with others of the base
    model; JobError if a code that learns has no weights, and the job does not want it untrained.
    """
    count = len(plan.segments)
    parts: list[tuple[Mapping[str, Tensor] | None, Mapping[str, str]]] = [(None, {})] * count
    where, end = (f"{given.source}: " if given else ""), WAY_OUT
    try:
        if given is not None:
            parts = [of_stage(given.weights, given.about, s, count) for s in range(count)]
        end = ""
        built = tuple(
            code
            for segment, part in zip(plan.segments, parts, strict=True)
            for code in _segment_codes(job, plan, chain, segment, part)
        )
    except DataError as error:
        raise DataError(f"{where}{error}{end}") from error
    if given is not None:
        _check_base(given, chain.model)
    elif not fresh:
        _check_untrained(job, any(isinstance(code, Trainable) for code in built))
    return built


def _segment_codes(
    job: Job,
    plan: Plan,
    chain: Chain,
    segment: Range,
    part: tuple[Mapping[str, Tensor] | None, Mapping[str, str]],
) -> Iterator[Code]:
    last = segment.stop - 1
    for stage in plan.stages[segment.start : last]:
        yield CODES["uncoded"](CodeRequest(stage.k, 0, stage))
    r = plan.parities(last)
    stage = plan.fused(last) if r else plan.stages[last]  # a pipeline has units of its own a stage
    yield CODES[job.code.name](
        CodeRequest(stage.k, r, stage, *part, job.code.args, chain, job.seed)
    )


def build(
    job: Job,
    chain: Chain,
    given: Trained | None,
    table: AccuracyTable | None,
    pixels: Normalize | None = None,
    query: Tensor | None = None,
) -> Deployment:
    """Return the job's deployment of a traced model, checked on a query; DataError, PlanError."""
    its_plan = plan(job, chain)
    built = codes(job, its_plan, chain, given)
    its_plan = its_plan.running(code.unit_flops(code.k) for code in built)
    if table is not None and len(its_plan.segments) == 1:
        base = fingerprint(chain.model.state_dict())
        about = expected_accuracy.about_job(job, built[-1], its_plan, base)
        built[-1].expected = expected_accuracy.fitting(job, table, about)
    measured = job.measured()
    room = (1, 1)
    if job.plan.bound is not None and measured is not None:  # for plans yet to come
        room = max(1, len(chain.blocks)), len(measured.hosts)
    deployment = Deployment(chain, its_plan, built, pixels, room=room)
    deployment.aims(job.gather.min_accuracy)
    deployment.check_wire(job.runtime.wire, job.runtime.parity)
    if measured is not None:
        Memory(chain, job.runtime.window).check(its_plan, measured)
    check_packs(deployment.programs())
    check(deployment, query)
    return deployment if job.plan.switch is None else _with_second(job, deployment, query)


def _with_second(job: Job, first: Deployment, query: Tensor | None) -> Deployment:
    """Return the deployment with the plan of [plan] switch beside its own."""
    assert job.plan.switch is not None, "one is named"
    its_problem = replace(problem(job, first.chain), objective="throughput")
    second = first.replanned(PLANNERS[job.plan.switch](its_problem))
    Memory(first.chain, job.runtime.window).check(second.plan, its_problem.cluster)
    check(second, query)
    return replace(first, others=(second,))


def switch(job: Job, deployment: Deployment) -> Switch | None:
    """Return what chooses a plan for the queries of a job; None if it has one."""
    model = cost_model(job, deployment.chain)
    if model is None or not deployment.others:
        return None
    plans = [deployment.plan, *(other.plan for other in deployment.others)]
    return Switch([Speed(Usage.of(model, p).period, model.predict(p).latency) for p in plans])


def deploy(job: Job, input_shape: tuple[int, ...], query: Tensor | None = None) -> Deployment:
    """Return the job's deployment for images of ``input_shape`` (C, H, W), checked on a query."""
    chain = traced(job, network(job).requires_grad_(False), input_shape)
    return build(job, chain, trained(job), expected_accuracy.read_table(job), pixels(job), query)


def pixels(job: Job) -> Normalize:
    """Return how 8-bit pixels become the network's numbers in this job."""
    return Normalize.of(job.input.mean, job.input.std)


def joined(abouts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata of all stages' codes, numbered if several; :func:`of_stage` splits it."""
    if len(abouts) == 1:
        return dict(abouts[0])
    told = {f"{s}.{key}": text for s, about in enumerate(abouts) for key, text in about.items()}
    return told | {"stages": str(len(abouts)), "base": abouts[0].get("base", "")}


def of_stage(
    tensors: Mapping[str, Tensor], about: Mapping[str, str], number: int, stages: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return one stage's weights and metadata; DataError if the file has other stages."""
    have = about.get("stages", "1")
    if have != str(stages):
        raise DataError(f"the code's weights are of {have} stages, and the plan has {stages}")
    if stages == 1:
        return dict(tensors), dict(about)
    start = f"{number}."
    weights = {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}
    return weights, {k.removeprefix(start): t for k, t in about.items() if k.startswith(start)}


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return twelve hexadecimal digits that tell one set of weights from another."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(key.encode())
        digest.update(_bytes(tensors[key]))
    return digest.hexdigest()[:12]


def _bytes(value: Any) -> bytes:
    """Return the bytes to hash of a tensor, or of what else a quantised layer has among its own."""
    with suppress(AttributeError, TypeError, RuntimeError):
        plain: bytes = value.detach().contiguous().numpy().tobytes()
        return plain
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _check_untrained(job: Job, learns: bool) -> None:
    name = job.code.name
    if learns and not job.code.untrained:
        raise JobError(
            f'{job.file}: [code] weights is missing; make the weights of the code "{name}" with '
            "`mpicoded train`, name the file here (or measure times only, with untrained = true)"
        )
    if job.code.untrained and not learns:
        raise JobError(
            f'{job.file}: [code] untrained: the code "{name}" has nothing to train; leave it out'
        )


def _check_base(given: Trained, model: nn.Module) -> None:
    # A code learned to fill the holes of one set of base weights, and of no other.
    have, own = given.about.get("base_weights"), fingerprint(model.state_dict())
    if have is not None and have != own:
        raise DataError(
            f"the code {given.source} was trained for weights {have} of "
            f"{given.about.get('base', 'its model')}, and the job's model has {own}: name those "
            "weights in [model] (load them, for a Group), or train the code again: "
            "python -m mpicoded train JOB"
        )
