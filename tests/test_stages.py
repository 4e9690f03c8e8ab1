"""Stages with their own k, cut and homes, or none: checked, priced, simulated, and run by steps."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpicoded.answer import Mode
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.commands.dump import placements
from mpicoded.cost.memory import Memory
from mpicoded.cost.model import CostModel, Formats
from mpicoded.errors import PlanError
from mpicoded.faults import Fault
from mpicoded.models import build
from mpicoded.moves import check as check_steps
from mpicoded.moves import schedule
from mpicoded.network.graph import Chain, trace
from mpicoded.network.linear import split_at_activations
from mpicoded.plan import Plan
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.runtime.rank import new_rank
from mpicoded.settings import Settings
from mpicoded.simulate import simulate
from mpicoded.steps import Step
from mpicoded.trace import Action
from networks import mixed, odd, plan_of, random_network

DEVICE, LINK = Device(flops=2e8, dense=1e9, pack=1e8, unpack=1e8), Link(5e6, 5e6, 5e-4)
WORKERS = 5
CLUSTER = Cluster.alike(WORKERS + 1, DEVICE, LINK)


@pytest.fixture(scope="module")
def chain() -> Chain:
    torch.manual_seed(0)
    return split_at_activations(trace(build("vgg16", {"classes": 10}), (3, 32, 32)))


def is_mixed(plan: Plan) -> bool:
    return not plan.alike and any(stage.k == 1 for stage in plan.stages)


def test_the_plans_of_these_tests_are_of_all_kinds(chain: Chain) -> None:
    plans = [mixed(chain, WORKERS, seed) for seed in range(60)]
    assert sum(map(is_mixed, plans)) > 5
    assert any(not plan.stages for plan in plans)
    assert {stage.split for plan in plans for stage in plan.stages} >= {"height", "channels"}
    assert any(len(set(stage.ranks)) < stage.k for plan in plans for stage in plan.stages)


@pytest.mark.parametrize("seed", range(25))
def test_stitched_is_unsplit(seed: int) -> None:
    """The check at the start raises where it is not; nothing else is compared here."""
    network, shape = random_network(seed) if seed % 5 else (odd(), (3, 43, 37))
    chain = trace(network, shape)
    chain = split_at_activations(chain) if seed % 2 else chain
    plan = mixed(chain, WORKERS, seed)
    deployment = uncoded(chain, plan, None)
    check(deployment, torch.rand(1, *shape))
    assert all(deployment.capacities()) == bool(plan.stages)
    steps = schedule(plan)
    check_steps(steps, plan)
    assert all(Step.parse(repr(step)) == step for own in steps.values() for step in own)


def simulated(chain: Chain, plan: Plan, *faults: Fault, queries: int = 60, **how: object):
    model = CostModel(chain, CLUSTER, Formats())
    settings = Settings(suspect_after=0.2, give_up=5.0, retries=20, **how)
    return simulate(uncoded(chain, plan, None), model, settings, queries, faults=faults, seed=1)


@pytest.mark.parametrize("seed", range(12))
def test_prediction_and_simulation_agree(chain: Chain, seed: int) -> None:
    plan = mixed(chain, WORKERS, seed)
    answers, trace = simulated(chain, plan, window=1)
    assert [a.mode for a in answers] == [Mode.AVAILABLE] * 60
    predicted = CostModel(chain, CLUSTER, Formats()).predict(plan).latency
    assert np.median([a.latency for a in answers[20:]]) == pytest.approx(predicted, rel=0.05)
    assert answers[0].arrived.shape == plan.shape
    events = trace.drain()
    homes = {(s, i): plan.stages[s].ranks[i] for s, i in plan.units()}
    for event in events[events["action"] == Action.SEND]:
        assert homes[int(event["stage"]), int(event["unit"])] == event["rank"]


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_while_a_rank_lives(chain: Chain, seed: int) -> None:
    r = random.Random(seed)
    dead = r.sample(range(1, WORKERS + 1), 3)
    faults = [Fault("crash", p, 5 + 10 * i, 1000) for i, p in enumerate(dead)]
    (other, silent) = [p for p in range(1, WORKERS + 1) if p not in dead]
    faults += [Fault("silence", silent, 0, 50, probability=0.2)]
    faults += [Fault("freeze", other, 30, 1000, seconds=0.7)]
    answers, _ = simulated(chain, mixed(chain, WORKERS, seed), *faults)
    assert [a.mode for a in answers] == [Mode.AVAILABLE] * 60


def test_a_rank_in_no_stage_is_a_spare(chain: Chain) -> None:
    stages = [
        replace(plan_of(chain, "height", 2, 0, chain.blocks[3].name).stages[0], ranks=(2, 4)),
        replace(plan_of(chain, "width", 1, 0, chain.blocks[5].name, first=4).stages[0], ranks=(3,)),
    ]
    plan = replace(plan_of(chain, "height", 1), stages=tuple(stages))
    assert "spare ranks   1, 5" in plan.table(CLUSTER)
    _, trace = simulated(chain, plan, Fault("crash", 3, 10, 1000))
    events = trace.drain()
    sent = events[np.isin(events["action"], (Action.SEND, Action.RESEND))]
    early, late = (sent[(sent["query"] < 8)], sent[sent["query"] > 20])
    assert set(early["rank"].tolist()) == {2, 3, 4}
    assert set(late["rank"].tolist()) in ({1, 2, 4}, {2, 4, 5}), "the same one, for good"


def test_slow_ranks_keep_small_shares(chain: Chain) -> None:
    """Rank 1 has a quarter of the speed and of the work: no reason to move it away."""
    devices = [replace(DEVICE, flops=DEVICE.flops / (4 if p == 1 else 1)) for p in range(4)]
    cluster = Cluster(("",) * 4, tuple(devices), (LINK,) * 4)
    plan = plan_of(chain, "height", 3, 0, chain.blocks[2].name, weights=(1.0, 4.0, 4.0))
    for known in (cluster, replace(CLUSTER, devices=cluster.devices, hosts=cluster.hosts)):
        model = CostModel(chain, known, Formats())
        _, trace = simulate(uncoded(chain, plan, None), model, Settings(window=2), 60, seed=1)
        events = trace.drain()
        sent = events[events["action"] == Action.SEND]
        assert {(int(e["unit"]), int(e["rank"])) for e in sent} == {(0, 1), (1, 2), (2, 3)}
        assert not (events["action"] == Action.RESEND).any()


def test_no_stage_is_the_leader_alone(chain: Chain) -> None:
    plan = replace(plan_of(chain, "height", 1), stages=())
    assert (plan.ranks, plan.shape, plan.redundancy) == (1, (1, 1), 0.0)
    assert "rank 0 runs the model unsplit" in str(plan)
    assert list(placements(plan, CLUSTER)) == []
    assert {rank: list(map(repr, own)) for rank, own in schedule(plan).items()} == {
        0: ["run 0.head"]
    }
    answers, _ = simulated(chain, plan)
    assert {a.mode for a in answers} == {Mode.AVAILABLE}
    assert not any(a.arrived.any() for a in answers)
    model = CostModel(chain, CLUSTER, Formats())
    assert model.predict(plan).latency == pytest.approx(model.single_device())
    assert Memory(chain).of(plan, 1, CLUSTER).total == 0


def test_refused_before_the_first_message(chain: Chain) -> None:
    stage = plan_of(chain, "height", 2, 0, chain.blocks[3].name).stages[0]
    plan = replace(plan_of(chain, "height", 1), stages=(replace(stage, ranks=(0, 1)),))
    with pytest.raises(PlanError, match=r"unit 0 on rank 0, which computes no units: give"):
        plan.check(CLUSTER, sharing=True)
    plan = replace(plan, stages=(replace(stage, ranks=(1, 7)),))
    with pytest.raises(PlanError, match=r"rank 7, and the ranks are 0 to 5: start 8 ranks"):
        new_rank(uncoded(chain, plan, None), CLUSTER, Settings())
    others = uncoded(chain, mixed(chain, WORKERS, 3), None).codes
    with pytest.raises(PlanError, match=r"does not fit a plan with k = 2 and r = 0"):
        Deployment(chain, plan, others[:1])
