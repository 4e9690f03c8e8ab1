"""The contract of a planner: a Problem, and a Plan for it. One file a planner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from math import inf
from typing import NamedTuple

from mpicoded.cluster import Cluster
from mpicoded.cost.memory import Memory
from mpicoded.cost.model import CostModel
from mpicoded.cost.usage import Usage
from mpicoded.network.graph import Chain
from mpicoded.network.pieces import whole_flops
from mpicoded.plan import Plan, Stage
from mpicoded.split import SPLITS, Request


class Choice(NamedTuple):
    """Ranks of a stage, how it is cut, and the shares of its units (none: equal ones)."""

    split: str
    ranks: tuple[int, ...]
    weights: tuple[float, ...] = ()
    tiles: tuple[int, int] | None = None


@dataclass(frozen=True)
class Problem:
    """A network on a measured cluster, priced by ``model``; queries of ``batch`` images.

    ``objective`` is what ``auto`` makes least; ``tail`` simulates a plan, for "p99". ``window`` of
    queries in flight need memory. Ranks ``without`` get nothing. A query may take
    ``latency_limit`` seconds.
    """

    model: CostModel
    batch: int = 1
    window: int = 4
    objective: str = "latency"
    tail: Callable[[Plan], float] | None = None
    without: frozenset[int] = frozenset()
    latency_limit: float = inf

    @property
    def chain(self) -> Chain:
        """The network."""
        return self.model.chain

    @property
    def cluster(self) -> Cluster:
        """The ranks."""
        return self.model.cluster

    @cached_property
    def memory(self) -> Memory:
        """Bytes of ranks for plans."""
        return Memory(self.chain, self.window)

    @property
    def count(self) -> int:
        """Number of blocks that can be cut."""
        return len(self.chain.blocks)

    @cached_property
    def order(self) -> tuple[int, ...]:
        """Workers, the fastest first, of equal ones those with the fastest link (AOFL, 4.2)."""
        links = self.cluster.links

        def key(rank: int) -> tuple[float, float, int]:
            return -self.speeds[rank], -min(links[rank].sends, links[rank].receives), rank

        return tuple(sorted({*self.cluster.workers} - self.without, key=key))

    @cached_property
    def speeds(self) -> tuple[float, ...]:
        """Images a second of every rank that runs all blocks alone: its capability c."""
        blocks = range(self.count)
        seconds = (self.model.blocks(blocks, 1, rank=r) for r in range(len(self.cluster.hosts)))
        return tuple(1 / max(each, 1e-12) for each in seconds)

    @cached_property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """First and last block of every layer: a block with FLOPs, and the pools behind it."""
        works = [bool(whole_flops(self.chain, block.ops)) for block in self.chain.blocks]
        starts = [0, *(i for i in range(1, self.count) if works[i] and any(works[:i]))]
        stops = [*(start - 1 for start in starts[1:]), self.count - 1]
        return tuple(zip(starts, stops, strict=True)) if self.count else ()

    def rows(self, block: int) -> int:
        """Rows of a block's output."""
        return self.chain.shapes[self.chain.blocks[block].exit][1]

    def own(self, block: int) -> float:
        """Seconds of rank 0 for a block."""
        return self.model.own(block, self.batch)

    def stage(self, first: int, last: int, choice: Choice) -> Stage:
        """Cut blocks ``first`` to ``last`` so; PlanError if that cannot be."""
        request = Request(
            self.chain,
            k=len(choice.ranks),
            r=0,
            stages=tuple(block.name for block in self.chain.blocks[last : last + 1]),
            tiles=choice.tiles,
            weights=tuple(map(float, choice.weights)) or None,
            batch=self.batch,
            first=first,
        )
        stage = SPLITS[choice.split].plan(request).stages[0]
        return replace(stage, ranks=choice.ranks, r=0)

    def plan(self, stages: Sequence[Stage]) -> Plan:
        """Return the stages as a plan; rank 0 runs all other blocks, and the head."""
        whole = bool(stages) and stages[-1].exit == self.chain.head.exit
        covered = {i for stage in stages for i in range(stage.first, stage.last + 1)}
        rest = [b.ops for i, b in enumerate(self.chain.blocks) if i not in covered]
        ops = [*rest, *(() if whole else [self.chain.head.ops])]
        k = max((stage.k for stage in stages), default=1)
        names = [name for name, _ in groupby(stage.split for stage in stages)]
        return Plan(
            stages=tuple(stages),
            k=k,
            r=0,
            batch=self.batch,
            split="+".join(names) or "height",
            head_flops=sum(whole_flops(self.chain, each) for each in ops),
            output_shape=self.chain.output_shape,
        )

    def latency(self, plan: Plan) -> float:
        """Seconds of a query."""
        return self.model.predict(plan).latency

    def period(self, plan: Plan) -> tuple[float, float]:
        """Seconds between two queries at the least, and those of a query.

        A pipeline is full with latency / period queries in flight; with less it waits for them.
        """
        latency = self.latency(plan)
        return max(Usage.of(self.model, plan).period, latency / self.window), latency

    def best(self, plans: Iterable[Plan]) -> Plan:
        """Return the plan with the least latency, the first of equal ones."""
        return min(plans, key=self.latency)


Planner = Callable[[Problem], Plan]


def fitting(planner: Planner) -> Planner:
    """Return the planner that leaves out workers without the memory for their share."""

    def plan(problem: Problem) -> Plan:
        while problem.order:
            found = planner(problem)
            lacking = {*problem.memory.lacking(found, problem.cluster)} - {0}
            if not lacking:
                return found
            problem = replace(problem, without=problem.without | lacking)
        return problem.plan(())

    return plan
