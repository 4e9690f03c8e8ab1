"""What a stage may be: on which ranks, cut how. All choices of all stages, priced at once.

Devices are taken in the order of their speed, so that there are as many sets as devices (AOFL,
SEC 2019, section 4.2). A set cuts rows into strips that take equal time, the map into a grid of
tiles by capability, or a convolution into groups of its channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from operator import le
from typing import NamedTuple

import numpy as np

from mpicoded.cost.exchange import Load, exchange
from mpicoded.cost.model import MESSAGE, CostModel
from mpicoded.cost.table import BlockTable, Boxes, Floats, Ints, Rates, Strips
from mpicoded.errors import PlanError
from mpicoded.geometry import Range
from mpicoded.network.filters import Filters
from mpicoded.planners.balance import fill
from mpicoded.planners.base import Choice, Problem
from mpicoded.split.tiles import tile_boxes
from mpicoded.stage import Stage

STRIPS, TILES, CHANNELS = "height", "tiles", "channels"
KINDS = (STRIPS, TILES, CHANNELS)


@dataclass(frozen=True)
class Priced:
    """Choices for one stage; their units one after the other, choice g from ``starts[g]`` on.

    A unit takes and gives so many values, and ``seconds`` of its rank.
    """

    model: CostModel
    first: int
    last: int
    choices: list[Choice]
    starts: Ints
    rank: Ints
    takes: Ints
    gives: Ints
    seconds: Floats

    @property
    def itemsize(self) -> int:
        """Bytes of a value that a unit takes."""
        return self.model.formats.maps if self.first else self.model.formats.images

    def compute(self) -> Floats:
        """Return seconds of each unit's rank, with what it takes out of messages and puts in."""
        devices = self.model.cluster.devices
        pack, unpack = (np.array([getattr(d, key) for d in devices]) for key in ("pack", "unpack"))
        moved: Floats = self.takes / unpack[self.rank] + self.gives / pack[self.rank]
        return moved + self.seconds

    def bounds(self) -> Floats:
        """Return seconds that each choice takes at the least, as bytes / rate and FLOPs / rate."""
        links, at = self.model.cluster.links, self.starts
        sends, receives, latency = np.array(
            [(link.sends, link.receives, link.latency) for link in links]
        ).T
        out = self.takes * self.itemsize + MESSAGE
        back = self.gives * self.model.formats.answers + MESSAGE
        compute, delay = self.compute(), (latency[0] + latency)[self.rank]
        sent, answered = out / sends[0], back / receives[0]
        own = np.maximum(sent, out / receives[self.rank]) + compute + 2 * delay
        own += np.maximum(answered, back / sends[self.rank])
        low = np.minimum.reduceat
        send_all = np.add.reduceat(sent, at) + low(compute + answered + 2 * delay, at)
        answer_all = low(sent + compute + 2 * delay, at) + np.add.reduceat(answered, at)
        both = np.add.reduceat(sent + answered, at) * self.model.cluster.shared
        least: Floats = np.max([np.maximum.reduceat(own, at), send_all, answer_all, both], axis=0)
        unpack: Floats = np.add.reduceat(self.gives, at) / self.model.cluster.devices[0].unpack
        return least + unpack

    def times(self, g: int) -> list[float]:
        """Return when the answer of each unit of choice ``g`` is with rank 0, event by event."""
        start, cluster, answers = self.starts[g], self.model.cluster, self.model.formats.answers
        own = slice(start, start + len(self.choices[g].ranks))
        loads = [
            Load(
                rank,
                bytes_in=taken * self.itemsize + MESSAGE,
                bytes_out=given * answers + MESSAGE,
                pack=taken / cluster.devices[0].pack,
                compute=compute,
            )
            for rank, taken, given, compute in zip(
                self.choices[g].ranks,
                self.takes[own].tolist(),
                self.gives[own].tolist(),
                self.compute()[own].tolist(),
                strict=True,
            )
        ]
        return [times.arrived for times in exchange(loads, cluster)]

    def price(self, g: int) -> float:
        """Return the seconds of choice ``g``, until all of its answers are unpacked."""
        given = self.gives[self.starts[g] :][: len(self.choices[g].ranks)]
        return max(self.times(g)) + float(given.sum()) / self.model.cluster.devices[0].unpack


class Stretch(NamedTuple):
    """The cheapest of some stages: ``seconds`` with what was added to it, and how it is cut."""

    seconds: float
    first: int
    last: int
    choice: Choice


def cheapest(offers: Iterable[tuple[float, Priced]], limit: float = inf) -> Stretch | None:
    """Return the least of seconds added + price; None if none is below ``limit``.

    Offers are priced in the order of their bounds; those that cannot be the least are not.
    """
    bounds = [
        (added + bound, number, g, added, priced)
        for number, (added, priced) in enumerate(offers)
        for g, bound in enumerate(priced.bounds().tolist())
        if added + bound < limit
    ]
    found = None
    for bound, _, g, added, priced in sorted(bounds, key=lambda each: each[:3]):
        if bound >= limit:
            break
        if (seconds := added + priced.price(g)) < limit:
            limit = seconds
            found = Stretch(seconds, priced.first, priced.last, priced.choices[g])
    return found


class Choices:
    """All choices of the stages of a problem, of the given kinds; ``tiles``: of these grids alone.

    Tiles of a grid have equal shares then, and several of them may be on one rank.
    """

    def __init__(
        self, problem: Problem, kinds: Sequence[str] = KINDS, tiles: Sequence[Choice] = ()
    ) -> None:
        self.problem, self.kinds, self._given = problem, kinds, tiles
        self.chain, self.cluster = problem.chain, problem.cluster
        self.tables = [BlockTable.of(self.chain, block) for block in self.chain.blocks]
        self.rates = Rates.of(self.chain, self.cluster, self.tables)

    def ending(self, last: int) -> Iterator[Priced]:
        """Yield the choices of every stage that ends with block ``last``, the shortest first."""
        firsts, order, strips = range(last, -1, -1), self.problem.order, self._strips(last)
        sets = [order[: n + 1] for n in range(min(len(order), self.problem.rows(last)))]
        for first in firsts if STRIPS in self.kinds else ():
            strips.back(self.tables[first], self.rates.seconds[first], self.rates.fixed[first])
            cuts = [self._equal_time(first, last, strips, ranks) for ranks in sets]
            yield self._priced_strips(first, last, strips, cuts)
        if TILES in self.kinds:
            yield from self._priced_tiles(last, self._given or self._grids, firsts)
        if CHANNELS in self.kinds:
            yield from filter(None, (self._channels(first, last) for first in firsts))

    def stages(self, bounds: Iterable[tuple[int, int]]) -> list[Stage]:
        """Return stages in strips of equal time, of all workers that get a row."""
        order, stage = self.problem.order, self.problem.stage
        return [stage(*each, self.strips(*each, order)) for each in bounds]

    def strips(self, first: int, last: int, ranks: Sequence[int]) -> Choice:
        """Return strips that take equal time; of some of the ranks, if that is best."""
        ranks = tuple(ranks[: self.problem.rows(last)])
        return self._equal_time(first, last, self._back(first, last), ranks)

    def price(self, first: int, last: int, strips: Choice) -> float:
        """Return the seconds of a stage in strips."""
        return self.priced(first, last, strips).price(0)

    def priced(self, first: int, last: int, strips: Choice) -> Priced:
        """Return a stage in strips with what its units take."""
        return self._priced_strips(first, last, self._back(first, last), [strips])

    def pricer(
        self, first: int, last: int, choice: Choice
    ) -> Callable[[tuple[float, ...]], tuple[float, list[float]]]:
        """Return when all answers of such a stage are there, by its shares, and when each is."""
        strips = self._back(first, last) if choice.split == STRIPS else None

        def price(shares: tuple[float, ...]) -> tuple[float, list[float]]:
            each = [choice._replace(weights=shares)]
            if strips:
                priced = self._priced_strips(first, last, strips, each)
            else:
                (*_, priced) = self._priced_tiles(last, each, range(last, first - 1, -1))
            times = priced.times(0)
            return max(times), times

        return price

    def linear(
        self, first: int, last: int, ranks: Sequence[int]
    ) -> tuple[Floats, Floats, int, float]:
        """Return seconds of a row of a stage's map on each rank, and besides; values read.

        These are all, and those of the halos of a strip in the middle.
        """
        strips, kinds = self._back(first, last), self.rates.kinds[list(ranks)]
        height, batch = self.problem.rows(last), self.problem.batch
        start, stop = np.array([0, height // 2]), np.array([height, height // 2 + 1])
        whole, one = batch * self._depth(first) * strips.width * strips.reads(start, stop)
        fixed = self.rates.fixed[first : last + 1][:, kinds].sum(0)
        return strips.slopes(kinds), fixed, int(whole), max(0.0, one - whole / height)

    def _back(self, first: int, last: int) -> Strips:
        strips = self._strips(last)
        for i in range(last, first - 1, -1):
            strips.back(self.tables[i], self.rates.seconds[i], self.rates.fixed[i])
        return strips

    def _shape(self, last: int) -> tuple[int, ...]:
        return self.chain.shapes[self.chain.blocks[last].exit]

    def _depth(self, first: int) -> int:
        return self.chain.shapes[self.chain.blocks[first].entry][0]

    def _priced(
        self, first: int, last: int, choices: list[Choice], takes: Ints, gives: Ints,
        seconds: Floats,
    ) -> Priced:  # fmt: skip
        """Put choices together; a unit takes and gives so many values of an image."""
        batch = self.problem.batch
        ranks = np.concatenate([choice.ranks for choice in choices])
        starts = np.cumsum([0, *(len(choice.ranks) for choice in choices)])[:-1]
        return Priced(
            self.problem.model, first, last, choices, starts, ranks, batch * takes, batch * gives,
            seconds,
        )  # fmt: skip

    # ---- strips of rows

    def _strips(self, last: int) -> Strips:
        return Strips(self._shape(last), self.rates.seconds.shape[1], self.problem.batch)

    def _priced_strips(
        self, first: int, last: int, strips: Strips, choices: list[Choice]
    ) -> Priced:
        stops = np.concatenate([np.cumsum(choice.weights) for choice in choices]).astype(int)
        sizes = np.concatenate([choice.weights for choice in choices]).astype(int)
        starts = stops - sizes
        kinds = self.rates.kinds[np.concatenate([choice.ranks for choice in choices])]
        takes = self._depth(first) * strips.reads(starts, stops) * strips.width
        gives = self._shape(last)[0] * self._shape(last)[2] * sizes
        return self._priced(
            first, last, choices, takes, gives, strips.seconds(kinds, starts, stops)
        )

    def _equal_time(self, first: int, last: int, strips: Strips, ranks: tuple[int, ...]) -> Choice:
        """Size the strips of some ranks; whoever gets no row is left out, and all is sized anew."""
        height = self.problem.rows(last)
        while True:
            own, kinds = np.array(ranks), self.rates.kinds[list(ranks)]
            edges = height * np.arange(len(own) + 1) // len(own)
            start, stop = edges[:-1], edges[1:]
            slopes = strips.slopes(kinds)
            fixed = strips.seconds(kinds, start, stop) - slopes * (stop - start)
            slopes = slopes + self._own_link(first, last, strips, own)
            sizes = fill(slopes.tolist(), fixed.tolist(), height)
            if all(sizes):
                return Choice(STRIPS, ranks, tuple(sizes))
            ranks = tuple(rank for rank, size in zip(ranks, sizes, strict=True) if size)

    def _own_link(self, first: int, last: int, strips: Strips, ranks: Ints) -> Floats:
        """Return seconds of a row on ranks' own links, beyond those on the leader's."""
        links, formats = self.cluster.links, self.problem.model.formats
        height, width = self._shape(last)[1:]
        row = int(strips.reads(np.array([0]), np.array([height]))[0]) * strips.width / height
        taken = row * self._depth(first) * (formats.maps if first else formats.images)
        given = width * self._shape(last)[0] * formats.answers
        sends, receives = np.array([(links[r].sends, links[r].receives) for r in ranks]).T
        out = np.maximum(0.0, taken / receives - taken / links[0].sends)
        back = np.maximum(0.0, given / sends - given / links[0].receives)
        return np.asarray(self.problem.batch * (out + back), float)

    # ---- grids of tiles

    def _priced_tiles(
        self, last: int, choices: Sequence[Choice], firsts: Sequence[int]
    ) -> Iterator[Priced]:
        """Yield the grids that the map has room for, of the stages that begin with ``firsts``."""
        shape = self._shape(last)
        choices = [c for c in choices if c.tiles and all(map(le, c.tiles, shape[1:]))]
        if not choices:
            return
        cut = [tile_boxes(shape, c.tiles or (1, 1), c.weights) for c in choices]
        edges = np.array([(*rows, *cols) for boxes in cut for rows, cols in boxes]).T
        kinds = self.rates.kinds[[rank for choice in choices for rank in choice.ranks]]
        boxes = Boxes((edges[0], edges[1]), (edges[2], edges[3]), kinds, self.problem.batch)
        gives = shape[0] * boxes.area
        for first in firsts:
            boxes.back(self.tables[first], self.rates.seconds[first], self.rates.fixed[first])
            takes = self._depth(first) * boxes.area
            yield self._priced(first, last, choices, takes, gives, boxes.seconds.copy())

    @cached_property
    def _grids(self) -> list[Choice]:
        """Every grid of every set of devices, by capability; strips of rows are no grid."""
        order, speeds, found = self.problem.order, self.problem.speeds, list[Choice]()
        for count in range(2, len(order) + 1):
            ranks, weights = order[:count], tuple(speeds[rank] for rank in order[:count])
            for down in (n for n in range(1, count) if count % n == 0):
                found.append(Choice(TILES, ranks, weights, (down, count // down)))
        return found

    # ---- groups of channels

    def _channels(self, first: int, last: int) -> Priced | None:
        """Return the choices where the stage is one convolution, and works by channel after it."""
        try:
            filters = Filters.of(self.chain, first, last, linear=False)
        except PlanError:
            return None
        order, batch = self.problem.order, self.problem.batch
        areas = [prod(self._shape(block)[1:]) for block in range(first, last + 1)]
        flops = filters.program(Range(0, 1)).flops
        work = batch * np.array([flops, *areas[1:]])  # of a channel, block by block
        slopes = work @ self.rates.seconds[first : last + 1][:, self.rates.kinds]
        fixed = self.rates.fixed[first : last + 1][:, self.rates.kinds].sum(0)
        depth, choices = self._shape(last)[0], list[Choice]()
        for count in range(2, min(len(order), depth) + 1):
            own = list(order[:count])
            sizes = fill(slopes[own].tolist(), fixed[own].tolist(), depth)
            used = [(rank, size) for rank, size in zip(own, sizes, strict=True) if size]
            choices.append(Choice(CHANNELS, *map(tuple, zip(*used, strict=True))))
        if not choices:
            return None
        ranks = np.concatenate([choice.ranks for choice in choices])
        parts = np.concatenate([choice.weights for choice in choices]).astype(int)
        whole = self._depth(first) * prod(self.chain.shapes[self.chain.blocks[first].entry][1:])
        seconds = slopes[ranks] * parts + fixed[ranks]
        takes, gives = np.full(len(ranks), whole), areas[-1] * parts
        return self._priced(first, last, choices, takes, gives, seconds)
