"""Build a deployment: chain, plan and codes of a model, all checked against one another."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from mpicoded.codes import CODES, Code, CodeRequest, Trainable
from mpicoded.codes.quality import Quality
from mpicoded.codes.trainable import WAY_OUT
from mpicoded.cost.model import CostModel
from mpicoded.errors import DataError, JobError, unknown_name
from mpicoded.network.graph import Chain, trace
from mpicoded.network.linear import opened
from mpicoded.network.ops import Pixels
from mpicoded.partition import PARTITIONS, Request, auto
from mpicoded.plan import Plan
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.setup import check_packs

if TYPE_CHECKING:
    from mpicoded.settings import Settings  # needs pydantic, and workers import this module

Worth = Callable[[Code, Plan], Quality | None]  # what a code's answers are worth in a plan


class Trained(NamedTuple):
    """Trained codes of all stages: the weights file's tensors, its metadata, and its name."""

    weights: Mapping[str, Tensor]
    about: Mapping[str, str]
    source: str = "given as weights"


@dataclass(frozen=True)
class Recipe:
    """All that makes a plan and its codes for a chain; fields are those of a job.

    ``direct`` is [plan] exchange = "neighbours". ``untrained`` takes fresh codes that would have to
    learn; ``seed`` is of their first weights.
    """

    k: int
    r: int = 0
    code: str = "uncoded"
    split: str = "height"
    stages: Sequence[str] = ()
    tiles: tuple[int, int] | None = None
    shares: tuple[float, ...] | None = None
    batch: int = 1
    linear: bool = False
    direct: bool = False
    args: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    untrained: bool = False

    def __post_init__(self) -> None:
        """Raise JobError for an unknown name; filters are cut where stages are linear."""
        known: tuple[tuple[str, str, Mapping[str, Any]], ...]
        known = (("code", self.code, CODES), ("split", self.split, PARTITIONS))
        for what, name, names in known:
            if name not in names:
                raise JobError(f"{what}: {unknown_name(name, names)}")
        object.__setattr__(self, "linear", self.linear or self.split == "channels")

    def trace(self, model: nn.Module, shape: tuple[int, ...]) -> Chain:
        """Return the model for images of ``shape`` (C, H, W), in blocks as the plan needs them."""
        chain = trace(model, shape)
        return opened(chain) if self.linear else chain

    def plan(self, chain: Chain, cost: CostModel | None = None) -> Plan:
        """Return the plan; with a ``cost`` model, that of the stages that it predicts fastest."""
        planner = PARTITIONS[self.split]
        request = Request(
            chain, self.k, self.r, tuple(self.stages), self.tiles, self.shares, self.batch,
            linear=self.linear, direct=self.direct,
        )  # fmt: skip
        if cost is not None:
            request = replace(request, stages=auto.stages(request, planner, cost))
        return planner(request)

    def codes(self, plan: Plan, chain: Chain, trained: Trained | None = None) -> tuple[Code, ...]:
        """Return the code of every stage, fresh or with its weights.

        Raises
        ------
        DataError
            If the weights do not fit the stage.
        """
        count = len(plan.stages)
        parts: list[tuple[Mapping[str, Tensor] | None, Mapping[str, str]]] = [(None, {})] * count
        source = trained.source if trained else ""
        try:
            if trained is not None:
                parts = [of_stage(trained.weights, trained.about, s, count) for s in range(count)]
        except DataError as error:
            raise DataError(f"{source}: {error}{WAY_OUT}") from error
        try:
            return tuple(
                CODES[self.code](
                    CodeRequest(plan.k, plan.r, stage, *part, self.args, chain, self.seed)
                )
                for stage, part in zip(plan.stages, parts, strict=True)
            )
        except DataError as error:
            raise DataError(f"{source}: {error}") from error

    def ready_codes(
        self, plan: Plan, chain: Chain, trained: Trained | None = None
    ) -> tuple[Code, ...]:
        """Return :meth:`codes` that can serve: with weights of this base model, if they learn.

        Raises
        ------
        DataError
            If the weights do not fit the stage or the base model.
        JobError
            If a code that learns has no weights, and nobody wants it untrained.
        """
        codes = self.codes(plan, chain, trained)
        if trained is not None:
            _check_base(trained, chain.model)
            return codes
        learns = any(isinstance(code, Trainable) for code in codes)
        if learns and not self.untrained:
            raise JobError(
                f'[code] weights is missing; make the weights of the code "{self.code}" with '
                "`mpicoded train`, name the file here (or measure times only, with untrained = "
                "true)"
            )
        if self.untrained and not learns:
            raise JobError(
                f'[code] untrained: the code "{self.code}" has nothing to train; leave it out'
            )
        return codes


def build(
    recipe: Recipe,
    chain: Chain,
    settings: Settings,
    *,
    plan: Plan | None = None,
    trained: Trained | None = None,
    worth: Worth | None = None,
    pixels: Pixels | None = None,
    query: Tensor | None = None,
) -> Deployment:
    """Return the deployment of a traced model, checked on a query before anything starts."""
    plan = plan or recipe.plan(chain)
    codes = recipe.ready_codes(plan, chain, trained)
    plan = plan.running(code.unit_flops(plan.k) for code in codes)
    if worth is not None and len(codes) == 1:
        codes[0].quality = worth(codes[0], plan)
    deployment = Deployment(chain, plan, codes, pixels)
    deployment.aims(settings.min_accuracy)
    deployment.check_wire(settings.wire, settings.parity)
    check_packs(deployment.programs())
    check(deployment, query)
    return deployment


def joined(abouts: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata of the codes of all stages; :func:`of_stage` takes it apart.

    A single stage's has no number.
    """
    if len(abouts) == 1:
        return dict(abouts[0])
    told = {f"{s}.{key}": text for s, about in enumerate(abouts) for key, text in about.items()}
    return told | {"stages": str(len(abouts)), "base": abouts[0].get("base", "")}


def of_stage(
    tensors: Mapping[str, Tensor], about: Mapping[str, str], number: int, stages: int
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights of one stage's code, and their metadata.

    Raises
    ------
    DataError
        If the file is of another number of stages.
    """
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
    """Return what is hashed of a tensor, or of what else a quantised layer has among its own."""
    with suppress(AttributeError, TypeError, RuntimeError):
        plain: bytes = value.detach().contiguous().numpy().tobytes()
        return plain
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def _check_base(trained: Trained, model: nn.Module) -> None:
    # A code learned to fill the holes of one set of base weights, and of no other.
    have, own = trained.about.get("base_weights"), fingerprint(model.state_dict())
    if have is not None and have != own:
        raise DataError(
            f"the code {trained.source} was trained for weights {have} of "
            f"{trained.about.get('base', 'its model')}, and the job's model has {own}: name those "
            "weights in [model] (load them, for a Group), or train the code again: python -m "
            "mpicoded train JOB"
        )
