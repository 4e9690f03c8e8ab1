"""How long a plan keeps every device and link busy for a query, and so its period.

    period = max over rank 0's work, workers' work, and bytes / rate of every link

Queries one after the other can come no faster than that, however many are in flight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mpicoded.cost.exchange import Load
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
            homes = [plan.home(unit, model.cluster, s)]
            homes = [*plan.stages[s].ranks] if plan.replicated(s) else homes
            for load, share in _shared([model.load(plan, s, unit, rank) for rank in homes]):
                compute[load.rank] += share * load.compute
                compute[0] += share * load.pack
                move(0, load.rank, share * load.bytes_in)
                move(load.rank, 0, share * load.bytes_out)
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


def _shared(loads: Sequence[Load]) -> Iterator[tuple[Load, float]]:
    """Yield the loads of a unit on each of its homes, and the share of queries that goes there."""
    speeds = [1 / max(load.compute, 1e-12) for load in loads]
    yield from ((load, speed / sum(speeds)) for load, speed in zip(loads, speeds, strict=True))
