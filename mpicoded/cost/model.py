"""What a plan costs on a measured cluster: the predicted latency of one query, and its bound.

    model = CostModel(chain, cluster, Formats.of("float16", "float16"))
    model.predict(plan)          # stage by stage, the leader's own work, one device, the bound

One query is in flight at a time. The leader separates the stages, as it waits for all data units,
so that their times add up. Work of a block: t = Φ / speed + fixed, see :mod:`mpicoded.cluster`;
messages: see :mod:`mpicoded.cost.exchange`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mpicoded.cluster import HEAD, Cluster, Work
from mpicoded.cost.exchange import Load, Times, exchange
from mpicoded.cost.prediction import Prediction, StageTime
from mpicoded.formats import FORMATS
from mpicoded.geometry import Box, Range
from mpicoded.network.graph import Chain
from mpicoded.network.pieces import interior_piece, whole_box, whole_flops
from mpicoded.plan import Plan

MESSAGE = 144  # bytes of a message beside its numbers
Endless = tuple[bool, bool]


@dataclass(frozen=True)
class Formats:
    """Bytes of a value as it travels: of the query's images, of maps, of parity, of answers."""

    images: int = 4
    maps: int = 4
    parity: int = 4
    answers: int = 4

    @classmethod
    def of(cls, wire: str, parity: str | None, answers: str) -> Formats:
        """Return what [runtime] means; "uint8" is of images alone."""
        inputs, coded, outputs = (FORMATS[name] for name in (wire, parity or wire, answers))
        return cls(inputs.image, inputs.nbytes, coded.nbytes, outputs.nbytes)


class CostModel:
    """Prices of pieces of ``chain`` on the ranks of ``cluster``, which must be measured.

    ``first_k``: a stage ends with its k-th answer, whichever it is; otherwise with its last data
    unit. What a code adds to encoding is counted as the copies that it makes.
    """

    def __init__(
        self, chain: Chain, cluster: Cluster, formats: Formats, first_k: bool = False
    ) -> None:
        self.chain, self.cluster, self.formats, self.first_k = chain, cluster, formats, first_k
        self._pieces: dict[tuple[int, Box, Endless], tuple[Box, Work]] = {}

    def predict(self, plan: Plan) -> Prediction:
        """Return what a query by this plan takes."""
        stages = tuple(self.stage(plan, s) for s in range(len(plan.stages)))
        if plan.stages[-1].by_images:
            return Prediction(stages, 0.0, 0.0, self.alone(plan.batch))
        own = [i for i in range(len(self.chain.blocks)) if not plan.covers(i)]
        rest = self._blocks(0, own, plan.batch)
        return Prediction(stages, rest, self._head(0, plan.batch), self.alone(plan.batch))

    def alone(self, batch: int = 1, first: int = 0) -> float:
        """Seconds of the leader for blocks ``first`` to the end: of one device, T_1."""
        return self._whole(0, first, batch) + self._head(0, batch)

    def own(self, block: int, batch: int = 1) -> float:
        """Seconds of the leader for one block on the whole map."""
        return self._blocks(0, (block,), batch)

    def stage(self, plan: Plan, s: int) -> StageTime:
        """Return what stage ``s`` takes."""
        loads, times = self.exchange(plan, s)
        encode, last = self._encode(plan, s), self._last(times, plan)
        answers = sum(plan.bytes_out(s, unit, 1) for unit in range(plan.k))
        return StageTime(
            plan.stages[s].name,
            encode=encode,
            send=last.here - encode,
            compute=last.done - last.here,
            receive=last.arrived - last.done,
            decode=answers / self.cluster.devices[0].unpack,
            bounds=self._bounds(loads, plan.k),
        )

    def exchange(self, plan: Plan, s: int) -> tuple[list[Load], list[Times]]:
        """Return what every unit of a stage is, and when it is where."""
        loads = [self._load(plan, s, unit) for unit in range(plan.n)]
        return loads, exchange(loads, self.cluster, self._encode(plan, s))

    def _encode(self, plan: Plan, s: int) -> float:
        if not plan.r or plan.stages[s].by_channels:
            return 0.0
        return plan.n * plan.bytes_in(s, plan.k, 1) / self.cluster.devices[0].pack

    def _last(self, times: list[Times], plan: Plan) -> Times:
        """Return the answer with which the stage ends."""
        if self.first_k:
            return sorted(times, key=lambda t: t.arrived)[plan.k - 1]
        return max(times[: plan.k] if plan.systematic else times, key=lambda t: t.arrived)

    def _bounds(self, loads: list[Load], k: int) -> dict[str, float]:
        """Return how long the data units alone keep the leader's link and a worker busy."""
        link, busy = self.cluster.links[0], dict[int, float]()
        for load in loads[:k]:
            busy[load.rank] = busy.get(load.rank, 0.0) + load.compute
        ways = [
            sum(load.bytes_in for load in loads[:k]) / link.sends,
            sum(load.bytes_out for load in loads[:k]) / link.receives,
        ]
        return {
            "link": sum(ways) if self.cluster.shared else max(ways),
            "workers": min(busy.values()) if self.first_k else max(busy.values()),
        }

    def _load(self, plan: Plan, s: int, unit: int) -> Load:
        stage, rank = plan.stages[s], plan.home(unit, self.cluster, s)
        formats = self.formats
        data = formats.maps if stage.first else formats.images
        itemsize = data if not plan.coded(unit, s) else formats.parity
        taken, given = plan.bytes_in(s, unit, 1), plan.bytes_out(s, unit, 1)
        device = self.cluster.devices[rank]
        compute = self._seconds(rank, s, unit, plan)
        return Load(
            rank,
            bytes_in=taken * itemsize + MESSAGE,
            bytes_out=given * self.formats.answers + MESSAGE,
            pack=taken / self.cluster.devices[0].pack,
            compute=taken / device.unpack + compute + given / device.pack,
        )

    def _seconds(self, rank: int, s: int, unit: int, plan: Plan) -> float:
        """Seconds of rank ``rank`` for a unit's program."""
        stage = plan.stages[s]
        if stage.by_images:
            images = plan.batch // plan.k
            return self._whole(rank, 0, images) + self._head(rank, images)
        device = self.cluster.devices[rank]
        if stage.by_channels:
            work = Work(plan.flops(s, unit), plan.bytes_out(s, unit, 1))
            return device.seconds(self.chain.blocks[stage.last].name, work)
        if not plan.coded(unit, s):
            box, endless = stage.shards[unit].writes, (False, False)
        else:
            rows, cols = stage.unit_output
            box = Box(Range(0, rows), Range(0, cols))
            endless = (stage.grid[0] > 1, stage.grid[1] > 1)
        works = list(self.works(stage.first, stage.last, box, endless))
        seconds = sum(
            device.seconds(self.chain.blocks[i].name, _times(work, plan.batch)) for i, work in works
        )
        base = sum(work.flops for _, work in works)
        if plan.coded(unit, s) and base:  # another network than the base model's, at the same speed
            seconds *= stage.parity_flops / base
        return seconds

    def works(
        self, first: int, last: int, box: Box, endless: Endless = (False, False)
    ) -> Iterator[tuple[int, Work]]:
        """Yield (block, its work for an image) of the piece that writes ``box``, the last first."""
        for i in range(last, first - 1, -1):
            box, work = self._piece(i, box, endless)
            yield i, work

    def _piece(self, i: int, box: Box, endless: Endless) -> tuple[Box, Work]:
        """Return what block ``i`` reads to write ``box``, and its work; each is worked out once."""
        key = (i, box, endless)
        if key not in self._pieces:
            program = interior_piece(self.chain, i, i, box, endless)
            channels = self.chain.shapes[self.chain.blocks[i].exit][0]
            self._pieces[key] = program.reads, Work(program.flops, channels * box.area)
        return self._pieces[key]

    def _whole(self, rank: int, first: int, batch: int) -> float:
        """Seconds of a rank for blocks ``first`` to the last, on whole maps."""
        return self._blocks(rank, range(first, len(self.chain.blocks)), batch)

    def _blocks(self, rank: int, blocks: Iterable[int], batch: int) -> float:
        """Seconds of a rank for these blocks, on whole maps."""
        device, total = self.cluster.devices[rank], 0.0
        for i in blocks:
            block = self.chain.blocks[i]
            work = self._piece(i, whole_box(self.chain.shapes[block.exit]), (False, False))[1]
            total += device.seconds(block.name, _times(work, batch))
        return total

    def _head(self, rank: int, batch: int) -> float:
        """Seconds of a rank for what follows the last block."""
        head = self.chain.head
        if not head.ops:
            return 0.0
        flops = whole_flops(self.chain, head.ops)
        work = Work(flops * batch, flops * batch)
        return self.cluster.devices[rank].seconds(HEAD, work)


def _times(work: Work, batch: int) -> Work:
    return Work(work.flops * batch, work.values * batch)
