"""Segments whose units exchange halos under a code: what each keeps, and how it goes on alone."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest
import torch
from torch import Tensor, nn

from interpreter import taken
from mpicoded.codes import CODES, Code, CodeRequest, Trainable
from mpicoded.errors import JobError
from mpicoded.geometry import Box
from mpicoded.job import Job
from mpicoded.moves import check, routes, schedule
from mpicoded.network.graph import Chain, trace
from mpicoded.network.pieces import halo_program, shard_program, whole_box
from mpicoded.plan import Plan, Stage
from mpicoded.runtime.deployment import Deployment
from mpicoded.scheduling.events import (
    Came,
    Do,
    Event,
    Gone,
    Placed,
    Ran,
    Release,
    RunUnit,
    Span,
    StandIn,
    StoodIn,
    Tick,
)
from mpicoded.scheduling.layout import Layout
from mpicoded.scheduling.ranks import Task
from mpicoded.scheduling.worker import WorkerRank
from mpicoded.split import SPLITS
from mpicoded.steps import CUT, Node
from mpicoded.trace import Action
from networks import close, odd, plan_of

CUTS = {"height 3": ("height", 3, {}), "tiles 6": ("tiles", 6, {"tiles": (2, 3)})}


@cache
def chain() -> Chain:
    torch.manual_seed(3)
    return trace(odd().eval(), (3, 43, 37))


def coded(split: str, k: int, r: int = 2, **more: object) -> tuple[Plan, tuple[Code, ...]]:
    plan = plan_of(chain(), split, k, r, direct=True, keeps=True, **more)
    last = len(plan.stages) - 1
    codes = [CODES["uncoded"](CodeRequest(k, 0, stage)) for stage in plan.stages[:last]]
    return plan, (*codes, learned(k, r, plan.fused(last)))


def learned(k: int, r: int, stage: Stage) -> Trainable:
    """Widths are given: by default they are of half of a data unit's work, which differs."""
    code = CODES["learned"](CodeRequest(k, r, stage, args={"coarse": [6]}))
    assert isinstance(code, Trainable)
    return code


@pytest.mark.parametrize("name", CUTS)
def test_a_code_sees_the_segment_as_one_stage(name: str) -> None:
    """Weights of overlapping shards serve, and coded units are the same."""
    split, k, more = CUTS[name]
    plan, codes = coded(split, k, **more)
    last = plan.stages[-1].name.split(" … ")[-1]
    whole = plan_of(chain(), split, k, 2, last, **more)
    (one,) = whole.stages
    fused = plan.fused(len(plan.stages) - 1)
    assert [s.writes for s in fused.shards] == [s.writes for s in one.shards]
    assert (fused.windows, fused.input_shape) == (one.windows, one.input_shape)
    assert plan.redundancy < one.redundancy
    assert learned(k, 2, fused).signature() == learned(k, 2, one).signature()
    check(schedule(plan), plan)
    deployment, overlapping = (
        Deployment(chain(), plan, codes),
        Deployment(chain(), whole, codes[-1:]),
    )
    x = torch.randn(2, *chain().input_shape)
    with torch.inference_mode():
        (a, b) = (d.parity(0, x) for d in (deployment, overlapping))
        assert a is not None and b is not None and torch.equal(a, b)
    shapes = deployment.input_shapes()
    assert shapes[-1][k:] == overlapping.input_shapes()[0][k:]
    assert [len(units) for units in shapes] == [k] * (len(shapes) - 1) + [k + 2]


@pytest.mark.parametrize("name", CUTS)
def test_halos_are_computed_exactly_from_what_a_unit_keeps(name: str) -> None:
    """Of every unit and each of its neighbours, at each stage in which it may fall silent."""
    split, k, more = CUTS[name]
    plan, _ = coded(split, k, **more)
    x = torch.randn(1, *chain().input_shape)
    inputs = SPLITS[split].cut(x, plan.stages[0])
    maps, own = list[Tensor](), routes(plan, [range(1, k + 1)] * len(plan.stages))
    for stage in plan.stages:
        box = whole_box(stage.output_shape)
        maps.append(shard_program(chain(), plan.stages[0].first, stage.last, box)(x))
    for rank, units in own.items():
        lacks = {(end.node.unit, s) for (s, _), r in units.items() for end in r.pieces if s}
        for lost, since in sorted(lacks - {(rank - 1, s) for _, s in lacks}):
            boxes = {
                end.node.stage: end.box
                for (s, _), route in units.items()
                for end in route.pieces
                if s >= since and end.node.unit == lost
            }
            program = halo_program(chain(), plan, rank - 1, boxes)
            values = program.run({program.entry: inputs[rank - 1]})
            for s, box in boxes.items():
                true = taken([(whole_box(plan.stages[s].output_shape), maps[s])], box)
                assert close(values[plan.stages[s].exit], true, 1e-5)


# ---- one rank's decisions: three strips, of which it has the middle one


class Middle:
    """Rank 2 of three, in an epoch of a segment of several stages; ``now`` is its clock."""

    def __init__(self) -> None:
        convs = (nn.Conv2d(1, 1, 3, padding=1) for _ in range(4))  # each reads both neighbours
        plan = plan_of(
            trace(nn.Sequential(*convs), (1, 18, 4)), "height", 3, direct=True, keeps=True
        )
        self.layout = Layout(1, ((1, 2, 3),) * len(plan.stages))
        self.rank = WorkerRank(lambda last, layout: layout.routes(plan, last)[2])
        self.now = 0.0
        self.on(Placed(len(plan.stages) - 1, self.layout))

    def on(self, event: Event) -> list[Do]:
        return self.rank.on(event, self.now)

    def comes(self, stage: int, origin: Node, rank: int, query: int = 0) -> list[Do]:
        task = Task(query, stage, 1)
        return self.on(Came(rank, task, 1, origin, 0, self.now, f"{origin} for {stage}"))

    def runs(self, done: list[Do]) -> list[Do]:
        """Do what the rank wants computed, at once."""
        actions = list[Do]()
        for action in done:
            if isinstance(action, RunUnit):
                span = (Span(Action.COMPUTE, self.now, self.now),)
                actions += self.runs(self.on(Ran(action.task, span, "y", 1)))
            elif isinstance(action, StandIn):
                halos = {(h.reader, h.origin): h for h in action.halos}
                actions += [action, *self.runs(self.on(StoodIn(*action[:3], halos)))]
            else:
                actions.append(action)
        return actions

    def begins(self, query: int = 0) -> list[Do]:
        return self.runs(self.comes(0, Node(0, CUT), 0, query))

    def waits(self) -> list[StandIn]:
        """Let time pass until it computes halos itself."""
        for _ in range(3):
            self.now = max(self.now, self.rank.next_tick)
            if found := stand_ins(self.runs(self.on(Tick()))):
                return found
        return []


def stand_ins(actions: list[Do]) -> list[StandIn]:
    return [action for action in actions if isinstance(action, StandIn)]


def test_a_late_halo_is_computed_with_all_that_follow_it() -> None:
    middle = Middle()
    middle.begins()
    middle.runs(middle.comes(1, Node(0, 0), 1))
    assert middle.rank.next_tick > middle.now
    assert not middle.on(Tick()), "it waits a little"
    (action,) = middle.waits()
    assert action.task == Task(0, 1, 1) and action.source == "0.cut for 0"
    assert {halo.origin.unit for halo in action.halos} == {2}
    assert [halo.reader.stage for halo in action.halos] == list(range(1, len(middle.layout.ranks)))
    late = middle.comes(1, Node(0, 2), 3)
    assert [type(each) for each in late] == [Release], "what comes after all is given back"


def test_the_dead_are_not_waited_for_and_the_late_until_they_speak() -> None:
    middle = Middle()
    middle.on(Gone(3))
    assert [each.halos[0].origin.unit for each in stand_ins(middle.begins())] == [2]
    for stage in range(1, len(middle.layout.ranks)):
        done = middle.runs(middle.comes(stage, Node(stage - 1, 0), 1))
    released = [each for each in done if isinstance(each, Release)]
    assert Release("0.cut for 0") in released and middle.rank.todo == 0
    middle.now = 1.0
    middle.begins(query=1)  # rank 1 sends nothing
    assert [each.halos[0].origin.unit for each in middle.waits()] == [0]
    waits = middle.begins(query=2)
    assert len(stand_ins(waits)) == 2, "of both neighbours, at once"
    middle.comes(2, Node(1, 0), 1, query=3)
    middle.begins(query=3)
    assert middle.rank.next_tick > middle.now, "it has spoken"


def test_usual_waits_are_learned() -> None:
    """Neighbours that are a little behind are waited for; one that is silent is not for long."""
    middle, r = Middle(), Random(2)
    stages = len(middle.layout.ranks)
    for query in range(20):
        middle.begins(query)
        for stage in range(1, stages):
            for unit in (0, 2):
                middle.now += 0.008 + r.uniform(0, 0.001)
                assert not stand_ins(middle.runs(middle.on(Tick())))
                middle.runs(middle.comes(stage, Node(stage - 1, unit), unit + 1, query))
    middle.begins(20)
    start = middle.now
    assert middle.waits()
    assert 0.015 < middle.now - start < 0.2


def test_a_wait_is_as_long_as_what_it_saves() -> None:
    middle = Middle()
    middle.begins()
    actions = list[StandIn]()
    while not actions:  # both neighbours are late
        middle.now = max(middle.now, middle.rank.next_tick)
        actions = stand_ins(middle.on(Tick()))
    action = actions[0]
    middle.now += 3.0
    middle.on(StoodIn(*action[:3], dict.fromkeys((h.reader, h.origin) for h in action.halos)))
    for rank, origin in ((1, Node(0, 0)), (3, Node(0, 2))):
        middle.comes(1, origin, rank, query=1)  # they speak again
    middle.begins(query=2)
    assert middle.rank.next_tick >= middle.now + 3.0


# ---- jobs


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (("code.name=replication",), 'keeps maps from the leader, and "replication" needs them'),
        (("plan.exchange=leader", "plan.lost_halo=restart"), 'is of exchange = "neighbours" with'),
        (("code.name=uncoded", "code.r=0", "plan.lost_halo=restart"), 'is of exchange = "neigh'),
    ],
)
def test_conflicts(sets: tuple[str, ...], says: str) -> None:
    words = ("plan.exchange=neighbours", "code.weights=x", *sets)
    with pytest.raises(JobError, match=says):
        Job.read("jobs/quickstart.toml", words)


def test_restart_sends_no_more_than_units_read() -> None:
    plan = plan_of(chain(), "height", 3, 2, direct=True)
    wide = plan_of(chain(), "height", 3, 2, direct=True, keeps=True)
    assert not any(stage.keeps for stage in plan.stages) and wide.stages[0].keeps
    sizes = [[s.reads.area for s in each.stages[0].shards] for each in (plan, wide)]
    assert all(a < b for a, b in zip(*sizes, strict=True))
    whole = Box.of(*chain().input_shape[1:])
    assert all(s.reads.meet(whole) == s.reads for s in wide.stages[0].shards)
