"""Simulated runs: direct segments whose ranks die, freeze and slow down; jobs with their faults."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from torch import nn

from digits import QUICKSTART
from mpicoded import __main__ as program
from mpicoded.answer import Mode
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.codes import CODES, CodeRequest
from mpicoded.cost.model import CostModel, Formats
from mpicoded.cost.service import Service
from mpicoded.network.graph import Chain, trace
from mpicoded.plan import Plan
from mpicoded.results import Loaded, load
from mpicoded.runtime.deployment import Deployment, uncoded
from mpicoded.runtime.rank import new_rank
from mpicoded.scheduling.events import Came, Event, Finish
from mpicoded.settings import Settings
from mpicoded.simulate import Simulation, simulate
from mpicoded.trace import Action
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
def cut(split: str, k: int, gathered: int, code: bool = False) -> Plan:
    """A direct plan of all stages; before stage ``gathered``, if it is one, the leader gathers."""
    plan = plan_of(chain(), split, k, 2 * code, direct=True, keeps=code)
    stages = [replace(st, direct=st.direct and s != gathered) for s, st in enumerate(plan.stages)]
    return replace(plan, stages=tuple(stages))


@cache
def coded(plan: Plan) -> Deployment:
    """The plan, each of its segments with a code."""
    codes = [
        CODES["uncoded"](CodeRequest(plan.k, 0, stage))
        if plan.inside(s + 1)
        else CODES["learned"](CodeRequest(plan.k, plan.r, plan.fused(s)))
        for s, stage in enumerate(plan.stages)
    ]
    return Deployment(chain(), plan, tuple(codes))


class Storm(Simulation):
    """A run of a direct plan, with what must hold of every query."""

    def __init__(self, seed: int, code: bool = False) -> None:
        r = self.r = Random(seed)
        k = r.randint(2, 6)
        plan = cut(r.choice(["height", "width"]), k, r.choice([0, 0, 2, 3, 4]), code)
        its = coded(plan) if code else uncoded(chain(), plan, None)
        cluster = Cluster.alike(1 + k + its.plan.r + r.choice([0, 0, 1, 2]), DEVICE, LINK)
        model = CostModel(chain(), cluster, Formats())
        leader = new_rank(its, cluster, Settings(window=r.choice([1, 2, 4]), **SETTINGS))
        self.ended: dict[int, bool] = {}
        self.epochs: defaultdict[tuple[int, int, int], set[int]] = defaultdict(set)
        super().__init__(
            leader,
            Service(model, its.plan),
            cluster,
            QUERIES,
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

    def send(
        self, source: int, target: int, nbytes: float, event: Any, paced: bool = False
    ) -> None:
        came = event(self.now)
        if source == 0 and isinstance(came, Came):
            query, stage, unit = came.task
            starts = {s.start for s in self.leader.segments}
            assert stage in starts or not came.epoch, "from the segment's start"
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


@pytest.mark.parametrize("code", [False, True])
@pytest.mark.parametrize("tens", range(20))
def test_direct_segments_weather_all(tens: int, code: bool) -> None:
    for seed in range(10 * tens, 10 * tens + 10):
        storm = Storm(seed, code)
        storm.strikes()
        storm.run(limit=300.0)
        assert set(storm.ended) == set(range(QUERIES)), seed
        assert not any(storm.ended.values()), f"seed {seed}: lost {storm.ended}"
        assert not storm.leader.dispatcher.gathers


# ---- a job's run


CLUSTER = """\
[[device]]
ranks = [0, 1, 2, 3, 4, 5, 6, 7, 8]
flops = 8e8
dense = 1e9
pack = 1e8
unpack = 1e8
sends = 5e6
receives = 5e6
latency = 1e-3
"""
STRUCK = {  # action of the trace, by the fault of rank 2 from query 8 on
    "slow": ("factor=9", Action.SLOW),
    "crash": ("", Action.FAIL),
    "silence": ("", Action.SILENCE),
    "delay": ("seconds=0.5", Action.DELAY),
    "freeze": ("seconds=0.5", Action.FREEZE),
    "pattern": ("missing=2", Action.SILENCE),
    "reboot": ("", Action.FAIL),
    "cpu": ("share=0.05", Action.CPU),
    "rate": ("mbit=0.1", Action.RATE),
    "link": ("stop=0.8", Action.LINK),
    "loss": ("share=0.95", Action.LOSS),
}


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``say(*sets)`` simulates the quickstart's job; returns what is printed, and the results."""
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    file = tmp_path / "run.h5"

    def say(*sets: str) -> tuple[str, Loaded]:
        sets = (f'results.file="{file}"', "input.limit=40", *sets)
        more = [word for each in sets for word in ("--set", each)]
        cluster = ("--cluster", str(tmp_path / "cluster.toml"), "--overwrite")
        argv = ["mpicoded", "simulate", str(QUICKSTART), *cluster, *more]
        monkeypatch.setattr(sys, "argv", argv)
        assert program._alone() == 0
        return capsys.readouterr().out, load(file)

    return say


@pytest.mark.parametrize("kind", STRUCK)
def test_faults_of_a_job_befall_simulated_ranks(say, kind: str) -> None:
    keys, action = STRUCK[kind]
    rank = "" if kind == "pattern" else "rank=2,"
    fault = f'{{kind="{kind}",{rank}start=0.2{"," * bool(keys)}{keys}}}'
    printed, run = say(f"faults=[{fault}]")
    assert "simulated clock, 9 ranks" in printed
    assert set(run.queries["mode"]) <= {Mode.AVAILABLE, Mode.DEGRADED}
    struck = run.events["action"] == action
    assert struck.any(), "it is in the trace"
    if kind != "pattern":
        assert set(run.events["rank"][struck]) == {2}
    healthy = run.queries["latency"][:8]
    assert float(np.median(run.queries["latency"])) < 3 * float(np.median(healthy))


def test_the_same_seed_runs_the_same_way(say) -> None:
    runs = [say("faults=[]")[1].queries["latency"] for _ in range(2)]
    assert np.array_equal(*runs)


def test_an_open_loop_counts_from_the_schedule_and_refuses(say) -> None:
    sets = ("faults=[]", 'input.arrivals="constant"', "input.rate=1e5", "runtime.window=1")
    _, run = say(*sets)
    assert (np.diff(run.queries["latency"]) > 0).all(), "each waits for those before"
    _, run = say(*sets, "runtime.queue=5")
    assert (run.queries["mode"] == Mode.REFUSED).sum() > 30


def test_simulated_and_predicted_latency_are_near() -> None:
    for split, k, direct in (("height", 4, True), ("height", 4, False), ("width", 2, True)):
        its = uncoded(chain(), plan_of(chain(), split, k, direct=direct), None)
        model = CostModel(chain(), Cluster.alike(1 + k, DEVICE, LINK), Formats())
        answers, _ = simulate(its, model, Settings(window=1), 30)
        latency = float(np.median([answer.latency for answer in answers]))
        assert latency == pytest.approx(model.predict(its.plan).latency, rel=0.15)


def test_slow_links_make_nobody_suspect() -> None:
    """Answers that share a slow link keep all ranks silent for long; nothing is sent twice."""
    convs = [layer for _ in range(2) for layer in (nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())]
    wide = trace(nn.Sequential(*convs).eval(), (32, 24, 24))
    its = uncoded(wide, plan_of(wide, "height", 4), None)
    model = CostModel(wide, Cluster.alike(6, DEVICE, Link(4e4, 4e4)), Formats())
    answers, events = simulate(its, model, Settings(window=1, suspect_after=0.2), 3)
    assert min(answer.latency for answer in answers) > 10 * SETTINGS["suspect_after"]
    assert not {Action.SUSPECT, Action.RESEND} & set(events.drain()["action"].tolist())


def test_ranks_vary_as_they_were_measured() -> None:
    """Half of the times are twice as long; messages come up to 10 ms late."""
    its = uncoded(chain(), plan_of(chain(), "height", 2), None)
    slow = replace(DEVICE, spread=((0.01, 1.0, 1.0, 1.0, 1.5, 2.0, 2.0, 2.0),))
    late = replace(LINK, late=(0.0, 0.0, 0.0, 0.0, 1e-3, 2e-3, 1e-2))
    spans = []
    for device, link, jitter in ((DEVICE, LINK, None), (slow, LINK, None), (slow, late, None),
                                 (slow, late, 0.0)):  # fmt: skip
        model = CostModel(chain(), Cluster.alike(3, device, link), Formats())
        answers, _ = simulate(its, model, Settings(window=1), 40, seed=3, jitter=jitter)
        spans.append(np.array([answer.latency for answer in answers]))
    steady, varied, later, fixed = spans
    assert np.ptp(steady) < 1e-9 and np.allclose(fixed, steady), "a given jitter goes before"
    assert varied.min() >= steady[0] and 1.2 < np.median(varied) / steady[0] < 2
    assert np.median(later) > np.median(varied)


def test_idle_ranks_cost_nothing() -> None:
    """A thousand spares are never looked at one by one."""
    its = uncoded(chain(), cut("height", 4, 0), None)
    model = CostModel(chain(), Cluster.alike(1000, DEVICE, LINK), Formats())
    leader = new_rank(its, model.cluster, Settings())
    run = Simulation(leader, Service(model, its.plan), model.cluster, 9)
    assert sorted(run.run().workers) == [1, 2, 3, 4]
