"""Another plan while queries run: when, which, and what becomes of those in flight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mpicoded.answer import Answer, Mode
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.cost.model import CostModel, Formats
from mpicoded.errors import JobError
from mpicoded.faults import Fault
from mpicoded.job import Job
from mpicoded.models import build
from mpicoded.network.graph import Chain, trace
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import uncoded
from mpicoded.runtime.replanner import Replanner, slowed
from mpicoded.scheduling.by_stage import ByStage
from mpicoded.scheduling.drift import AGAIN, HOLD, Drift
from mpicoded.scheduling.ranks import Ranks, State
from mpicoded.settings import Settings
from mpicoded.simulate import simulate
from mpicoded.trace import Action
from networks import plan_of

DEVICE = Device(flops=1e8, dense=1e9, pack=1e8, unpack=1e8)
CLUSTER = Cluster.alike(4, DEVICE, Link(1e8, 1e8))


@pytest.fixture(scope="module")
def chain() -> Chain:
    torch.manual_seed(0)
    return trace(build("lenet5", {}), (1, 32, 32))


def by_speed(model: CostModel) -> Plan:
    """Two stages in strips of columns, as wide as ranks 1 to 3 are fast."""
    weights = tuple(device.flops for device in model.cluster.devices[1:])
    return plan_of(model.chain, "width", 3, 0, "pool1", "pool2", weights=weights)


def run(
    chain: Chain, *faults: Fault, planner=by_speed, bound: float = 1.5, queries: int = 3000, **how
) -> tuple[list[Answer], np.ndarray]:
    """Simulated queries, and the events of their run."""
    model = CostModel(chain, CLUSTER, Formats())
    deployment = uncoded(chain, by_speed(model), None)
    replanner = Replanner(bound, planner, model, deployment)
    settings = Settings(suspect_after=0.2, **how)
    answers, events = simulate(
        deployment, model, settings, queries, faults=faults, seed=1, replanner=replanner
    )
    return sorted(answers, key=lambda a: a.query), events.drain()


def slow(rank: int, factor: float, first: int = 0, last: int = 10**6) -> Fault:
    return Fault("slow", rank, first, last, factor=factor)


def test_numbers_of_stages() -> None:
    plans = ByStage("a")
    plans.add(3, "b")
    plans.add(3, "c")
    plans.add(5, "d")
    assert [plans.of(s) for s in (0, 2, 3, 4, 5, 9)] == [
        ("a", 0), ("a", 2), ("c", 0), ("c", 1), ("d", 0), ("d", 4),
    ]  # fmt: skip


def test_when_another_plan_is_asked_for() -> None:
    ranks = Ranks((1, 2, 3), (1, 2, 3), 0.5, 4, planned={1: 1.0, 2: 1.0, 3: 2.0})
    drift = Drift(1.5)
    assert drift.look(ranks, 0.0) is None
    for rank in ranks.workers.values():
        rank.pace *= 3.0
    assert drift.look(ranks, 1.0) is None, "all alike"
    ranks.workers[2].pace = 6.0
    assert drift.look(ranks, 2.0) is None, "not for long yet"
    ranks.workers[2].pace = 3.0
    assert drift.look(ranks, 2.0 + HOLD / 2) is None
    ranks.workers[2].pace = 6.0
    assert drift.look(ranks, 3.0 + HOLD / 2) is None, "anew"
    at = 3.0 + 2 * HOLD
    assert drift.look(ranks, at) == {1: 3.0, 2: 6.0, 3: 6.0}
    assert drift.look(ranks, at + 1) is None, "asked already"
    drift.answered(at + 1, taken=False)
    assert drift.look(ranks, at + AGAIN / 2) is None, "none was better"
    assert drift.look(ranks, at + 2 + AGAIN) is None
    ranks.workers[1].state = State.FAILED
    paces = drift.look(ranks, at + 2 + AGAIN + HOLD)
    assert paces is not None and paces[1] > 1e5


def test_slowed() -> None:
    fast = replace(CLUSTER, devices=(DEVICE, DEVICE, DEVICE, replace(DEVICE, flops=2e8)))
    assert fast.paces == {1: 1.0, 2: 1.0, 3: 0.5}
    now = slowed(fast, {1: 2.0, 2: 4.0, 3: 1.0})
    assert [d.flops for d in now.devices] == [1e8, 1e8, 5e7, 2e8], "twice as slow, all but rank 2"


def test_a_rank_that_becomes_slow_gets_less(chain: Chain) -> None:
    answers, events = run(chain, slow(2, 3.0, 200), window=4)
    assert {a.mode for a in answers} == {Mode.AVAILABLE} and len(answers) == 3000
    (at,) = events["query"][events["action"] == Action.REPLAN].tolist()
    assert 200 < at < 2900
    sizes = []
    for queries in (range(100), range(at + 20, 3000)):
        sent = events[(events["action"] == Action.SEND) & np.isin(events["query"], queries)]
        assert set(sent["stage"].tolist()) == {0, 1}, "numbered as in the plan"
        mine = sent[(sent["rank"] == 2) & (sent["stage"] == 0)]
        sizes.append(float(np.median(mine["bytes"])))
    assert sizes[1] < 0.8 * sizes[0]
    times = [a.answered for a in answers]
    paces = [times[i + 100] - times[i] for i in (at - 150, at + 50)]
    assert paces[1] < 0.9 * paces[0]


def test_nothing_changes_within_the_bound_or_without_a_better_plan(chain: Chain) -> None:
    for faults, how in (
        ([slow(2, 1.3)], {}),
        ([slow(rank, 3.0) for rank in (1, 2, 3)], {}),
        ([slow(2, 3.0)], {"planner": lambda model: by_speed(CostModel(chain, CLUSTER, Formats()))}),
    ):
        answers, events = run(chain, *faults, queries=1500, **how)
        assert {a.mode for a in answers} == {Mode.AVAILABLE}
        assert Action.REPLAN not in events["action"]


def test_a_dead_rank_is_planned_away(chain: Chain) -> None:
    def two(model: CostModel) -> Plan:
        dead = min(range(1, 4), key=lambda p: model.cluster.devices[p].flops)
        ranks = tuple(p for p in (1, 2, 3) if p != dead)
        plan = plan_of(model.chain, "width", 2, 0, "pool2")
        return replace(plan, stages=tuple(replace(s, ranks=ranks) for s in plan.stages))

    answers, events = run(chain, Fault("crash", 3, 100, 10**6), planner=two, window=3)
    assert {a.mode for a in answers} == {Mode.AVAILABLE}
    (at,) = events["query"][events["action"] == Action.REPLAN].tolist()
    late = events[(events["query"] > at + 20) & (events["action"] == Action.SEND)]
    assert {(int(e["stage"]), int(e["unit"]), int(e["rank"])) for e in late} == {
        (0, 0, 1), (0, 1, 2),
    }  # fmt: skip
    assert answers[-1].arrived.shape == (1, 2)


def test_refused(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('[model]\nname = "lenet5"\n[input]\ndata = "digits"\n[plan]\nreplan = 1.5\n')
    with pytest.raises(JobError, match=r"cluster: is missing; replan = 1.5 needs the speeds"):
        Job.read(file)
    code = ('plan.cluster="c.toml"', 'code={name="mds", k=2, r=1}', "plan.linear=true")
    with pytest.raises(JobError, match=r"replan: is of gathered stages.* r = 1 in \[code\]"):
        Job.read(file, code)
    with pytest.raises(JobError, match=r"replan = 1.0: should be greater than 1"):
        Job.read(file, ("plan.replan=1.0",))
