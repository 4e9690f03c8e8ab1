"""Rank 0's decisions for a deployment, for the runtime and the simulator: no MPI."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpicoded.cluster import Cluster
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.message import HEADER, TRAVEL
from mpicoded.scheduling.dispatcher import Dispatcher
from mpicoded.scheduling.leader import LeaderRank
from mpicoded.scheduling.ranks import Ranks

if TYPE_CHECKING:
    from mpicoded.settings import Settings  # pydantic: a worker of a Group has no use for it


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
    work = [[plan.flops(i, u) for u in range(plan.units_of(i))] for i in range(len(plan.stages))]
    placed = plan.placed(cluster) if cluster.workers else plan
    homes = {i: stage.ranks for i, stage in enumerate(placed.stages)}
    # units one after the other are anybody's; where the plan says more, each stage has its own
    named = not plan.alike or any(stage.ranks for stage in plan.stages)
    ranks = Ranks(
        cluster.workers,
        () if named else homes[0],
        s.suspect_after,
        s.window + 8,
        work,
        own=homes if named else None,
        planned=cluster.paces,
    )
    ranks.adaptive = s.placement == "adaptive"
    segments = {
        segment.stop - 1: tuple(placed.stages[i].ranks for i in range(*segment))
        for segment in plan.segments
        if segment.size > 1
    }
    dispatcher = Dispatcher(
        deployment.codes,
        ranks,
        [s.new_deadline() for _ in plan.stages],
        s.give_up,
        s.retries,
        deployment.aims(s.min_accuracy),
        segments,
    )
    nbytes = message_sizes(deployment, settings)
    return LeaderRank(dispatcher, deployment.codes, plan.segments, nbytes, s.window, queue)


def message_sizes(deployment: Deployment, s: Settings) -> list[list[int]]:
    """Return the bytes of the message with each unit's input."""
    sizes = []
    for stage, code in enumerate(deployment.codes):
        of = [s.parity or s.wire if code.copy_of(u) is None else s.wire for u in range(code.n)]
        items = [TRAVEL[name].itemsize for name in of]
        plan = deployment.plan
        sizes.append([HEADER + plan.bytes_in(stage, u, items[u]) for u in range(code.n)])
    return sizes
