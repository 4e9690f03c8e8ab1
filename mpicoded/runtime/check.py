"""The ready programs against the module itself, before the first message.

torch.fx reads forward(). It sees no hooks, no context manager, and no shape that holds only for the
number of images it was shown. So all that ranks will run is run once here, in the sizes that occur,
and compared with what torch gives for the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mpicoded import units
from mpicoded.errors import ModelError
from mpicoded.network.graph import Chain, whole_network
from mpicoded.network.linear import described
from mpicoded.network.unseen import (
    culprit,
    has_own_call,
    steps,
    unseen,
    varying,
    without_global_hooks,
)
from mpicoded.runtime.deployment import Deployment, uncoded

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
    """
    bare = uncoded(deployment.chain, deployment.plan, deployment.pixels)
    model, by_images = bare.chain.model, bare.plan.stages[0].by_images
    inputs = list(_inputs(bare, query))
    outputs = []
    for x in inputs:
        for count in {len(x), len(x) // (bare.plan.k if by_images else 1)}:
            _check_shape(bare.chain, x[:count])
        outputs.append(_call(model, x))
        for run in (Deployment.alone, _split):
            _compare(bare, x, outputs[-1], run)
    if differs(_call(model, inputs[0]), outputs[0]):  # it may keep a state of what it has seen
        raise _varies(bare.chain, inputs[0])


def _inputs(bare: Deployment, query: Tensor | None) -> Iterator[Tensor]:
    """Yield the query and as many random images, and other sizes of them if a hook could care."""
    plan, chain = bare.plan, bare.chain
    count = plan.k if plan.stages[0].by_images and plan.batch % plan.k else plan.batch
    rng, shape = torch.Generator().manual_seed(0), (count, *chain.input_shape)
    random = torch.randn(shape, generator=rng)
    if bare.pixels is not None:
        random = bare.pixels(torch.randint(256, shape, generator=rng, dtype=torch.uint8))
    given = [random]
    if query is not None:
        given = [bare.numbers(query[torch.arange(count) % len(query)]), random]
    odd = has_own_call(chain.model) or unseen(chain)
    for scale in SCALES if odd else SCALES[:1]:
        yield from (x * scale for x in given)


def _call(model: nn.Module, x: Tensor) -> Any:
    """Return what torch gives; a module may overwrite its input."""
    with torch.no_grad():
        return model(x.clone())


@torch.inference_mode()
def _split(bare: Deployment, x: Tensor) -> Tensor:
    """Return what the ranks give together."""
    for s, stage in enumerate(bare.plan.stages):
        pieces = units.cut(bare.lead(s, x), stage)
        programs = bare.ready_programs[s]
        x = units.stitch(
            [run(u.contiguous()) for run, u in zip(programs, pieces, strict=True)], stage
        )
    return x if bare.ready_head is None else bare.ready_head(x)


def differs(found: Any, true: Any) -> bool:
    """Whether two outputs are apart by more than ``TOLERANCE``, where the true one is finite."""
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


def _compare(bare: Deployment, x: Tensor, true: Tensor, run: Callable[..., Tensor]) -> None:
    chain, kept = bare.chain, x.clone()
    name = type(chain.model).__name__
    try:
        with without_global_hooks():
            found = run(bare, x)
        if not differs(found, true) and torch.equal(x, kept):
            return
    except Exception as error:  # whatever an operation of the user's raises
        said = f"fail: {_line(error)}"
    else:
        apart = f"of shape {tuple(found.shape)} instead of {tuple(true.shape)}"
        if found.shape == true.shape:
            apart = f"{_apart(found, true):.2g} of its largest output apart"
        said = f"are {apart}"
    if differs(_call(chain.model, kept), true):
        raise _varies(chain, kept)
    if not torch.equal(x, kept):
        raise ModelError(
            f"{name} overwrites the images that it is given, in an operation that torch.fx does "
            "not look into: let it work on a copy, x.clone()"
        )
    if run is _split and bare.plan.stages[0].by_images:
        raise ModelError(
            f"{name} gives an image another answer in other company, and units are images: the "
            f"units {said}. Leave out what is computed over the images of a query (their mean, "
            "batch norm in training mode), or use another split"
        )
    raise ModelError(
        f"{name} computes something else than its operations one by one, which {said}: "
        + culprit(chain, kept, _call, differs)
    )


def _varies(chain: Chain, x: Tensor) -> ModelError:
    name = type(chain.model).__name__
    where = varying(chain, x, _call, differs)
    return ModelError(
        f"{name} gives something else for the same images when it is called again in eval mode, "
        f"{where}: it must neither draw random numbers nor keep a state from call to call "
        "(F.dropout needs training=self.training)"
    )


def _check_shape(chain: Chain, x: Tensor) -> None:
    """Raise ModelError unless the module gives one output for every image."""
    expected = (len(x), *chain.output_shape)
    name, images = type(chain.model).__name__, f"{len(x)} image{'s' * (len(x) > 1)}"
    try:
        given = _call(chain.model, x)
        if tuple(given.shape) == expected:
            return
        said = f"gives {tuple(given.shape)} instead of {expected}"
    except Exception as error:  # whatever the model raises
        said = f"fails ({_line(error)})"
    where = _breaks(chain, x)
    raise ModelError(
        f"{name} {said} for {images}: {where} drops the axis of the images or counts on another "
        "number of them; keep that axis: x.flatten(1), x.squeeze(-1), x.view(x.size(0), -1)"
    )


def _breaks(chain: Chain, x: Tensor) -> str:
    """Name the first operation whose output has a shape that it had not for other images."""
    whole, done = whole_network(chain), 0
    try:
        for op, value in steps(whole, x):
            if isinstance(value, Tensor) and tuple(value.shape[1:]) != chain.shapes[op.name]:
                return described(op)
            done += 1
    except Exception:  # the next one cannot run on what it is given
        return described(whole.ops[done])
    return "forward() or a hook"


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
