"""How far a model's units, stitched, are from the model itself: in every split, by halos too."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from interpreter import Interpreter, Maps, Run, pasted
from mpicoded.models import build
from mpicoded.moves import check, schedule
from mpicoded.network.graph import Chain, whole_network
from mpicoded.network.in_parts import InParts
from mpicoded.network.linear import split_at_activations
from mpicoded.network.optimize import Optimizer
from mpicoded.network.pieces import whole_flops
from mpicoded.network.program import Program
from mpicoded.runtime.check import run_split
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.steps import Node
from networks import plan_of

GRIDS = {2: (2, 1), 3: (1, 3), 4: (2, 2), 5: (5, 1), 6: (2, 3), 7: (1, 7), 8: (4, 2)}
# By default one stage, or the linear ones; a stage a block; the same with neighbours' halos.
STAGES = ("", " linear", " each", " neighbours")
KINDS = (*(s + t for s in ("height", "width", "tiles") for t in STAGES), "channels", "batch")


def build_lively(name: str, args: dict[str, object], seed: int) -> nn.Module:
    """Return a model whose random weights keep the signal through any depth."""
    torch.manual_seed(seed)
    model = build(name, args)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.get_buffer("running_mean"), -0.1, 0.1)
            nn.init.uniform_(module.get_buffer("running_var"), 0.5, 2.0)
    return model


def share(chain: Chain) -> float:
    """Return the share of FLOPs in blocks that can be cut."""
    return 1 - whole_flops(chain, chain.head.ops) / whole_flops(chain, whole_network(chain).ops)


def deployed(chain: Chain, kind: str, k: int) -> Deployment:
    """Return the deployment of a plan of this kind for k units."""
    split, _, stages = kind.partition(" ")
    tiles = GRIDS[k] if split == "tiles" else None
    linear = split == "channels" or stages == "linear"
    if linear:
        chain = split_at_activations(chain)
    direct = stages in ("each", "neighbours")
    each = plan_of(chain, split, k, tiles=tiles, direct=True).stages if direct else ()
    names = [chain.blocks[stage.last].name for stage in each]
    plan = plan_of(
        chain, split, k, 0, *names, tiles=tiles, direct=stages == "neighbours",
        linear=linear, batch=k if split == "batch" else 1,
    )  # fmt: skip
    return uncoded(chain, plan, None)


def _run(parts: InParts | None, program: Program) -> Run:
    """Return what a unit runs, with its borders first if it has any."""

    def run(maps: Maps) -> Maps:
        assert parts is not None
        made = parts.run(maps[program.entry], program.reads)
        return {program.exit: pasted(list(made))}

    return program.run if parts is None else run


@torch.inference_mode()
def error(deployment: Deployment, x: Tensor, true: Tensor) -> float:
    """Return the largest difference from ``true``, as a share of its largest number."""
    plan = deployment.plan
    found = by_steps(deployment, x) if plan.direct else run_split(deployment, x)
    assert found.shape == true.shape
    return float((found - true).abs().max() / true.abs().max())


def by_steps(deployment: Deployment, x: Tensor) -> Tensor:
    """Let the ranks' steps run in random order."""
    plan, steps = deployment.plan, schedule(deployment.plan)
    check(steps, plan)
    optimize = Optimizer().optimize
    parts = {node: each.each(optimize) for node, each in deployment.parts().items()}
    runs = {
        Node(s, i): _run(parts.get((s, i)), program)
        for s, own in enumerate(deployment.ready_programs)
        for i, program in enumerate(own)
        if isinstance(program, Program)
    }
    found = Interpreter(plan, steps, runs)(plan.stages[0].entry, x)[plan.stages[-1].exit]
    return found if deployment.ready_head is None else deployment.ready_head(found)
