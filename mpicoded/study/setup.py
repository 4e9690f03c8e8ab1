"""Set up a training from a job: its images, its network or code, and the objective.

The objective of a base model is BaseObjective; of a code whose units are shards CodeObjective, one
a stage in a StagesObjective; of one whose units are images ImageObjective.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mpicoded import deploy
from mpicoded.codes import Trainable
from mpicoded.errors import DataError, JobError, ModelError
from mpicoded.job import Job, TrainSpec
from mpicoded.models.check import check_trainable
from mpicoded.network.graph import Chain, trace
from mpicoded.network.ops import Normalize
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.runtime.threads import use_threads
from mpicoded.study.code_objective import CodeObjective
from mpicoded.study.image_objective import ImageObjective
from mpicoded.study.objectives import BaseObjective, Images, Jitter, Objective, StagesObjective

SPLIT_SEED = 1_000_003  # more than any number of epochs: seeds of two jobs do not meet


@contextmanager
def threads(job: Job) -> Iterator[None]:
    """Compute with as many threads as the job says: sums in one order, the same weights again."""
    before = torch.get_num_threads()
    use_threads(job.runtime.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_of(job: Job, spec: TrainSpec) -> torch.device:
    """Return the device to train on; JobError if the job wants CUDA and there is none."""
    found = torch.cuda.is_available()
    if spec.device == "cuda" and not found:
        raise JobError(
            f'{job.file}: [train] device = "cuda", and torch {torch.__version__} finds no CUDA '
            'device here: set device = "auto"'
        )
    return torch.device("cuda" if found and spec.device != "cpu" else "cpu")


def objective(job: Job, spec: TrainSpec, device: torch.device) -> tuple[Objective, dict[str, str]]:
    """Return a job's objective and its weights' metadata; an error if the job does not fit."""
    data = training_images(job, spec, device)
    jitter = Jitter(spec.shift, spec.rotate, spec.scale, spec.flip)
    if spec.kind == "base":
        model = _laid(deploy.network(job).to(device), spec)
        check_trainable(model)
        _check_classes(job, trace(model, tuple(data.pixels.shape[1:])), data)
        about = {"model": job.model.name, "args": json.dumps(job.model.args)}
        return BaseObjective(model, data, jitter, spec.smoothing), about
    base = _check_base(job, spec, tuple(data.pixels.shape[1:]))
    found = _untrained(job, spec, data)
    about = deploy.joined([code.metadata(job.model.name) for _, code in found])
    about["base_weights"] = base
    (deployment, code), *others = found
    if deployment.plan.stages[0].split == "batch":
        data = _whole_groups(spec, data, code.k)
        return ImageObjective(deployment, code, data, jitter, spec.loss), about
    options = (spec.features, spec.loss, spec.alone)
    objectives = [CodeObjective(d, c, data, jitter, *options) for d, c in found]
    return StagesObjective(objectives) if others else objectives[0], about


def _check_base(job: Job, spec: TrainSpec, shape: tuple[int, ...]) -> str:
    """Check the programs of the base model's units, on the CPU; return its weights' fingerprint."""
    model = deploy.network(job).requires_grad_(False)
    chain = deploy.traced(job, model, shape)
    of_features = spec.loss == "mixture" and job.plan.split != "batch"
    if chain.output_shape == (1,) and not (of_features or spec.loss == "mse-base"):
        raise ModelError(
            f"model {job.model.name!r} gives one number an image, whose softmax is always 1, so "
            f'that loss = "{spec.loss}" teaches nothing: set loss = "mse-base" in [train]'
        )
    check(uncoded(chain, deploy.plan(job, chain), deploy.pixels(job)))
    return deploy.fingerprint(model.state_dict())


def _laid(model: nn.Module, spec: TrainSpec) -> nn.Module:
    """Lay channels last for bfloat16: its fast kernels want them so."""
    if spec.precision == "bfloat16":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def _check_classes(job: Job, chain: Chain, data: Images) -> None:
    classes = int(data.labels.max()) + 1
    if len(chain.output_shape) != 1 or chain.output_shape[0] < classes:
        raise ModelError(
            f"model {job.model.name!r} gives {chain.output_shape} numbers an image, and "
            f"{job.input.data!r} has {classes} classes: set the number of classes in [model] args"
        )


def _untrained(job: Job, spec: TrainSpec, data: Images) -> list[tuple[Deployment, Trainable]]:
    """Return a deployment a stage, with a fresh code, the only part that learns."""
    if job.code.weights is not None:
        raise JobError(
            f'{job.file}: kind = "code" makes weights, and [code] has weights = '
            f"{job.code.weights!r}: leave them out, or name them in [train] start"
        )
    model = deploy.network(job).requires_grad_(False).to(data.device)
    chain = deploy.traced(job, _laid(model, spec), tuple(data.pixels.shape[1:]))
    whole = deploy.plan(job, chain)
    built, found = deploy.codes(job, whole, chain, fresh=True), []
    lasts = [segment.stop - 1 for segment in whole.segments]
    for number, last in enumerate(lasts):
        stage, code = whole.fused(last), built[last]
        if not isinstance(code, Trainable):
            raise JobError(
                f'{job.file}: kind = "code" trains a code with weights, and the code '
                f'{code.name!r} has none: it is used as it is; name "learned" in [code]'
            )
        if spec.start is not None:
            _start(code, job.path(spec.start), number, len(lasts))
        _laid(code.networks.to(data.device), spec)
        own = Deployment(chain, replace(whole, stages=(stage,)), (code,), data.normalize)
        found.append((own, code))
    return found


def _start(code: Trainable, path: Path, number: int, stages: int) -> None:
    """Begin with weights that were trained for another plan or base model, say."""
    weights, about = deploy.read_weights(path)
    try:
        code.begin(*deploy.of_stage(weights, about, number, stages))
    except DataError as error:
        raise DataError(
            f"[train] start = {path}: {error}. Name weights of a code with the same r, args and "
            "number of stages, or leave start out"
        ) from error


def training_images(job: Job, spec: TrainSpec, device: torch.device) -> Images:
    """Return the training part of the job's input, a seeded share of it held back.

    The share is the same whenever the seed is, so a training that goes on validates with what it
    never trained on. Raises DataError if there are no labels, or too few images.
    """
    data = deploy.images(job, "train", job.input.limit)
    if data.labels is None:
        raise DataError(f"{job.input.data!r} has no labels, and training needs them")
    order = split(job.seed, len(data.images))
    held_back = max(1, round(spec.validation * len(order)))
    if len(order) - held_back < spec.batch:
        raise DataError(
            f"{job.input.data!r} has {len(order)} training images; less {held_back} for validation "
            f"they do not fill a batch of {spec.batch}: lower batch or validation in [train]"
        )
    of = deploy.pixels(job)
    return Images(
        torch.from_numpy(data.images).to(device),
        torch.from_numpy(data.labels).to(device),
        rows=order[held_back:],
        held_back=order[:held_back],
        normalize=Normalize(of.scale.to(device), of.shift.to(device)),
    )


def split(seed: int, count: int) -> Tensor:
    """Return the order of ``count`` training images whose first ones a training holds back."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * SPLIT_SEED))


def _whole_groups(spec: TrainSpec, data: Images, k: int) -> Images:
    """Let batches and the validation part be whole groups of ``k`` images, or raise DataError."""
    if spec.batch % k:
        raise DataError(
            f"batch = {spec.batch} in [train] is no multiple of k = {k}, and a group has {k} "
            f"images: set batch = {max(1, round(spec.batch / k)) * k}"
        )
    extra = -len(data.held_back) % k  # rounded up, as the released code does
    if len(data.rows) - extra < spec.batch:
        raise DataError(
            f"{len(data.rows) - extra} training images do not fill a batch of {spec.batch}: lower "
            "batch or validation in [train]"
        )
    held_back = torch.cat((data.held_back, data.rows[:extra]))
    return replace(data, rows=data.rows[extra:], held_back=held_back)
