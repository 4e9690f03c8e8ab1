"""Rank 0's decisions for a deployment, for the runtime and the simulator: no MPI."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING

from mpicoded.cluster import Cluster
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.message import HEADER, TRAVEL
from mpicoded.scheduling.dispatcher import Dispatcher
from mpicoded.scheduling.events import NewPlan
from mpicoded.scheduling.leader import LeaderRank
from mpicoded.scheduling.ranks import Ranks

if TYPE_CHECKING:
    from mpicoded.settings import Settings  # pydantic: a worker of a Group has no use for it

FLOPS_A_VALUE = 40.0  # to take a number out of a message, or put it in, where nothing is measured


def new_rank(
    deployment: Deployment, cluster: Cluster, settings: Settings, queue: float = float("inf")
) -> LeaderRank:
    """Return the decisions of rank 0 for a deployment on a cluster.

    Raises
    ------
    PlanError
        If the plan does not fit the cluster.
    """
    plan, s = deployment.plan, settings
    plan.check(cluster, s.sharing)
    its = new_plan(deployment, cluster, settings, cluster.paces)
    # units one after the other are anybody's; where the plan says more, each stage has its own
    named = not plan.alike or any(stage.ranks for stage in plan.stages) or deployment.others
    ranks = Ranks(
        cluster.workers,
        () if named else its.homes[0],
        s.suspect_after,
        s.window + 8,
        its.work,
        own=dict(enumerate(its.homes)) if named else None,
        planned=its.planned,
        traffic=its.traffic,
        byte=max((1 / min(link.sends, link.receives) for link in cluster.links[:1]), default=0.0),
    )
    ranks.adaptive = s.placement == "adaptive"
    segments = its.direct()
    dispatcher = Dispatcher(
        its.codes,
        ranks,
        its.deadlines,
        s.give_up,
        s.retries,
        deployment.aims(s.min_accuracy),
        segments,
        [last for last in segments if plan.stages[last + 1 - len(segments[last])].keeps],
    )
    leader = LeaderRank(dispatcher, its.codes, its.segments, its.nbytes, s.window, queue)
    for other in deployment.others:
        other.plan.check(cluster, s.sharing)
        leader.add(new_plan(other, cluster, settings, cluster.paces), beside=True)
    return leader


def new_plan(
    deployment: Deployment, cluster: Cluster, settings: Settings, paces: Mapping[int, float]
) -> NewPlan:
    """Return what rank 0's decisions need of a deployment that was planned for these paces."""
    plan, size = deployment.plan, TRAVEL[settings.answers].itemsize
    inputs = message_sizes(deployment, settings)
    placed = plan.placed(cluster) if cluster.workers else plan
    return NewPlan(
        deployment.codes,
        plan.segments,
        inputs,
        [
            [nbytes + plan.bytes_out(s, u, size) for u, nbytes in enumerate(sizes)]
            for s, sizes in enumerate(inputs)
        ],
        [settings.new_deadline() for _ in plan.stages],
        [
            [work(plan, s, u, cluster) for u in range(plan.units_of(s))]
            for s in range(len(plan.stages))
        ],
        [stage.ranks for stage in placed.stages],
        paces,
        deployment,
    )


def work(plan: Plan, stage: int, unit: int, cluster: Cluster) -> float:
    """Return what a unit takes, in FLOPs: its program's, and those for its messages."""
    values = plan.bytes_in(stage, unit, 1) + plan.bytes_out(stage, unit, 1)
    each = FLOPS_A_VALUE
    if len(cluster.devices) > 1 and cluster.devices[1].flops < inf:
        device = cluster.devices[1]
        each = device.flops * (1 / device.pack + 1 / device.unpack) / 2
    return plan.flops(stage, unit) + each * values


def message_sizes(deployment: Deployment, s: Settings) -> list[list[int]]:
    """Return the bytes of the message with each unit's input."""
    sizes = []
    for stage, code in enumerate(deployment.codes):
        of = [s.parity or s.wire if code.copy_of(u) is None else s.wire for u in range(code.n)]
        items = [TRAVEL[name].itemsize for name in of]
        plan = deployment.plan
        sizes.append([HEADER + plan.bytes_in(stage, u, items[u]) for u in range(code.n)])
    return sizes
