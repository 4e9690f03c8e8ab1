"""How long a plan keeps every device and link busy for a query, and so its period.

    period = max over rank 0's work, workers' work, and bytes / rate of every link

Queries one after the other can come no faster than that, however many are in flight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from mpicoded.cost.model import MESSAGE, CostModel
from mpicoded.plan import Plan


@dataclass(frozen=True)
class Usage:
    """Seconds a query by rank, computing and on its link (``medium``: on the shared one); bytes."""

    compute: Mapping[int, float]
    link: Mapping[int, float]
    medium: float
    sent: float

    @property
    def period(self) -> float:
        """Seconds between two queries at the least."""
        return max([self.medium, *self.compute.values(), *self.link.values()])

    @classmethod
    def of(cls, model: CostModel, plan: Plan) -> Usage:
        """Sum the plan's units, halos, and rank 0's own blocks up."""
        devices, links = model.cluster.devices, model.cluster.links
        compute, out, back = (defaultdict[int, float](float) for _ in range(3))
        medium = sent = 0.0

        def move(source: int, target: int, nbytes: float) -> None:
            nonlocal medium, sent
            out[source] += nbytes
            back[target] += nbytes
            sent += nbytes
            medium += nbytes / min(links[source].sends, links[target].receives)

        for s, unit in plan.units():
            rank = plan.home(unit, model.cluster, s)
            load = model.load(plan, s, unit, rank)
            compute[rank] += load.compute
            compute[0] += load.pack
            move(0, rank, load.bytes_in)
            move(rank, 0, load.bytes_out)
        for s in (s for s in range(len(plan.stages)) if plan.inside(s)):
            for rank, _, halos in model.halos(plan, s):
                for peer, values in halos:
                    move(peer, rank, values * model.formats.maps + MESSAGE)
                    compute[peer] += values / devices[peer].pack
                    compute[rank] += values / devices[rank].unpack
        predicted = model.predict(plan)
        compute[0] += predicted.rest + predicted.head
        compute[0] += sum(stage.encode + stage.decode for stage in predicted.stages)
        link = {
            rank: max(out[rank] / links[rank].sends, back[rank] / links[rank].receives)
            for rank in {*out, *back}
        }
        return cls(dict(compute), link, medium if model.cluster.shared else 0.0, sent)
