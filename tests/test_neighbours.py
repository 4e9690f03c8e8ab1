"""Strips that exchange their halos directly are the unsplit model, by steps and by routes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from interpreter import Interpreter, Pieces, pasted, runs, taken
from mpicoded import models
from mpicoded.codes import CODES, CodeRequest
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, around
from mpicoded.moves import check, routes, schedule
from mpicoded.network.graph import Chain, trace
from mpicoded.plan import Plan
from mpicoded.runtime.check import check as check_deployment
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.steps import CUT, GATHER, Node
from networks import close, odd, plan_of

SMALL_HEAD = {"classes": 10, "size": 32, "hidden": 16}
NETWORKS = {
    "vgg16, 32": (lambda: models.build("vgg16", SMALL_HEAD), (3, 32, 32)),
    "vgg16, 64": (lambda: models.build("vgg16", SMALL_HEAD), (3, 64, 64)),
    "resnet18": (lambda: models.build("resnet18", {"classes": 10}), (3, 64, 64)),
    "odd": (odd, (3, 43, 37)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def traced(request: pytest.FixtureRequest) -> tuple[Chain, Tensor, Tensor]:
    """A network, two images, and its own answer."""
    build, shape = NETWORKS[request.param]
    torch.manual_seed(7)
    model, x = build().eval(), torch.randn(2, *shape)
    with torch.inference_mode():
        return trace(model, shape), x, model(x.clone())


def by_steps(chain: Chain, plan: Plan, x: Tensor) -> Tensor:
    steps = schedule(plan)
    check(steps, plan)
    maps = Interpreter(plan, steps, runs(chain, plan))(plan.stages[0].entry, x, 1)
    return maps[plan.stages[-1].exit]


def by_routes(chain: Chain, plan: Plan, ranks: Sequence[Sequence[int]], x: Tensor) -> Tensor:
    """Run the units stage by stage; a piece is there only if its origin sends just that."""
    own = [(rank, *unit) for rank, units in routes(plan, ranks).items() for unit in units.items()]
    what, mail, answers = runs(chain, plan), dict[tuple[object, ...], Tensor](), list[object]()
    whole: Pieces = [(Box.of(*x.shape[2:]), x)]
    came: Pieces = []
    for rank, node, route in sorted(own, key=lambda each: each[1]):
        stage, pieces = plan.stages[node.stage], []
        for source, origin, box in route.pieces:
            at_leader = origin == (0, CUT)
            assert source == (0 if at_leader else ranks[origin.stage][origin.unit])
            key = (source, rank, origin, node, box)
            pieces.append((box, taken(whole, box) if at_leader else mail.pop(key)))
        assert around(box for box, _ in pieces) == route.reads
        (y,) = what[node]({stage.entry: pasted(pieces)}).values()
        writes = stage.shards[node.unit].writes
        for target, reader, box in route.sends:
            piece = taken([(writes, y)], box)
            if reader.unit == GATHER:
                assert (target, box) == (0, writes)
                answers.append(node)
                came.append((box, piece))
            else:
                mail[rank, target, node, reader, box] = piece
    last = len(plan.stages) - 1
    assert not mail, "sent, and no piece of anything"
    assert answers == [Node(last, i) for i in range(plan.k)]
    return pasted(came)


@pytest.mark.parametrize("k", range(2, 9))
@pytest.mark.parametrize("split", ["height", "width"])
def test_neighbours_are_the_unsplit_model(
    traced: tuple[Chain, Tensor, Tensor], split: str, k: int
) -> None:
    chain, x, true = traced
    r = random.Random(k)
    weights = tuple(r.uniform(0.3, 3) for _ in range(k)) if k % 2 else None
    plan = plan_of(chain, split, k, weights=weights, batch=2, direct=True)
    assert len(plan.stages) > 2 and plan.segments == ((0, len(plan.stages)),)
    able = range(1, k + 1 + 2 * (k % 2))  # with spares, every stage has other homes
    ranks = [r.sample(able, k) if k % 2 else list(able) for _ in plan.stages]
    placed = replace(
        plan,
        stages=tuple(replace(s, ranks=tuple(p)) for s, p in zip(plan.stages, ranks, strict=True)),
    )
    with torch.inference_mode():
        for found in (by_steps(chain, placed, x), by_routes(chain, plan, ranks, x)):
            assert close(chain.head_after(plan.stages[-1].last)(found), true, 1e-5)


def two_convolutions(k: int = 2, split: str = "height", **how: object) -> tuple[Chain, Plan]:
    chain = trace(nn.Sequential(nn.Conv2d(1, 2, 5, padding=2), nn.Conv2d(2, 3, 3)), (1, 12, 6))
    return chain, plan_of(chain, split, k, direct=True, **how)


def test_a_deployment_has_room_for_what_travels() -> None:
    """Rows 0:12 of 6, in strips of six; then 0:10 of 4, in strips of five that read seven."""
    chain, plan = two_convolutions(batch=2)
    deployment = uncoded(chain, plan, None)
    assert deployment.capacities() == (2 * 8 * 1 * 8 * 6, 2 * 8 * 3 * 5 * 4)
    assert deployment.halo_capacity == 2 * 8 * 2 * 6 * 6  # a whole strip, if its rank changes
    assert [[shape[2] for shape in own] for own in deployment.input_shapes()] == [[8, 8], [7, 7]]
    for own, stage in zip(deployment.programs(), plan.stages, strict=True):
        assert [(run.reads, run.writes) for run in own] == [  # type: ignore[union-attr]
            (shard.reads, shard.writes) for shard in stage.shards
        ]
    star = uncoded(chain, plan_of(chain, "height", 2, 0, "0", "1", batch=2), None)
    assert star.capacities() == (2 * 8 * 2 * 7 * 6, 2 * 8 * 2 * 6 * 6) and not star.halo_capacity
    check_deployment(deployment, torch.randn(2, 1, 12, 6))


def test_codes_over_direct_stages_are_refused() -> None:
    chain, plan = two_convolutions()
    for name, r in (("replication", 1), ("zerofill", 0)):
        codes = tuple(CODES[name](CodeRequest(2, r, stage)) for stage in plan.stages)
        with pytest.raises(PlanError, match=rf"the {name} code .* r = {r}\) needs .* every stage"):
            Deployment(chain, replace(plan, r=r), codes)


@pytest.mark.parametrize("split", ["batch", "channels"])
def test_units_without_halos_have_none_to_exchange(split: str) -> None:
    with pytest.raises(PlanError, match=rf'units of split = "{split}" have no halos to'):
        two_convolutions(split=split, linear=True, batch=2)


def test_a_segment_ends_before_a_map_that_is_too_small() -> None:
    """The head takes the rest; a stage that the job names is refused."""
    model = nn.Sequential(*(nn.Conv2d(1, 1, 3, 2, padding=1) for _ in range(4)))  # 16 -> 8 4 2 1
    chain = trace(model, (1, 16, 16))
    plan = plan_of(chain, "height", 3, direct=True)
    assert [(stage.name, stage.direct) for stage in plan.stages] == [("0", False), ("1", True)]
    assert plan.head_flops == 2 * 9 * (4 + 1)
    assert len(plan_of(chain, "tiles", 6, tiles=(2, 3), direct=True).stages) == 2
    assert len(plan_of(chain, "tiles", 4, tiles=(2, 2), direct=True).stages) == 3
    named = plan_of(chain, "height", 2, 0, "1", "2", direct=True)
    assert [(s.first, s.last, s.direct) for s in named.stages] == [(0, 1, False), (2, 2, True)]
    for names in ((), ("0", "2")):
        with pytest.raises(PlanError, match=r"cannot cut the height, \d long, into k = \d+ shards"):
            plan_of(chain, "height", 3 if names else 9, 0, *names, direct=True)
