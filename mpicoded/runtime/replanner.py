"""Another plan while a run goes on: for the paces that were measured, taken if it is better."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from mpicoded.cluster import Cluster, Device, Rate
from mpicoded.cost.memory import Memory
from mpicoded.cost.model import CostModel
from mpicoded.errors import PlanError
from mpicoded.plan import Plan
from mpicoded.runtime.check import agrees
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.runtime.rank import new_plan
from mpicoded.scheduling.events import Replanned

if TYPE_CHECKING:
    from mpicoded.settings import Settings

GAIN = 1.1  # times faster that a plan must be predicted to be


@dataclass
class Replanner:
    """Makes a plan by ``planner``, as the present one was, when paces drift beyond ``bound``.

    ``model`` has the speeds as they were measured before the run, ``deployment`` the present plan.
    ``price`` is the seconds of a plan that are to fall.
    """

    bound: float
    planner: Callable[[CostModel], Plan]
    model: CostModel
    deployment: Deployment
    price: Callable[[CostModel, Plan], float] = lambda model, plan: model.predict(plan).latency

    def __post_init__(self) -> None:
        """Keep what answers have room for in the results file."""
        self._shape = self.deployment.shape

    def replan(self, paces: Mapping[int, float], cluster: Cluster, settings: Settings) -> Replanned:
        """Return the plan for these paces of ``cluster``'s workers, None unless it is better."""
        m = self.model
        model = CostModel(m.chain, slowed(m.cluster, paces), m.formats, m.first_k)
        try:
            plan = self.planner(model)
            Memory(m.chain, settings.window).check(plan, model.cluster)
            plan.check(cluster, settings.sharing)
        except PlanError:
            return Replanned(None)
        old, new = (self.price(model, each) for each in (self.deployment.plan, plan))
        room = all(a <= b for a, b in zip(plan.shape, self._shape, strict=True))
        room &= len(pickle.dumps(plan)) <= self.deployment.largest
        if self.deployment.runs_head(plan) or not room or old < GAIN * new:
            return Replanned(None)
        if not agrees(uncoded(m.chain, plan, self.deployment.pixels)):
            return Replanned(None)
        self.deployment = self.deployment.replanned(plan)
        text = (
            f"ranks have another pace than planned for: the next queries go by a new plan, "
            f"predicted {new:.3g} s a query instead of {old:.3g} s"
        )
        return Replanned(new_plan(self.deployment, cluster, settings, paces), text)


def slowed(cluster: Cluster, paces: Mapping[int, float]) -> Cluster:
    """Return the cluster with its workers' speeds as their ``paces`` say.

    Paces are relative, so that the middle worker keeps its speed.
    """
    drift = {p: pace / cluster.paces.get(p, 1.0) for p, pace in paces.items()}
    middle = median(drift.values())
    devices = [
        _times(device, middle / drift[p]) if p in drift else device
        for p, device in enumerate(cluster.devices)
    ]
    return replace(cluster, devices=tuple(devices))


def _times(device: Device, factor: float) -> Device:
    names = ("flops", "dense", "values", "pack", "unpack")
    speeds = {n: factor * v for n in names if (v := getattr(device, n)) is not None}
    blocks = {k: Rate(factor * r.speed, r.fixed / factor) for k, r in device.blocks.items()}
    return replace(device, **speeds, blocks=blocks)
