"""Comparison of the ready programs with the module itself, before the first message.

torch.fx reads forward(). It sees no hooks, no context manager, and no shape that holds only for the
number of images it was shown. So all that ranks will run is run once here, in the sizes that occur,
and compared with what torch gives for the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpicoded import dry_run
from mpicoded.errors import ModelError
from mpicoded.moves import schedule
from mpicoded.network.graph import Chain, whole_network
from mpicoded.network.linear import described
from mpicoded.network.unseen import (
    Unseen,
    culprit,
    has_own_call,
    loses,
    steps,
    unseen,
    varying,
    without_global_hooks,
)
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.split import SPLITS

Run = Callable[[Deployment, Tensor], Tensor]
# Of the largest output: the contract of two engines. Sums of float32 in another order stay a
# hundred times below it, what computes in halves or other numbers is above.
TOLERANCE = 1e-4
SCALES = (1.0, 30.0, 1 / 30)  # a hook may act on some values only


def check(deployment: Deployment, query: Tensor | None = None) -> None:
    """Run the units of ``query`` (B, C, H, W) and of random numbers; compare with the module.

    Raises
    ------
    ModelError
        If what ranks and the leader compute is not what the module gives, if that has another
        shape than promised, or if it is not the same each time.
    PlanError
        If the steps of units that exchange halos would not give each of them all that it reads.
    """
    bare = uncoded(deployment.chain, deployment.plan, deployment.pixels)
    chain = bare.chain
    if deployment.plan.direct:
        dry_run.check(schedule(deployment.plan), deployment.plan)
    things = unseen(chain)
    first, *others = _inputs(bare, query, bool(things) or has_own_call(chain.model))
    true = _outputs(chain, first)
    if (dealt := bare.plan.dealt) > 1:
        _outputs(chain, first[: len(first) // dealt])
    for run in (Deployment.run_unsplit, run_split)[: 1 + bool(bare.plan.stages)]:
        found = _compare(bare, first, true, run, things)
        if query is not None:  # made-up images may be none to take the logarithm of
            _check_finite(chain.model, found, true)
    for x in others:
        _compare(bare, x, _outputs(chain, x), Deployment.run_unsplit, things)
    if differs(_call(chain.model, first), true):  # it may keep a state of what it has seen
        raise _varies(chain, first)


def _inputs(bare: Deployment, query: Tensor | None, odd: bool) -> Iterator[Tensor]:
    """Yield the query and as many random images, and other sizes of them if a hook could care."""
    plan, chain = bare.plan, bare.chain
    dealt = plan.dealt
    count = dealt if plan.batch % dealt else plan.batch
    rng, shape = torch.Generator().manual_seed(0), (count, *chain.input_shape)
    random = torch.randn(shape, generator=rng, dtype=torch.float32)
    if bare.pixels is not None:
        random = bare.pixels(torch.randint(256, shape, generator=rng, dtype=torch.uint8))
    given = [random]
    if query is not None and len(query):
        given = [bare.normalize(query[torch.arange(count) % len(query)]), random]
    for scale in SCALES if odd else SCALES[:1]:
        yield from (x * scale for x in given)


def _call(model: nn.Module, x: Tensor) -> Any:
    """Return torch's own output; a module may overwrite its input."""
    with torch.no_grad():
        return model(x.clone())


@torch.inference_mode()
def run_split(bare: Deployment, x: Tensor) -> Tensor:
    """Return the output of all ranks together; the leader gathers every stage."""
    for s, stage in enumerate(bare.plan.stages):
        split = SPLITS[stage.split]
        units = zip(bare.ready_programs[s], split.cut(bare.prologue(s, x), stage), strict=True)
        x = split.stitch([run(unit.contiguous()) for run, unit in units], stage)
    return x if bare.ready_head is None else bare.ready_head(x)


def agrees(deployment: Deployment) -> bool:
    """True if all ranks together give what one device gives for a random query."""
    x = torch.randn(deployment.plan.batch, *deployment.chain.input_shape)
    return not differs(run_split(deployment, x), deployment.run_unsplit(x))


def differs(found: Any, true: Any) -> bool:
    """True if two outputs are apart by more than ``TOLERANCE``, where the true one is finite."""
    if not isinstance(found, Tensor) or found.shape != true.shape:
        return True
    return bool(_apart(found, true) > TOLERANCE)


def _apart(found: Tensor, true: Tensor) -> float:
    """Return the largest difference, as a share of the largest output."""
    known = true.isfinite()
    f, t = found.detach()[known].double(), true.detach()[known].double()
    if not t.numel() or torch.equal(f, t):
        return 0.0
    return float(((f - t).abs().max() / t.abs().max().clamp(min=1e-30)).nan_to_num(torch.inf))


def _compare(
    bare: Deployment, x: Tensor, true: Tensor, run: Run, things: Sequence[Unseen]
) -> Tensor:
    """Run x and return the output; ModelError unless that is ``true``, and x as it was."""
    kept = x.clone()
    try:
        with without_global_hooks():
            found = run(bare, x)
        right = not differs(found, true) and torch.equal(x, kept)
        if right and not loses(things, bare.chain, x, _call, true):
            return found
        said = f"are of shape {tuple(found.shape)} instead of {tuple(true.shape)}"
        if found.shape == true.shape:
            said = f"are {_apart(found, true):.2g} of its largest output apart"
    except Exception as error:  # whatever an operation of the user's raises
        said = f"fail: {_line(error)}"
    if differs(_call(bare.chain.model, kept), true):
        raise _varies(bare.chain, kept)
    name = type(bare.chain.model).__name__
    if not torch.equal(x, kept):
        raise ModelError(
            f"{name} overwrites the images that it is given, in an operation that torch.fx does "
            "not look into: let it work on a copy, x.clone()"
        )
    if run is run_split and bare.plan.dealt > 1:
        raise ModelError(
            f"{name} gives an image another answer in other company, and units are images: the "
            f"units {said}. Leave out what is computed over the images of a query (their mean, "
            "batch norm in training mode), or use another split"
        )
    why = culprit(bare.chain, kept, _call, differs)
    raise ModelError(
        f"{name} computes something else than its operations one by one, which {said}: {why}"
    )


def _check_finite(model: nn.Module, found: Tensor, true: Tensor) -> None:
    """Raise ModelError unless both are finite alike: a convolution with its ReLU makes 0 of NaN."""
    if not torch.equal(found.isfinite(), true.isfinite()):
        lost, others = (int((~y.isfinite()).sum()) for y in (true, found))
        raise ModelError(
            f"{type(model).__name__} gives {lost} outputs for the first query that are NaN or "
            f"infinite, and its operations for this CPU give {others}: let its layers give numbers "
            "(mind the logarithm or the root of 0, and weights that are too large)"
        )


def _varies(chain: Chain, x: Tensor) -> ModelError:
    name = type(chain.model).__name__
    where = varying(chain, x, _call, differs)
    return ModelError(
        f"{name} gives something else for the same images when it is called again in eval mode, "
        f"{where}: it must neither draw random numbers nor keep a state from call to call "
        "(F.dropout needs training=self.training)"
    )


def _outputs(chain: Chain, x: Tensor) -> Tensor:
    """Return torch's own outputs; ModelError unless there is one for every image."""
    expected = (len(x), *chain.output_shape)
    name, images = type(chain.model).__name__, f"{len(x)} image{'s' * (len(x) > 1)}"
    try:
        given = _call(chain.model, x)
        if isinstance(given, Tensor) and tuple(given.shape) == expected:
            return given
        said = f"gives {tuple(given.shape)} instead of {expected}"
    except Exception as error:  # whatever the model raises
        said = f"fails ({_line(error)})"
    where = _breaks(chain, x)
    raise ModelError(
        f"{name} {said} for {images}: {where} drops the axis of the images or counts on another "
        "number of them; keep that axis: x.flatten(1), x.squeeze(-1), x.view(x.size(0), -1)"
    )


def _breaks(chain: Chain, x: Tensor) -> str:
    """Name the first operation whose output has another shape than for two images."""
    whole, done, merging = whole_network(chain), 0, list[str]()
    try:
        for op, value in steps(whole, x):
            if isinstance(value, Tensor) and tuple(value.shape[1:]) != chain.shapes[op.name]:
                return described(op)
            if isinstance(value, Tensor) and value.shape[0] != len(x):
                merging.append(described(op))
            done += 1
    except Exception:  # the next one cannot run on what it is given
        return described(whole.ops[done])
    return merging[0] if merging else "forward() or a hook"


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
