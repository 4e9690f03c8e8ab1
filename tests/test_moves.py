"""Schedules of random plans are the unsplit model, whoever runs first; skips and sums are exact."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interpreter import Interpreter, Maps, Run, runs
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range, split
from mpicoded.moves import Unit, check, moves, schedule
from mpicoded.network.graph import Chain, trace
from mpicoded.network.ops import Op
from mpicoded.network.program import compile_piece
from mpicoded.partition import PARTITIONS, Request
from mpicoded.plan import Part, Plan, Shard, Stage
from mpicoded.steps import CUT, GATHER, Node
from mpicoded.units import windows
from networks import close, plan_of, random_network, sized

SEEDS = st.integers(0, 2**32 - 1)
TOLERANCES = ((torch.float64, 1e-10), (torch.float32, 1e-5))


def answer(chain: Chain, plan: Plan, what: dict[Node, Run], x: Tensor, seed: int) -> Tensor:
    """Check the plan's schedule, run it, and the head behind it."""
    steps = schedule(plan)
    check(steps, plan)
    maps = Interpreter(plan, steps, what)(plan.stages[0].entry, x, seed)
    last = plan.stages[-1]
    result: Tensor = chain.head_after(last.last)(maps[last.exit])
    return result


def images(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)


def on_ranks(plan: Plan, r: random.Random) -> Plan:
    """Return the plan with random homes, and each boundary gathered or direct."""
    way, stages, used = r.choice(["own", "disjoint", "any", "shuffled"]), list[Stage](), 0
    for s, stage in enumerate(plan.stages):
        k = stage.k
        ranks = {
            "own": (),
            "disjoint": tuple(range(used + 1, used + 1 + k)),  # a pipeline
            "any": tuple(r.randrange(6) for _ in range(k)),  # the leader too, several a rank
            "shuffled": tuple(r.sample(range(1, k + 3), k)),
        }[way]
        used += k
        stages.append(replace(stage, ranks=ranks, direct=s > 0 and r.random() < 0.8))
    return replace(plan, stages=tuple(stages))


def random_plan(chain: Chain, r: random.Random) -> Plan:
    """Return one to four stages, each cut in its own way, by a planner."""
    last = len(chain.blocks) - 1
    ends = sorted(r.sample(range(last), min(last, r.randint(0, 3)))) + [last]
    stages, first = list[Stage](), 0
    for end in ends:
        name = chain.blocks[end].name
        height, width = chain.shapes[chain.blocks[end].exit][1:]
        kind = r.choice(["height", "width", "tiles"])
        tiles = (r.randint(1, min(height, 4)), r.randint(1, min(width, 4)))
        longest = {"height": height, "width": width}.get(kind, 0)
        k = min(longest, r.choice([2, 3, 5, longest])) if longest else tiles[0] * tiles[1]
        weights = tuple(r.uniform(0.1, 3) for _ in range(k)) if longest and r.random() < 0.4 else None
        request = Request(chain, k, 0, (name,), tiles if kind == "tiles" else None, weights, 2, first)
        plan = PARTITIONS[kind](request)
        stages += plan.stages
        first = end + 1
    return on_ranks(replace(plan, stages=tuple(stages)), r)


@settings(max_examples=320, deadline=None, derandomize=True, database=None)
@given(SEEDS, SEEDS)
def test_schedule_is_the_unsplit_model(network: int, cuts: int) -> None:
    model, shape = random_network(network)
    for dtype, tolerance in TOLERANCES:
        chain = trace(model.to(dtype), shape)
        plan = random_plan(chain, random.Random(cuts))
        x = images(shape, cuts, dtype)
        with torch.inference_mode():
            given_ = answer(chain, plan, runs(chain, plan), x, cuts)
            assert close(given_, model(x.clone()), tolerance)
