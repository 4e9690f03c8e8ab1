"""The plan is given up while it measures slower than one device, and tried again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mpicoded.answer import Mode
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.cost.model import CostModel, Formats
from mpicoded.faults import Fault
from mpicoded.models import build
from mpicoded.network.graph import Chain, trace
from mpicoded.runtime.deployment import uncoded
from mpicoded.scheduling.fallback import AGAIN, BLOCK, FIRST, Fallback
from mpicoded.settings import Settings
from mpicoded.simulate import simulate
from mpicoded.trace import Action
from networks import plan_of

DEVICE = Device(flops=1e8, dense=1e9, pack=1e8, unpack=1e8)


@pytest.fixture(scope="module")
def chain() -> Chain:
    torch.manual_seed(0)
    return trace(build("lenet5", {}), (1, 32, 32))


def serve(fallback: Fallback, count: int, seconds: float, now: float, alone: float = 1.0) -> float:
    """Serve queries one after the other; a query unsplit takes ``alone``."""
    for _ in range(count):
        unsplit = fallback.admit(now)
        now += alone if unsplit else seconds
        if unsplit:
            fallback.ran(alone, now)
        fallback.end(now, unsplit)
    return now


def test_faster_plans_stay() -> None:
    fallback = Fallback(1.0)
    serve(fallback, 100, 0.9, 0.0)
    assert not fallback.alone and fallback.took == pytest.approx(0.9)
    serve(fallback, 100, 1.05, 0.0)
    assert not fallback.alone, "within the margin"


def test_a_slower_one_is_given_up_and_tried_again_ever_more_seldom() -> None:
    fallback = Fallback(1.0)
    now = serve(fallback, FIRST + BLOCK, 1.5, 0.0)
    assert not fallback.alone
    now = serve(fallback, 1, 1.5, now)
    assert fallback.alone and fallback.until == pytest.approx(now + AGAIN)
    now = serve(fallback, int(AGAIN) + 1, 1.5, now)
    assert not fallback.alone, "on trial"
    now = serve(fallback, FIRST + BLOCK + 2, 1.5, now)
    assert fallback.alone and fallback.until > now + AGAIN
    now = serve(fallback, int(2 * AGAIN) + 100, 0.5, now)
    assert not fallback.alone and fallback.took == pytest.approx(0.5)


def test_rank_0_may_have_become_slower_too() -> None:
    fallback = Fallback(1.0)
    now = serve(fallback, FIRST + BLOCK + 1, 1.5, 0.0, alone=1.5)
    assert not fallback.alone and fallback.seconds == 1.5
    serve(fallback, 100, 1.5, now, alone=1.5)
    assert not fallback.alone


def test_queries_in_flight_together_count_as_many() -> None:
    """Three at a time, 2.4 s each: 0.8 s a query."""
    fallback, now = Fallback(1.0), 0.0
    for _ in range(20):
        for _ in range(3):
            fallback.admit(now)
        for _ in range(3):
            fallback.end(now + 2.4, False)
        now += 2.4
    assert fallback.took == pytest.approx(0.8) and not fallback.alone


@pytest.mark.parametrize("rate", [1e9, 1e5], ids=["fast links", "slow links"])
@pytest.mark.parametrize("window", [1, 4])
def test_simulated(chain: Chain, rate: float, window: int) -> None:
    cluster = Cluster.alike(4, DEVICE, Link(rate, rate))
    model = CostModel(chain, cluster, Formats())
    deployment = uncoded(chain, plan_of(chain, "height", 3), None)
    how = {"settings": Settings(window=window), "queries": 80, "seed": 1}
    answers, events = simulate(deployment, model, fallback=True, **how)
    slow, taken = simulate(deployment, model, **how)
    assert {a.mode for a in answers} == {Mode.AVAILABLE} == {a.mode for a in slow}
    actions = events.drain()["action"].tolist()
    if rate > 1e6:
        assert Action.ALONE not in actions and not any(np.isnan(a.gather) for a in answers)
        assert sum(not a.arrived.any() for a in answers) == 0
        return
    assert actions.count(Action.ALONE) == 1
    unsplit = [not a.arrived.any() for a in sorted(answers, key=lambda a: a.query)]
    assert FIRST + BLOCK <= unsplit.index(True) < FIRST + BLOCK + 2 * window
    assert all(unsplit[unsplit.index(True) + window :])
    assert max(a.answered for a in answers) < 0.7 * max(a.answered for a in slow)
    assert Action.ALONE not in taken.drain()["action"].tolist()


def test_a_link_that_recovers_is_used_again(chain: Chain) -> None:
    cluster = Cluster.alike(4, replace(DEVICE, flops=1e7), Link(1e7, 1e7))
    model = CostModel(chain, cluster, Formats())
    deployment = uncoded(chain, plan_of(chain, "height", 3), None)
    faults = [Fault("rate", 0, 0, 40, value=1e5)]
    answers, events = simulate(
        deployment, model, Settings(window=1), 900, faults=faults, fallback=True
    )
    events = events.drain()
    switches = events["action"][np.isin(events["action"], (Action.ALONE, Action.REPLAN))].tolist()
    assert switches == [Action.ALONE, Action.REPLAN]
    assert all(a.arrived.any() for a in answers[-50:])
    assert {a.mode for a in answers} == {Mode.AVAILABLE}
