"""What a plan costs on a measured cluster: the predicted latency of one query, and its bound.

    model = CostModel(chain, cluster, Formats.of("float16", "float16"))
    model.predict(plan)          # stage by stage, the leader's own work, one device, the bound

One query is in flight at a time. The leader separates the segments, as it waits for all data units,
so that their times add up; inside one, a unit goes on as soon as the pieces of its input are there.
Work of a block: t = Φ / speed + fixed, see :mod:`mpicoded.cluster`; messages: see
:mod:`mpicoded.cost.exchange`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import accumulate, islice

from mpicoded.cluster import Cluster, Work
from mpicoded.cost.exchange import Load, Times, exchange
from mpicoded.cost.prediction import Prediction, StageTime
from mpicoded.formats import FORMATS
from mpicoded.geometry import Box, around
from mpicoded.moves import End, Route, parts, routes
from mpicoded.network.graph import Chain
from mpicoded.network.in_parts import in_parts
from mpicoded.network.pieces import shard_program
from mpicoded.plan import Plan
from mpicoded.split import SPLITS
from mpicoded.split.base import Unbounded
from mpicoded.split.images import whole_works
from mpicoded.steps import Node

MESSAGE = 144  # bytes of a message beside its numbers
# s of a part that leaves before its unit is done: between what suits float16 and float32 halos in
# the lab, where a rank makes up for a wait of less than a quota's period (docs/planners.md)
PART = 2e-3


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
        self._pieces: dict[tuple[int, Box, Unbounded], tuple[Box, Work]] = {}
        self._parts: dict[tuple[int, int, tuple[Box, ...]], list[int]] = {}
        self._routed: tuple[Plan, dict[int, dict[Node, Route]]] | None = None  # the last plan's

    def predict(self, plan: Plan) -> Prediction:
        """Return what a query by this plan takes."""
        stages = tuple(self.stages(plan))
        own = [i for i in range(len(self.chain.blocks)) if not plan.covers(i)]
        rest = self.blocks(own, plan.batch)
        return Prediction(stages, rest, self._head(plan), self.single_device(plan.batch))

    def after(self, plan: Plan) -> float:
        """Seconds of the leader for what follows the last stage."""
        start = plan.stages[-1].last + 1 if plan.stages else 0
        own = range(start, len(self.chain.blocks))
        return self.blocks(own, plan.batch) + self._head(plan)

    def _head(self, plan: Plan) -> float:
        done = plan.stages and plan.stages[-1].exit == self.chain.head.exit
        return 0.0 if done else self.blocks((), plan.batch, head=True)

    def single_device(self, batch: int = 1, first: int = 0) -> float:
        """Seconds of the leader for blocks ``first`` to the end: of one device, T_1."""
        return self.blocks(range(first, len(self.chain.blocks)), batch, head=True)

    def own(self, block: int, batch: int = 1) -> float:
        """Seconds of the leader for one block on the whole map."""
        return self.blocks((block,), batch)

    def stage(self, plan: Plan, s: int) -> StageTime:
        """Return what stage ``s`` takes."""
        return next(islice(self.stages(plan), s, None))

    def stages(self, plan: Plan) -> Iterator[StageTime]:
        """Yield what each stage takes: of a segment, from the end of the one before to its own."""
        times: list[Times] = []
        for s, stage in enumerate(plan.stages):
            answers = [plan.bytes_out(s, i, 1) for i in range(stage.k) if not plan.inside(s + 1)]
            encode = self.encode(plan, s)
            start = self._last(times, plan, s - 1).arrived if plan.inside(s) else encode
            loads, times = self.exchange(plan, s, times)
            last = self._last(times, plan, s)
            here, done, arrived = list(accumulate((start, *astuple(last)), max))[1:]
            yield StageTime(
                stage.name,
                encode=encode,
                send=here - start,
                compute=done - here,
                receive=arrived - done,
                decode=sum(answers) / self.cluster.devices[0].unpack,
                bounds=self._bounds(loads, stage.k),
            )

    def exchange(
        self, plan: Plan, s: int, before: Sequence[Times] = ()
    ) -> tuple[list[Load], list[Times]]:
        """Return what every unit of a stage is, and when it is where; ``before``: in the last."""
        loads = [
            self.load(plan, s, unit, plan.home(unit, self.cluster, s))
            for unit in range(plan.units_of(s))
        ]
        halos = list(self._halos(plan, s, before)) if plan.inside(s) else []
        if halos and plan.parities(s):  # whose input comes from the leader, after that of the data
            start = self._start(plan, s)
            data, encode = self.exchange(plan, start)[0], self.encode(plan, start)
            sent = exchange([*data, *loads[len(data) :]], self.cluster, back=False)
            halos += [encode + times.here for times in sent[len(data) :]]
        back = not plan.inside(s + 1)
        return loads, exchange(loads, self.cluster, self.encode(plan, s), halos, back)

    def _halos(self, plan: Plan, s: int, before: Sequence[Times]) -> list[float]:
        """Return when each unit has all pieces of its input; one rank's come one by one.

        Between two stages links have rested: a burst of each message passes at once.
        """
        devices, links = self.cluster.devices, self.cluster.links
        own, ready, busy = list[float](), list[float](), list[float]()
        late = self._late(plan, s)
        for unit, (rank, _, halos) in enumerate(self.halos(plan, s)):
            pieces = self._routes(plan)[rank][Node(s, unit)].pieces
            here = [before[p.node.unit].done for p in pieces if p.rank == rank]
            there = [before[p.node.unit].done - late(p) for p in pieces if p.rank != rank]
            own.append(max(here, default=0.0))
            ready.append(max(there, default=0.0))
            busy.append(0.0)
            for peer, values in halos:
                rate = min(links[peer].sends, links[rank].receives)
                busy[-1] += values / devices[peer].pack + values / devices[rank].unpack
                nbytes = values * self.formats.maps + MESSAGE
                busy[-1] += max(0.0, nbytes - min(links[peer].burst, links[rank].burst)) / rate
            delays = (links[peer].latency + links[rank].latency for peer, _ in halos)
            busy[-1] += max(delays, default=0.0)
        if self.cluster.shared:
            busy = [sum(busy)] * len(busy)
        return [max(a, b + c) for a, b, c in zip(own, ready, busy, strict=True)]

    def _late(self, plan: Plan, s: int) -> Callable[[End], float]:
        """Return how long before a unit of the stage before is done a piece of it leaves."""
        before, found = plan.stages[s - 1], dict[tuple[int, Box], float]()
        for unit in range(before.k if before.borders_first else 0):
            rank = plan.home(unit, self.cluster, s - 1)
            own = list(self.parts(rank, s - 1, unit, plan))
            rest = sum(seconds for _, seconds in own)
            for box, seconds in own:
                rest -= seconds
                found[unit, box] = rest

        def late(piece: End) -> float:
            boxes = (box for unit, box in found if unit == piece.node.unit)
            held = [
                found[piece.node.unit, box] for box in boxes if box.meet(piece.box) == piece.box
            ]
            return min(held, default=0.0)

        return late

    def halos(self, plan: Plan, s: int) -> Iterator[tuple[int, list[int], list[tuple[int, int]]]]:
        """Yield each unit's rank, the units that its input is of, and (rank, values) of halos."""
        stage = plan.stages[s]
        for unit in range(stage.k):
            rank = plan.home(unit, self.cluster, s)
            pieces = self._routes(plan)[rank][Node(s, unit)].pieces
            sizes = [(p.rank, stage.input_shape[0] * p.box.area * plan.batch) for p in pieces]
            yield rank, [p.node.unit for p in pieces], [each for each in sizes if each[0] != rank]

    def encode(self, plan: Plan, s: int) -> float:
        """Seconds of the leader to make the coded units of the segment that begins with a stage."""
        last = plan.last_of(s)
        k, parities = plan.stages[last].k, plan.parities(last)
        if plan.inside(s) or not parities or not SPLITS[plan.stages[s].split].encodes:
            return 0.0
        return (k + parities) * plan.bytes_in(last, k, 1) / self.cluster.devices[0].pack

    def _start(self, plan: Plan, s: int) -> int:
        return next(segment.start for segment in plan.segments if s < segment.stop)

    def _last(self, times: list[Times], plan: Plan, s: int) -> Times:
        """Return the answer with which the stage ends."""
        k = plan.stages[s].k
        if self.first_k:
            return sorted(times, key=lambda t: t.arrived)[k - 1]
        return max(times[:k] if plan.systematic else times, key=lambda t: t.arrived)

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

    def load(self, plan: Plan, s: int, unit: int, rank: int) -> Load:
        """Return what a unit is on a rank."""
        stage, formats, coded = plan.stages[s], self.formats, plan.coded(unit, s)
        data = formats.maps if stage.first else formats.images
        itemsize = formats.parity if coded else data
        taken = 0 if plan.inside(s) and not coded else plan.bytes_in(s, unit, 1)
        given = 0 if plan.inside(s + 1) else plan.bytes_out(s, unit, 1)
        device = self.cluster.devices[rank]
        compute = self._seconds(rank, s, unit, plan)
        return Load(
            rank,
            bytes_in=taken * itemsize + MESSAGE * (taken > 0),
            bytes_out=given * self.formats.answers + MESSAGE * (given > 0),
            pack=taken / self.cluster.devices[0].pack,
            compute=taken / device.unpack + compute + given / device.pack,
        )

    def _seconds(self, rank: int, s: int, unit: int, plan: Plan) -> float:
        """Seconds of rank ``rank`` for a unit's program."""
        stage, coded = plan.seen_by(unit, s), plan.coded(unit, s)
        if stage.borders_first and not coded:
            return sum(seconds for _, seconds in self.parts(rank, s, unit, plan))
        own = None if coded else unit
        works = list(SPLITS[stage.split].works(self.chain, stage, own, self.piece))
        seconds = self._sum(rank, works, plan.batch // stage.dealt)
        base = sum(work.flops for _, work in works)
        if coded and base:  # another network than the base model's, at the same speed
            seconds *= stage.parity_flops / base
        return seconds

    def parts(self, rank: int, s: int, unit: int, plan: Plan) -> Iterator[tuple[Box, float]]:
        """Yield the boxes that a data unit computes one after the other, and ``rank``'s seconds.

        Those that other ranks read come first.
        """
        stage, home = plan.stages[s], plan.home(unit, self.cluster, s)
        boxes = parts(stage, unit, home, self._routes(plan)[home][Node(s, unit)])
        works = list(SPLITS[stage.split].works(self.chain, stage, unit, self.piece))
        whole = self._sum(rank, works, plan.batch)
        if len(boxes) == 1:
            yield boxes[0], whole
            return
        key = (stage.first, stage.last, boxes)
        if key not in self._parts:
            self._parts[key] = in_parts(self.chain, *key).flops
        flops, seconds = self._parts[key], self.cluster.devices[rank].seconds
        fixed = seconds(works[0][0], Work(0, 0))  # of the last block, once more for every part
        for i, (box, own) in enumerate(zip(boxes, flops, strict=True)):
            share = own / stage.shards[unit].flops if sum(flops) else 1 / len(boxes)
            yield box, whole * share + (fixed + PART) * (i > 0)

    def _routes(self, plan: Plan) -> dict[int, dict[Node, Route]]:
        if self._routed is None or self._routed[0] is not plan:
            homes = plan.placed(self.cluster).stages
            self._routed = plan, routes(plan, [stage.ranks for stage in homes])
        return self._routed[1]

    def boxes(self, rank: int, plan: Plan, boxes: Mapping[int, Box]) -> float:
        """Seconds of a rank for boxes of stages' maps, from the input of their segment."""
        start, wanted = self._start(plan, min(boxes)), dict[int, Box]()  # by block
        works, box = list[tuple[str, Work]](), None
        for s, each in boxes.items():
            wanted[plan.stages[s].last] = each
        for i in range(max(wanted), plan.stages[start].first - 1, -1):
            box = around(b for b in (box, wanted.get(i)) if b is not None)
            box, work = self.piece(i, box, (False, False))
            works.append((self.chain.blocks[i].name, work))
        return self._sum(rank, works, plan.batch)

    def piece(self, i: int, box: Box, unbounded: Unbounded) -> tuple[Box, Work]:
        """Return what block ``i`` reads to write ``box``, and its work; each is worked out once."""
        key = (i, box, unbounded)
        if key not in self._pieces:
            program = shard_program(self.chain, i, i, box, unbounded)
            channels = self.chain.shapes[self.chain.blocks[i].exit][0]
            self._pieces[key] = program.reads, Work(program.flops, channels * box.area)
        return self._pieces[key]

    def blocks(self, blocks: Sequence[int], batch: int, head: bool = False, rank: int = 0) -> float:
        """Seconds of a rank for these blocks on whole maps, and for what follows the last."""
        return self._sum(rank, whole_works(self.chain, blocks, self.piece, head), batch)

    def _sum(self, rank: int, works: Iterable[tuple[str, Work]], batch: int) -> float:
        seconds = self.cluster.devices[rank].seconds
        return sum(seconds(name, Work(batch * w.flops, batch * w.values)) for name, w in works)
