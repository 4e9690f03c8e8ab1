"""Relative error of the exact code on convolutions of VGG-16, the worst over all erasure patterns.

    python jobs/measure/mds.py                    # seed 0, float32, one thread, two minutes

Every row is one layer at 224 x 224, batch 1, with random (Kaiming) weights, the default bias and
the map that the layers before make of a random image. Its units run what workers run, and all
patterns of at most r losses are decoded; errors are the largest difference to the layer computed in
float64, over its largest output. ``none`` is with nothing lost; ``input`` and ``filters`` are the
two forms of the code "mds". Beside them, for the inputs of the first form: ``[I; C]``, C[j, i] =
((i + 1)/k)^j, the default of the reference, decoded as here; ``1..n``, the Vandermonde matrix of
CoCoI's released code with its explicit inverse in float32.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor, nn

from mpicoded.codes import CODES, CodeRequest
from mpicoded.codes.erasures import erasures
from mpicoded.codes.generator import amplification, condition, vandermonde
from mpicoded.codes.mds import Mds
from mpicoded.models import build
from mpicoded.network.graph import Chain, trace
from mpicoded.network.linear import split_at_activations
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS, Request

LAYERS = ("2", "12", "21", "28")  # conv1_2, conv3_2, conv4_3, conv5_3
SIZES = ((8, 2), (4, 2))  # k, r
SHAPE = (3, 224, 224)


def deployed(chain: Chain, split: str, layer: str, k: int, r: int) -> Deployment:
    """One coded layer; all others are the leader's."""
    plan = SPLITS[split].plan(Request(chain, k, r, (layer,), linear=True))
    code = CODES["mds"](CodeRequest(k, r, plan.stages[0], chain=chain))
    return Deployment(chain, plan, (code,))


def outputs(deployment: Deployment, x: Tensor) -> Tensor:
    """What the units make of the layer's input map, (n, 1, C, h, w)."""
    inputs = deployment.inputs(0, x, deployment.parity(0, x))
    programs = deployment.ready_programs[0]
    made = [run(u) for run, u in zip(programs, inputs, strict=True)]
    stage = deployment.plan.stages[0]
    return SPLITS[stage.split].stack(made, stage)


def error(deployment: Deployment, data: Tensor, right: Tensor) -> float:
    """Relative error of the map that these data units make up."""
    stage = deployment.plan.stages[0]
    whole = SPLITS[stage.split].stitch(list(data), stage)
    return float((whole - right).abs().max() / right.abs().max())


def worst(deployment: Deployment, code: Mds, y: Tensor, right: Tensor) -> tuple[float, float]:
    """Error with nothing lost, and the largest over all patterns."""
    errors = [error(deployment, code.decode(y, a), right) for a in erasures(code.n, code.r)]
    return errors[0], max(errors)


def reference(deployment: Deployment, x: Tensor, right: Tensor) -> float:
    """The same with the reference's default matrix."""
    (own,) = deployment.codes
    assert isinstance(own, Mds)
    code = Mds(own.k, own.r, own.constant)
    code.__dict__["matrix"] = vandermonde(own.k, own.r)
    return worst(
        deployment, code, outputs(Deployment(deployment.chain, deployment.plan, (code,)), x), right
    )[1]


def released(deployment: Deployment, x: Tensor, right: Tensor) -> float:
    """The same with a Vandermonde matrix on 1 … n and its inverse in float32."""
    (code,), (stage,) = deployment.codes, deployment.plan.stages
    assert isinstance(code, Mds) and code.constant is not None
    nodes = torch.arange(1.0, code.n + 1)
    g = nodes[:, None] ** torch.arange(code.k)  # (n, k)
    coded = torch.tensordot(g, SPLITS[stage.split].windows(x, stage), 1)
    run = deployment.ready_programs[0][code.k]
    y = torch.stack([run(u) for u in coded]) - code.constant  # without bias
    found = 0.0
    for rows in combinations(range(code.n), code.k):
        inverse = torch.linalg.inv(g[list(rows)])
        data = torch.tensordot(inverse, y[list(rows)], 1) + code.constant
        found = max(found, error(deployment, data, right))
    return found


@torch.inference_mode()
def main() -> None:
    """Print one row for every layer and size."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build("vgg16-features", {})
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    chain = split_at_activations(trace(model.requires_grad_(False), SHAPE))
    image = torch.randn(1, *SHAPE)
    columns = ("none", "input", "filters", "[I; C]", "1..n")
    print(f"{'layer':8s} {'(n, k)':8s}", *(f"{name:>8s}" for name in columns))
    for layer in LAYERS:
        x = chain.between(0, chain.index(layer))(image)
        conv = model.get_submodule(layer)
        right = nn.functional.conv2d(
            x.double(), conv.weight.double(), conv.bias.double(), padding=1
        )
        for k, r in SIZES:
            by_input = deployed(chain, "width", layer, k, r)
            by_filter = deployed(chain, "channels", layer, k, r)
            none, own = worst(by_input, by_input.codes[0], outputs(by_input, x), right)
            filters = worst(by_filter, by_filter.codes[0], outputs(by_filter, x), right)[1]
            other, naive = reference(by_input, x, right), released(by_input, x, right)
            numbers = " ".join(f"{e:8.1e}" for e in (none, own, filters, other, naive))
            print(f"{layer:8s} {f'({k + r}, {k})':8s} {numbers}", flush=True)
    for k, r in SIZES:
        chosen, default = Mds(k, r).matrix, vandermonde(k, r)
        print(
            f"({k + r}, {k}): amplification {amplification(chosen):.1f}, condition "
            f"{condition(chosen):.1f}; of the default {amplification(default):.1f}, "
            f"{condition(default):.1f}"
        )


if __name__ == "__main__":
    main()
