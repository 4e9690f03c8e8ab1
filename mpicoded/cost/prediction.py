"""What a plan is predicted to take: stage by stage, beside one device and a bound.

Plain numbers, made by :class:`mpicoded.cost.model.CostModel`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mpicoded.plan import aligned

HEADINGS = ("seconds of a query", "send", "compute", "receive", "leader", "all")
RESOURCES = {
    "link": "the leader's link (bytes / rate)",
    "workers": "the workers (FLOPs / rate)",
    "leader": "the leader's own blocks and head",
}


@dataclass(frozen=True)
class StageTime:
    """Seconds of one stage on the way of the answer that comes last; they sum up to ``total``.

    ``encode`` and ``decode`` are the leader's, ``receive`` includes waiting for its link.
    ``bounds`` is how long each resource is busy at the least: "link", "workers".
    """

    name: str
    encode: float
    send: float
    compute: float
    receive: float
    decode: float
    bounds: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds from the map before the stage to the map behind it."""
        return self.encode + self.send + self.compute + self.receive + self.decode

    @property
    def bound(self) -> float:
        """Return the time that no schedule of this stage can beat."""
        return max(self.bounds.values())


@dataclass(frozen=True)
class Prediction:
    """Seconds of a query: the stages, then blocks and head on the leader. ``alone``: one device."""

    stages: tuple[StageTime, ...]
    rest: float
    head: float
    single_device: float

    @property
    def latency(self) -> float:
        """Seconds of a query by the plan."""
        return sum(stage.total for stage in self.stages) + self.rest + self.head

    @property
    def speedup(self) -> float:
        """How many times faster than one device."""
        return self.single_device / self.latency

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds that each resource contributes to ``bound``: the largest of every stage's."""
        shares = dict.fromkeys(("link", "workers"), 0.0)
        for stage in self.stages:
            shares[max(stage.bounds, key=stage.bounds.__getitem__)] += stage.bound
        return shares | {"leader": self.rest + self.head}

    @property
    def bound(self) -> float:
        """Seconds that no run of this plan can beat: bytes / rate or FLOPs / rate, the larger."""
        return sum(self.bounds.values())

    @property
    def binds(self) -> str:
        """The resource that contributes most to the bound."""
        return max(self.bounds, key=self.bounds.__getitem__)

    @property
    def verdict(self) -> str:
        """Say in one line whether the plan is worth it."""
        if not self.stages:
            return f"the plan is one device: {self.single_device:.3g} s"
        if self.speedup > 1:
            return f"{self.speedup:.2f} times as fast as one device"
        return (
            f"one device is predicted to be faster: {self.single_device:.3g} s, by the plan "
            f"{self.latency:.3g} s; run the job without mpirun"
        )

    def values(self) -> dict[str, list[float] | float]:
        """Return what the results file holds of it, by name."""
        return {
            "predicted": [stage.total for stage in self.stages],
            "predicted_latency": self.latency,
            "predicted_alone": self.single_device,
            "bound": self.bound,
        }

    def table(self) -> str:
        """Return it as text: a line a stage, the leader's own work, one device, the bound."""
        rows = [HEADINGS, *(_row(i, stage) for i, stage in enumerate(self.stages))]
        rows += [
            (name, "", "", "", f"{seconds:.4f}", f"{seconds:.4f}")
            for name, seconds in (("blocks on rank 0", self.rest), ("head", self.head))
            if seconds
        ]
        rows.append(("one query", "", "", "", "", f"{self.latency:.4f}"))
        rows.append(("one device, T_1", "", "", "", "", f"{self.single_device:.4f}"))
        shares = ", ".join(f"{s:.4f} {RESOURCES[r]}" for r, s in self.bounds.items() if s)
        return "\n".join(
            [
                *aligned(rows),
                f"predicted     {self.verdict}",
                f"bound         {self.bound:.4f} s ({shares}); {RESOURCES[self.binds]} binds most",
            ]
        )


def _row(number: int, stage: StageTime) -> tuple[str, ...]:
    leader = stage.encode + stage.decode
    seconds = (stage.send, stage.compute, stage.receive, leader, stage.total)
    return (f"stage {number + 1}", *(f"{each:.4f}" for each in seconds))
