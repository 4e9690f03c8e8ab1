"""Simulated runs of direct segments whose ranks die, freeze and slow down at random moments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from random import Random
from typing import Any

import pytest
from torch import nn

from mpicoded.cluster import Cluster, Device, Link
from mpicoded.cost.model import CostModel, Formats
from mpicoded.cost.service import Service
from mpicoded.network.graph import Chain, trace
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import uncoded
from mpicoded.runtime.rank import new_rank
from mpicoded.scheduling.events import Came, Event, Finish
from mpicoded.settings import Settings
from mpicoded.simulate import Simulation
from networks import plan_of

QUERIES = 24
DEVICE, LINK = Device(flops=2e8, dense=1e9, pack=1e8, unpack=1e8), Link(5e6, 5e6, 5e-4)
SETTINGS = {"suspect_after": 0.2, "give_up": 4.0}


@cache
def chain() -> Chain:
    """Five convolutions on 24 x 24, some of them strided or wide."""
    convs = [nn.Conv2d(3, 8, 5, padding=2), nn.Conv2d(8, 8, 3, padding=1)]
    convs += [nn.Conv2d(8, 8, 3, 2, padding=1), nn.Conv2d(8, 8, 5, padding=2), nn.Conv2d(8, 8, 3)]
    model = nn.Sequential(*[layer for conv in convs for layer in (conv, nn.ReLU())])
    return trace(model.eval(), (3, 24, 24))


@cache
def cut(split: str, k: int, gathered: int) -> Plan:
    """A direct plan of all stages; before stage ``gathered``, if it is one, the leader gathers."""
    plan = plan_of(chain(), split, k, direct=True)
    stages = [replace(st, direct=st.direct and s != gathered) for s, st in enumerate(plan.stages)]
    return replace(plan, stages=tuple(stages))


class Storm(Simulation):
    """A run of a direct plan, with what must hold of every query."""

    def __init__(self, seed: int) -> None:
        r = self.r = Random(seed)
        k = r.randint(2, 6)
        plan = cut(r.choice(["height", "width"]), k, r.choice([0, 0, 2, 3]))
        its = uncoded(chain(), plan, None)
        cluster = Cluster.alike(1 + k + r.choice([0, 0, 1, 2]), DEVICE, LINK)
        model = CostModel(chain(), cluster, Formats())
        leader = new_rank(its, cluster, Settings(window=r.choice([1, 2, 4]), **SETTINGS))
        self.ended: dict[int, bool] = {}
        self.epochs: defaultdict[tuple[int, int, int], set[int]] = defaultdict(set)
        super().__init__(
            leader,
            Service(model, its.plan, its.codes),
            cluster,
            QUERIES,
            plan=its.plan,
            seed=seed,
            jitter=0.05,
            done=self.end,
        )

    def end(self, finish: Finish, now: float) -> None:
        assert finish.query not in self.ended, "a query ends once"
        self.ended[finish.query] = finish.lost

    def strikes(self) -> int:
        """Let something befall ranks, all but one of them at the most for good."""
        ranks = [self.worker(p) for p in self.leader.dispatcher.ranks.workers]
        spared, length = self.r.choice(ranks), 0.01 * QUERIES
        struck = self.r.sample(
            [p for p in ranks if p is not spared], self.r.randint(1, len(ranks) - 1)
        )
        for worker in struck:
            what: Callable[[], None] = self.r.choice(
                [
                    worker.die,
                    partial(worker.die, False),
                    partial(worker.freeze, self.r.uniform(0.01, 2.0)),
                    worker.freeze,
                    partial(self.slower.__setitem__, worker.number, self.r.choice([3.0, 30.0])),
                ]
            )
            self.after(self.r.uniform(0, length), what)
        return len(struck)

    def send(self, source: int, target: int, nbytes: float, event: Any, paced: bool = False) -> None:
        came = event(self.now)
        if source == 0 and isinstance(came, Came):
            query, stage, unit = came.task
            assert stage in {s.start for s in self.leader.segments}, "from the segment's start"
            self.epochs[query, stage, came.epoch].add(unit)
        super().send(source, target, nbytes, event, paced)

    def tell(self, event: Event) -> None:
        super().tell(event)
        books = self.leader.dispatcher
        for key, gather in books.gathers.items():
            owed = [0] * gather.code.n
            for rank in books.ranks.living():
                for task in rank.outstanding:
                    if task[:2] == key:
                        owed[task.unit] += 1
            assert gather.expected.tolist() == owed


@pytest.mark.parametrize("tens", range(20))
def test_direct_segments_weather_all(tens: int) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        storm = Storm(seed)
        storm.strikes()
        storm.run(limit=300.0)
        assert set(storm.ended) == set(range(QUERIES)), seed
        assert not any(storm.ended.values()), f"seed {seed}: lost {storm.ended}"
        assert not storm.leader.dispatcher.gathers
