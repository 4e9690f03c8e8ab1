"""Schedules of random plans are the unsplit model, whoever runs first; skips and sums are exact."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from interpreter import Interpreter, Maps, Run, runs
from mpicoded.cluster import Cluster
from mpicoded.errors import PlanError
from mpicoded.geometry import Box, Range, split
from mpicoded.moves import End, Route, Unit, check, moves, routes, schedule
from mpicoded.network.filters import Filters
from mpicoded.network.graph import Chain, trace
from mpicoded.network.ops import Op
from mpicoded.network.program import Program, compile_piece
from mpicoded.plan import Part, Plan, Shard, Stage
from mpicoded.split import SPLITS, Request
from mpicoded.steps import CUT, GATHER, Kind, Node, Step
from networks import (
    close,
    halves,
    inception,
    layer,
    plan_of,
    programs,
    random_network,
    residual,
)
from units import windows

SEEDS = st.integers(0, 2**32 - 1)
TOLERANCES = ((torch.float64, 1e-10), (torch.float32, 1e-5))


def answer(chain: Chain, plan: Plan, what: dict[Node, Run], x: Tensor, seed: int) -> Tensor:
    """Check the plan's schedule, run it, and the head behind it."""
    steps = schedule(plan)
    check(steps, plan)
    maps = Interpreter(plan, steps, what)(plan.stages[0].entry, x, seed)
    last = plan.stages[-1]
    result: Tensor = chain.head_after(last.last)(maps[last.exit])
    return result


def images(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)


def on_ranks(plan: Plan, r: random.Random) -> Plan:
    """Return the plan with random homes, and each boundary gathered or direct."""
    way, stages, used = r.choice(["own", "disjoint", "any", "shuffled"]), list[Stage](), 0
    for s, stage in enumerate(plan.stages):
        k = stage.k
        ranks = {
            "own": (),
            "disjoint": tuple(range(used + 1, used + 1 + k)),  # a pipeline
            "any": tuple(r.randrange(6) for _ in range(k)),  # the leader too, several a rank
            "shuffled": tuple(r.sample(range(1, k + 3), k)),
        }[way]
        used += k
        stages.append(replace(stage, ranks=ranks, direct=s > 0 and r.random() < 0.8))
    return replace(plan, stages=tuple(stages))


def random_plan(chain: Chain, r: random.Random) -> Plan:
    """Return one to four stages, each cut in its own way, by a planner."""
    last = len(chain.blocks) - 1
    ends = sorted(r.sample(range(last), min(last, r.randint(0, 3)))) + [last]
    stages, first = list[Stage](), 0
    for end in ends:
        name = chain.blocks[end].name
        height, width = chain.shapes[chain.blocks[end].exit][1:]
        kind = r.choice(["height", "width", "tiles"])
        tiles = (r.randint(1, min(height, 4)), r.randint(1, min(width, 4)))
        longest = {"height": height, "width": width}.get(kind, 0)
        k = min(longest, r.choice([2, 3, 5, longest])) if longest else tiles[0] * tiles[1]
        weights = (
            tuple(r.uniform(0.1, 3) for _ in range(k)) if longest and r.random() < 0.4 else None
        )
        request = Request(
            chain, k, 0, (name,), tiles if kind == "tiles" else None, weights, 2, first
        )
        plan = SPLITS[kind].plan(request)
        stages += plan.stages
        first = end + 1
    return on_ranks(replace(plan, stages=tuple(stages)), r)


@settings(max_examples=320, deadline=None, derandomize=True, database=None)
@given(SEEDS, SEEDS)
def test_schedule_is_the_unsplit_model(network: int, cuts: int) -> None:
    model, shape = random_network(network)
    for dtype, tolerance in TOLERANCES:
        chain = trace(model.to(dtype), shape)
        plan = random_plan(chain, random.Random(cuts))
        x = images(shape, cuts, dtype)
        with torch.inference_mode():
            given_ = answer(chain, plan, runs(chain, plan), x, cuts)
            assert close(given_, model(x.clone()), tolerance)


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(SEEDS, SEEDS)
def test_routes_are_the_schedule(network: int, cuts: int) -> None:
    """What a rank's routes name is what its steps receive and send, and nothing else."""
    model, shape = random_network(network)
    plan = random_plan(trace(model, shape), random.Random(cuts))
    placed = plan.placed(Cluster.local(plan.ranks))
    found, steps = routes(plan, [stage.ranks for stage in placed.stages]), schedule(plan)
    for rank in steps:
        sent, received = list[Step](), list[Step]()
        for node, route in found.get(rank, {}).items():
            stage = plan.stages[node.stage]
            for peer, origin, box in route.pieces:
                received.append(Step(Kind.RECV, node, peer, stage.entry, box))
                assert End(rank, node, box) in _sends(found, peer, origin) or origin.unit == CUT
            for peer, reader, box in route.sends:
                of = node if reader.unit == GATHER else reader
                sent += [Step(Kind.SEND, of, peer, stage.exit, box)] * (peer != rank)
        own = [step for step in steps[rank] if step.kind is not Kind.RUN]
        if rank == 0:  # its cuts and gathers are no units'
            own = [s for s in own if s in (sent if s.kind is Kind.SEND else received)]
        assert sorted(map(repr, own)) == sorted(map(repr, sent + received))


def _sends(found: dict[int, dict[Node, Route]], rank: int, origin: Node) -> tuple[End, ...]:
    return found[rank][origin].sends if origin.unit != CUT else ()


def cut_anywhere(chain: Chain, r: random.Random) -> tuple[Plan, dict[Node, Run]]:
    """Return stages of strips that begin and end at any operation, whatever is alive there."""
    ops = [op for block in chain.blocks for op in block.ops]
    ends = sorted(r.sample(range(1, len(ops)), min(len(ops) - 1, r.randint(1, 4))))
    stages, what = list[Stage](), dict[Node, Run]()
    for s, (start, stop) in enumerate(zip([0, *ends], [*ends, len(ops)], strict=True)):
        later = {name for op in ops[stop:] for name in op.inputs}
        made = [op.name for op in ops[start:stop] if op.name in later] or [ops[-1].name]
        k = r.randint(1, min(5, *(chain.shapes[name][1] for name in made)))
        stage, programs = strips(chain, ops[start:stop], made, k)
        stages.append(stage)
        what |= {Node(s, i): run for i, run in enumerate(programs)}
    plan = Plan(tuple(stages), 2, 0, 2, "height", 0, chain.output_shape)
    return on_ranks(plan, r), what


def strips(chain: Chain, ops: list[Op], made: list[str], k: int) -> tuple[Stage, list[Run]]:
    """Return the operations as a stage whose k units own a strip of each value ``made``."""
    shapes, exit_, entry = chain.shapes, ops[-1].name, ops[0].inputs[0]
    sizes = {name: (shape[-2], shape[-1]) for name, shape in shapes.items() if len(shape) == 3}
    shards, what = list[Shard](), list[Run]()
    for i in range(k):
        own = {
            name: Box(split(shapes[name][1], k)[i], Range(0, shapes[name][2]))
            for name in (exit_, *made)
        }
        program = compile_piece(ops, entry, sizes, own.pop(exit_), own)
        what.append(program.run)
        more = [
            tuple(Part(name, box, shapes[name][0]) for name, box in boxes.items())
            for boxes in (own, program.also_reads)
        ]
        shards.append(Shard(None, program.writes, program.reads, program.flops, None, *more))
    stage = Stage(
        exit_, 0, len(chain.blocks) - 1, shapes[entry], shapes[exit_], (k, 1), tuple(shards), (), 0,
        0, entry, exit_,
    )  # fmt: skip
    return stage, what


@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(SEEDS, SEEDS)
def test_stages_may_end_where_several_values_are_alive(network: int, cuts: int) -> None:
    """Residual and inception blocks cut inside: values skip stages, and stay on their ranks."""
    model, shape = random_network(network, (residual, inception, halves, layer), 4)
    chain = trace(model.double(), shape)
    if sum(len(block.ops) for block in chain.blocks) < 2:
        return
    plan, what = cut_anywhere(chain, random.Random(cuts))
    x = images(shape, cuts)
    with torch.inference_mode():
        assert close(answer(chain, plan, what, x, cuts), model(x.clone()), 1e-10)


class Skip(nn.Module):
    """A map is read right behind it, and again two convolutions later (as in a U-Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(5, 2, 5, padding=2)
        self.down, self.up = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.first(x))
        return self.last(torch.cat((skip, self.up(self.down(skip))), 1))


# Two strips of a map of 8 rows: what rank 1 does. The skip stays where it is made; what the last
# stage needs of it from the other strip comes with the other values, one stage later.
DIRECT = """\
<0 0.0 x 0:5,0:6
run 0.0
>2 1.1 relu 2:4,0:6
<1 1.0 relu 0:4,0:6
<2 1.0 relu 4:6,0:6
run 1.0
>2 2.1 relu 2:4,0:6
>2 2.1 up 2:4,0:6
<1 2.0 relu 0:4,0:6
<2 2.0 relu 4:6,0:6
<1 2.0 up 0:4,0:6
<2 2.0 up 4:6,0:6
run 2.0
>0 2.0 last 0:4,0:6"""
# The leader gathers before the last stage, what skipped a stage too.
GATHERED = """\
<0 0.0 x 0:5,0:6
run 0.0
>2 1.1 relu 2:4,0:6
<1 1.0 relu 0:4,0:6
<2 1.0 relu 4:6,0:6
run 1.0
>0 0.0 relu 0:4,0:6
>0 1.0 up 0:4,0:6
<0 2.0 relu 0:6,0:6
<0 2.0 up 0:6,0:6
run 2.0
>0 2.0 last 0:4,0:6"""


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "gathered"])
def test_a_skip_across_a_boundary(direct: bool) -> None:
    model = Skip().double().eval()
    chain = trace(model, (1, 8, 6))
    ops = [op for block in chain.blocks for op in block.ops]
    parts = [(ops[:2], "relu"), (ops[2:4], "up"), (ops[4:], "last")]
    made = [strips(chain, these, [value], 2) for these, value in parts]
    stages = [
        replace(stage, direct=s == 1 or (direct and s == 2)) for s, (stage, _) in enumerate(made)
    ]
    plan = Plan(tuple(stages), 2, 0, 2, "height", 0, chain.output_shape)
    assert "\n".join(map(repr, schedule(plan)[1])) == (DIRECT if direct else GATHERED)
    what = {Node(s, i): run for s, (_, own) in enumerate(made) for i, run in enumerate(own)}
    x = images((1, 8, 6), 3)
    with torch.inference_mode():
        assert close(answer(chain, plan, what, x, 0), model(x), 1e-10)


class SqueezeExcite(nn.Module):
    """Channels weighed by what the whole map says (Hu et al., CVPR 2018, fig. 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 5, 2, padding=2)
        self.squeeze, self.excite = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def weigh(self, mean: Tensor) -> Tensor:
        return torch.sigmoid(self.excite(torch.relu(self.squeeze(mean))))

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return self.after(y * self.weigh(y.mean((2, 3), keepdim=True)))


def squeeze_excite(
    model: SqueezeExcite, k: int, height: int, width: int
) -> tuple[Plan, dict[Node, Run]]:
    """Return two stages of k strips: a convolution and sums over its strips; the rest.

    Row u of the map "sums" (4, k, 1) is unit u's; everybody reads all rows.
    """
    chains = [trace(conv, (c, height, width)) for conv, c in ((model.before, 2), (model.after, 4))]
    first, second = (plan_of(chain, "height", k).stages[0] for chain in chains)
    rows = [Box(Range(u, u + 1), Range(0, 1)) for u in range(k)]
    first = replace(
        first,
        exit="y",
        shards=tuple(
            replace(shard, also_writes=(Part("sums", row, 4),))
            for shard, row in zip(first.shards, rows, strict=True)
        ),
    )
    second = replace(
        second,
        entry="y",
        direct=True,
        shards=tuple(
            replace(shard, also_reads=(Part("sums", Box.of(k, 1), 4),)) for shard in second.shards
        ),
    )

    def convolve(program: Program) -> Run:
        def run(maps: Maps) -> Maps:
            y = program(maps[first.entry])
            return {"y": y, "sums": y.sum((2, 3), keepdim=True)}

        return run

    def excite(program: Program) -> Run:
        def run(maps: Maps) -> Maps:
            total = sum(maps["sums"].unbind(2)).unsqueeze(2)  # in the order of the units
            return {second.exit: program(maps["y"] * model.weigh(total / (height * width)))}

        return run

    what = {Node(0, i): convolve(run) for i, run in enumerate(programs(chains[0], first))}
    what |= {Node(1, i): excite(run) for i, run in enumerate(programs(chains[1], second))}
    return Plan((first, second), k, 0, 2, "height", 0, (3, 6, 5)), what


@pytest.mark.parametrize("k", [1, 2, 5])
def test_squeeze_and_excitation_in_strips_is_exact(k: int) -> None:
    model = SqueezeExcite().double().eval()
    plan, what = squeeze_excite(model, k, 11, 9)
    x, results = images((2, 11, 9), 1), list[Tensor]()
    with torch.inference_mode():
        for seed in range(4):
            shared = replace(
                plan,
                stages=tuple(
                    replace(stage, ranks=tuple(1 + i % (1 + seed) for i in range(k)))
                    for stage in plan.stages
                ),
            )
            steps = schedule(shared)
            check(steps, shared)
            results.append(
                Interpreter(shared, steps, what)(plan.stages[0].entry, x, seed)[plan.stages[1].exit]
            )
        assert close(results[0], model(x), 1e-10)
    assert all(torch.equal(results[0], y) for y in results), "added in the order of the units"


def test_a_coded_unit_runs_a_whole_segment() -> None:
    """Data units exchange halos; a parity unit (their sum) runs both stages, exactly if linear."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 2, (3, 2), bias=False)
    ).double()
    chain = trace(model, (2, 16, 9))
    plan = plan_of(chain, "height", 3, 1, *(block.name for block in chain.blocks), direct=True)
    assert [plan.units_of(s) for s in (0, 1)] == [3, 4] and plan.segments == (Range(0, 2),)
    steps, x = schedule(plan), images((2, 16, 9), 5)
    check(steps, plan)
    assert [repr(step) for step in steps[4]] == [
        "<0 1.3 input_1 0:8,0:9", "run 1.3", ">0 1.3 _1 0:4,0:6",
    ]  # fmt: skip
    assert "messages      2.0 kB out and 0.8 kB back a query" in str(plan)  # no halos
    assert plan.bytes_in(1, 3) == 4 * 2 * 8 * 9  # of the segment's first map

    def decode(y: Tensor, arrived: list[bool]) -> Tensor:
        if False in arrived:
            y[arrived.index(False)] = y[3] - sum(y[i] for i in range(3) if arrived[i])
        return y[:3]

    with torch.inference_mode():
        for lost in [(), *((Node(1, i),) for i in range(3))]:
            run = Interpreter(
                plan,
                steps,
                runs(chain, plan),
                lambda x, last: windows(x, last).sum(0)[None],
                decode,
                lost,
            )
            maps = run("input_1", x)
            assert close(maps[plan.stages[1].exit], model(x), 1e-10)


def two_convolutions() -> tuple[nn.Module, Chain]:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)).double()
    return model, trace(model, (1, 10, 6))


@pytest.mark.parametrize("direct", [False, True])
def test_units_of_one_size_overlap_and_nothing_comes_twice(direct: bool) -> None:
    """Ten rows in four strips of three: rows 2 and 4 are written twice, and answered whole."""
    model, chain = two_convolutions()
    plan = plan_of(chain, "height", 4, linear=True, direct=direct)
    answers = [own[-1].box for rank, own in schedule(plan).items() if rank]
    assert [str(box) for box in answers] == ["0:3,0:6", "2:5,0:6", "4:7,0:6", "7:10,0:6"]
    x = images((1, 10, 6), 2)
    with torch.inference_mode():
        assert close(answer(chain, plan, runs(chain, plan), x, 0), model(x), 1e-10)


@pytest.mark.parametrize("split", ["batch", "channels"])
def test_units_of_images_and_of_channels_pass_through_the_leader(split: str) -> None:
    model, chain = two_convolutions()
    plan = plan_of(chain, split, 2, batch=2, linear=split == "channels")
    x = images((1, 10, 6), 2)
    what: dict[Node, Run] = {}
    for s, stage in enumerate(plan.stages):
        filters = Filters.of(chain, stage.first, stage.last) if stage.split == "channels" else None
        for i, shard in enumerate(stage.shards):
            run = filters.program(shard.channels) if filters and shard.channels else model
            what[Node(s, i)] = lambda maps, run=run, s=stage: {s.exit: run(maps[s.entry]).double()}
    with torch.inference_mode():
        assert close(answer(chain, plan, what, x, 0), model(x), 1e-6)


def test_moves_are_where_boxes_meet() -> None:
    """The drawing in mpicoded/moves.py; scatter and gather have one unit on rank 0."""

    def rows(start: int, stop: int) -> tuple[Part, ...]:
        return (Part("y", Box(Range(start, stop), Range(0, 9)), 1),)

    owners = [Unit(Node(0, i), 1 + i, owns=rows(4 * i, 4 * i + 4)) for i in range(2)]
    readers = [Unit(Node(1, 0), 1, rows(0, 5)), Unit(Node(1, 1), 2, rows(3, 8))]

    def found(a: list[Unit], b: list[Unit]) -> list[str]:
        return [f"{m.source}>{m.target} {m.node} {m.box}" for m in moves(a, b)]

    assert found(owners, readers) == [
        "1>1 1.0 0:4,0:9", "2>1 1.0 4:5,0:9", "1>2 1.1 3:4,0:9", "2>2 1.1 4:8,0:9",
    ]  # fmt: skip
    leader = Unit(Node(0, CUT), 0, owns=rows(0, 8))
    assert found([leader], readers) == ["0>1 1.0 0:5,0:9", "0>2 1.1 3:8,0:9"]
    gather = Unit(Node(0, GATHER), 0, rows(0, 8))
    assert found(owners, [gather]) == ["1>0 0.0 0:4,0:9", "2>0 0.1 4:8,0:9"]
    assert found(owners, [Unit(Node(1, 0), 3, (Part("z", Box.of(8, 9), 1),))]) == []


def changed(plan: Plan, *stages: dict[str, object]) -> Plan:
    pairs = zip(plan.stages, stages, strict=True)
    return replace(plan, stages=tuple(replace(stage, **more) for stage, more in pairs))  # type: ignore[arg-type]


def test_a_stage_that_cannot_have_its_input_directly() -> None:
    _, chain = two_convolutions()
    plan = plan_of(chain, "height", 2, 0, "0", "1")
    with pytest.raises(PlanError, match=r"stage 1, 0, cannot .* it is the first.*direct = False"):
        schedule(changed(plan, {"direct": True}, {}))
    with pytest.raises(PlanError, match=r"stage 2, 1, cannot .* all units are coded"):
        schedule(replace(changed(plan, {}, {"direct": True}), systematic=False))
    with pytest.raises(PlanError, match=r"stage 2, 1, cannot .* no stage before it makes relu,"):
        schedule(changed(plan, {}, {"direct": True, "entry": "relu"}))
    filters = plan_of(chain, "channels", 2, 0, "0", "1", linear=True)
    with pytest.raises(PlanError, match=r"stage 2, 1, cannot .* units of images or channels"):
        schedule(changed(filters, {}, {"direct": True}))


def test_a_code_stands_where_the_leader_holds_one_map() -> None:
    _, chain = two_convolutions()
    plan = plan_of(chain, "height", 2, 1, "0", "1")
    with pytest.raises(PlanError, match=r"stage 0 has r = 1 parity units, and its k = 2 outputs"):
        schedule(changed(plan, {"r": 1}, {"direct": True}))
    more = (Part("more", Box.of(2, 2), 1),)
    for where, field in (("begins", "also_reads"), ("ends", "also_writes")):
        shards = tuple(replace(shard, **{field: more}) for shard in plan.stages[0].shards)  # type: ignore[arg-type]
        with pytest.raises(PlanError, match=rf"stage 0 {where} with 2 values, \w+, more, and"):
            schedule(changed(plan, {"shards": shards}, {}))


def test_homes_and_parity_units_of_one_stage() -> None:
    _, chain = two_convolutions()
    plan = plan_of(chain, "height", 2, 1, "0", "1")
    own = changed(plan, {"r": 0, "ranks": (1, 2)}, {"ranks": (5, 3, 4)})
    assert [own.units_of(s) for s in (0, 1)] == [2, 3] and own.ranks == 6
    assert list(own.units()) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert own.home(0, Cluster.local(6), 1) == 5 and plan.home(0, Cluster.local(6), 1) == 1
    assert plan.placed(Cluster.local(4)).stages[1].ranks == (1, 2, 3)
    assert [line.split()[0] for line in str(own).splitlines() if line[:4].strip().isdigit()] == [
        "1", "2", "5", "3", "4",
    ]  # fmt: skip
    own.check(Cluster.local(6), sharing=False)
    with pytest.raises(PlanError, match=r"stage 1 has a unit on rank 5, .* 0 to 3: start 6 ranks"):
        own.check(Cluster.local(4), sharing=True)
    with pytest.raises(PlanError, match=r"stage 1 has 3 units and 2 home ranks, 1, 2: give each"):
        schedule(changed(plan, {}, {"ranks": (1, 2)}))
    with pytest.raises(PlanError, match=r"stage 0 has a unit on rank -1, and the ranks are 0 to 3"):
        schedule(changed(plan, {"ranks": (1, -1, 2)}, {}))
