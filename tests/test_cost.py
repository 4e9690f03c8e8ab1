"""Predicted times against hand-computed ones, a simulation in small steps, all plans there are."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from math import inf
from pathlib import Path

import pytest
import torch
from torch import nn

from mpicoded import clusterfile
from mpicoded.cluster import HEAD, Cluster, Device, Link, Rate, Work
from mpicoded.cluster_tools.profiling.bench import fit, seconds, spread
from mpicoded.cost.exchange import Load, exchange
from mpicoded.cost.model import MESSAGE, PART, CostModel, Formats
from mpicoded.errors import JobError, PlanError
from mpicoded.models import build
from mpicoded.network.graph import Chain, trace
from mpicoded.plan import Plan
from mpicoded.planners import boundaries
from mpicoded.split import SPLITS, Request
from networks import plan_of, random_network, random_request

PI = Device(flops=7.8e9, dense=1.55e9, values=1.3e8, pack=2e8, unpack=2e8)
ETHERNET = Link(5.25e6, 5.25e6, 2e-3)


# ---- messages


def alike(loads: int, **how: int) -> tuple[list[Load], Cluster]:
    """Units of 2 bytes in and 2 out, 4 s of work, on links of 1 byte/s."""
    cluster = Cluster.alike(loads + 1, Device(), Link(1.0, 1.0), **how)
    return [Load(i + 1, 2.0, 2.0, 0.0, 4.0) for i in range(loads)], cluster


DRAWN = {  # the drawings at the head of exchange.py: when a unit is there, computed, and back
    "one": ({"abreast": 1}, [(2, 6, 8), (4, 8, 10), (6, 10, 12)]),
    "two": ({"abreast": 2}, [(4, 8, 10), (4, 8, 12), (6, 10, 14)]),
    "three": ({"abreast": 3}, [(6, 10, 12), (6, 10, 14), (6, 10, 16)]),
    "one, shared": ({"abreast": 1, "shared": True}, [(2, 6, 8), (4, 8, 10), (6, 10, 12)]),
}


@pytest.mark.parametrize("case", DRAWN)
def test_drawing(case: str) -> None:
    how, expected = DRAWN[case]
    times = exchange(*alike(3, **how))
    found = [(t.here, t.done, t.arrived) for t in times]
    assert found == [pytest.approx(each) for each in expected]


def test_answers_wait_for_a_medium_that_is_still_used() -> None:
    """Six units take 12 s to leave; the first answer is ready at 6 s and has to wait."""
    loads, cluster = alike(6, abreast=1)
    assert exchange(loads, cluster)[0].arrived == 8
    assert exchange(loads, replace(cluster, shared=True))[0].arrived == 14


def test_slow_link_latency_and_packing() -> None:
    links = (Link(1.0, 1.0, 0.5), Link(1.0, 1.0, 0.25), Link(0.5, 0.25, 0.25))
    cluster = Cluster(("",) * 3, (Device(),) * 3, links, abreast=1)
    loads = [Load(1, 2.0, 2.0, 1.0, 4.0), Load(2, 2.0, 2.0, 1.0, 4.0)]
    one, two = exchange(loads, cluster, start=10.0)
    # packed at 11 and 12; the second waits for the link until 13 and needs 8 s on its own
    assert (one.here, one.done, one.arrived) == (13.75, 17.75, 20.5)
    assert (two.here, two.done, two.arrived) == (21.75, 25.75, 30.5)


def test_a_worker_computes_its_units_one_after_the_other() -> None:
    loads, cluster = alike(2, abreast=1)
    loads = [replace(load, rank=1) for load in loads]
    assert [t.done for t in exchange(loads, cluster)] == [6, 10]


def test_what_is_not_known_costs_nothing() -> None:
    loads = [Load(i, 1e6, 1e6, 0.0, 0.0) for i in (1, 2, 3)]
    for abreast in (1, 2, 9):
        cluster = Cluster.alike(4, Device(), Link(), abreast=abreast)
        assert [t.arrived for t in exchange(loads, cluster)] == [0, 0, 0]


STEP = 1 / 256


def stepped(loads: Sequence[Load], cluster: Cluster) -> list[float]:
    """Arrivals by small steps of time: every queue is served as it stands at that moment.

    One unit a worker; the first ones that are ready share the link evenly.
    """
    count, now = len(loads), 0.0
    packed = [sum(load.pack for load in loads[: i + 1]) for i in range(count)]
    out, back = [load.bytes_in for load in loads], [load.bytes_out for load in loads]
    work, done, arrived = [load.compute for load in loads], [inf] * count, [inf] * count
    rate, home = cluster.links[0].sends, cluster.links[0].receives
    while max(arrived) == inf:
        ready = [i for i in range(count) if packed[i] <= now and out[i] > 0]
        ready = ready[: cluster.abreast]
        share = rate / max(1, len(ready))
        for i in ready:
            out[i] -= min(share, cluster.links[loads[i].rank].receives) * STEP
        waiting = [i for i in range(count) if done[i] <= now and back[i] > 0]
        for i in range(count):
            if out[i] <= 0 and done[i] == inf:
                work[i] -= STEP
                done[i] = now if work[i] <= 0 else inf
        if waiting and not (cluster.shared and any(left > 0 for left in out)):
            first = min(waiting, key=lambda i: done[i])
            back[first] -= home * STEP
            arrived[first] = now if back[first] <= 0 else inf
        now += STEP
    return arrived


@pytest.mark.parametrize("seed", range(30))
def test_exchange_against_small_steps(seed: int) -> None:
    r = random.Random(seed)
    count = r.randint(1, 5)
    how = {"abreast": 1 + seed % 4, "shared": seed % 3 == 0}
    links = (Link(r.uniform(1, 4), r.uniform(1, 4)), *(Link(),) * count)
    cluster = Cluster(("",) * (count + 1), (Device(),) * (count + 1), links, **how)
    loads = [
        Load(i + 1, r.uniform(1, 9), r.uniform(1, 9), r.uniform(0, 0.5), r.uniform(0.1, 6))
        for i in range(count)
    ]
    found = [t.arrived for t in exchange(loads, cluster)]
    assert found == pytest.approx(stepped(loads, cluster), abs=8 * (count + 2) * STEP)


def test_links_of_their_own_are_used_beside_one_another() -> None:
    """The leader sends 3 byte/s; one worker takes 0.5, so that the other gets 2.5."""
    links = (Link(3.0, inf), Link(inf, 0.5), Link(inf, 10.0))
    cluster = Cluster(("",) * 3, (Device(),) * 3, links)
    one, two = exchange([Load(1, 2.0, 0, 0, 0), Load(2, 5.0, 0, 0, 0)], cluster)
    assert (one.here, two.here) == (4, 2)


# ---- one plan


@pytest.fixture(scope="module")
def small() -> Chain:
    """A convolution, a pool, a dense head: 9 x 8 x 2 -> 3 channels -> 4 x 4 -> 5."""
    conv = nn.Conv2d(2, 3, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 5))
    return trace(net, (2, 9, 8))


def test_prediction_by_hand(small: Chain) -> None:
    """Two strips of rows of the pool's output: rows 0:2 and 2:4, of the conv's 0:4 and 4:8."""
    plan = plan_of(small, "height", 2)
    device = Device(flops=1e3, dense=500.0, values=100.0, pack=2e3, unpack=1e3)
    cluster = Cluster.alike(3, device, Link(1e3, 2e3, 0.125), abreast=1)
    got = CostModel(small, cluster, Formats.of("float16", None, "float32")).predict(plan)
    conv = 2 * 4 * 8 * 3 * 2 * 9  # FLOPs of a strip: 4 rows
    reads = [2 * 5 * 8, 2 * 6 * 8]  # values: rows 0:5 and 3:9
    sent = [2 * n + MESSAGE for n in reads]
    writes = 2 * 4 * 3
    work = conv / 1e3 + writes / 100
    compute = [n / 1e3 + work + writes / 2e3 for n in reads]
    here = [reads[0] / 2e3 + sent[0] / 1e3]
    here.append(max(here[0], sum(reads) / 2e3) + sent[1] / 1e3)
    done = [h + 0.25 + c for h, c in zip(here, compute, strict=True)]
    back = (4 * writes + MESSAGE) / 2e3
    arrived = max(done[0] + back, done[1]) + 2 * back + 0.25  # its own link is half as fast
    (stage,) = got.stages
    assert stage.send == pytest.approx(here[1] + 0.25)
    assert stage.compute == pytest.approx(compute[1])
    assert stage.total == pytest.approx(arrived + 2 * writes / 1e3)
    assert stage.bounds == pytest.approx({"link": sum(sent) / 1e3, "workers": max(compute)})
    assert got.head == pytest.approx(2 * 48 * 5 / 500)
    whole = 2 * 9 * 8 * 3 * 2 * 9 / 1e3 + 4 * 4 * 3 / 100  # row 8 of the conv, which no strip has
    assert got.single_device == pytest.approx(whole + got.head)
    assert got.rest == 0 and got.speedup == pytest.approx(got.single_device / got.latency)


def test_blocks_that_follow_the_stages_are_the_leaders(small: Chain) -> None:
    plan = plan_of(small, "height", 2, 0, small.blocks[0].name)
    cluster = Cluster.alike(3, replace(PI, values=100.0), ETHERNET)
    got = CostModel(small, cluster, Formats()).predict(plan)
    assert got.rest == pytest.approx(48 / 100)
    assert got.bounds["leader"] == pytest.approx(got.rest + got.head)


def test_what_was_measured_of_a_block_goes_first() -> None:
    device = replace(PI, blocks={"conv1": Rate(1e6, 0.5), HEAD: Rate(2e6)})
    work = Work(3_000_000, 10)
    assert device.seconds("conv1", work) == 3.5
    assert device.seconds("conv2", work) == pytest.approx(3e6 / 7.8e9)
    assert device.seconds(HEAD, work) == 1.5
    assert device.seconds("pool", Work(0, 13)) == pytest.approx(1e-7)


def test_parity_units_cost_and_a_first_k_stage_waits_for_fewer(small: Chain) -> None:
    plan = plan_of(small, "height", 2, 1)
    slow = replace(PI, flops=1e4)
    cluster = Cluster.alike(4, PI, ETHERNET)
    cluster = replace(cluster, devices=(PI, PI, slow, PI))  # rank 2 has data unit 1
    every, first = (CostModel(small, cluster, Formats(), flag).stage(plan, 0) for flag in (0, 1))
    assert first.total < every.total / 10
    assert every.encode > 0


def test_images_as_units() -> None:
    chain = trace(build("lenet5", {}), (1, 32, 32))
    plan = SPLITS["batch"].plan(Request(chain, 2, 0, batch=4))
    cluster = Cluster.alike(3, PI, Link())
    got = CostModel(chain, cluster, Formats()).predict(plan)
    moved = (2 * 32 * 32 + 2 * 10 + 4 * 10) / 2e8 + 2 * 2 * 32 * 32 / 2e8  # both units are packed
    assert got.latency == pytest.approx(got.single_device / 2 + moved)


def test_units_that_exchange_halos() -> None:
    """A strip of four rows gets one row of 8 values, and nothing passes the leader between."""
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)]
    chain = trace(nn.Sequential(*layers), (1, 8, 8))
    cluster = Cluster.alike(3, Device(flops=1e6, unpack=1e9), Link(1e4, 1e4, 1e-3), abreast=2)
    plan = plan_of(chain, "height", 2, direct=True)
    got = CostModel(chain, cluster, Formats.of("float16", None, "float32")).predict(plan)
    first, second = got.stages
    assert first.send == pytest.approx(2 * (5 * 8 * 2 + MESSAGE) / 1e4 + 2e-3)
    assert first.compute == pytest.approx(2 * 9 * 2 * 32 / 1e6 + 5 * 8 / 1e9 + PART)
    assert (first.receive, first.decode) == (0, 0)
    comes = 2 * 8 / 1e9 + (2 * 8 * 2 + MESSAGE) / 1e4 + 2e-3
    late = PART + 3 / 4 * 2 * 9 * 2 * 32 / 1e6
    assert second.send == pytest.approx(comes - late), "one row first"
    assert second.compute == pytest.approx(2 * 9 * 2 * 2 * 32 / 1e6)
    assert second.receive == pytest.approx(2 * (2 * 4 * 8 * 4 + MESSAGE) / 1e4 + 2e-3)
    assert second.bounds["link"] == pytest.approx(2 * (2 * 4 * 8 * 4 + MESSAGE) / 1e4)
    stages = tuple(replace(stage, borders_first=False) for stage in plan.stages)
    plan = replace(plan, stages=stages)
    model = CostModel(chain, cluster, Formats.of("float16", None, "float32"))
    assert model.predict(plan).stages[1].send == pytest.approx(comes)
    on_one_medium = CostModel(chain, replace(cluster, shared=True), Formats()).predict(plan)
    assert on_one_medium.stages[1].send == pytest.approx(
        2 * (2 * 8 / 1e9 + (2 * 8 * 4 + MESSAGE) / 1e4 + 2e-3)
    )
    with pytest.raises(PlanError, match=r'"auto" is for stages that the leader gathers'):
        model = CostModel(chain, cluster, Formats())
        boundaries.stages(Request(chain, 2, 0, direct=True), SPLITS["height"], model)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_beats_the_bound(seed: int) -> None:
    chain, model, request, split = some_case(seed)
    got = model.predict(SPLITS[split].plan(request))
    assert got.bound <= got.latency * (1 + 1e-9)
    assert min(min(s.send, s.compute, s.receive) for s in got.stages) >= 0


# ---- the stages


def some_case(seed: int) -> tuple[Chain, CostModel, Request, str]:
    """A random network and request, and a random cluster on which both sides of a cut matter."""
    chain = trace(*random_network(seed))
    split, request = random_request(seed, chain)
    r = random.Random(seed)
    device = Device(flops=10 ** r.uniform(5, 7), values=10 ** r.uniform(4, 6), pack=1e6, unpack=1e6)
    link = Link(10 ** r.uniform(3, 6), 10 ** r.uniform(3, 6), r.uniform(0, 1e-3))
    workers = max(1, request.k + request.r)
    cluster = Cluster.alike(workers + 1, device, link, seed % 3 == 0, 1 + seed % 3)
    return chain, CostModel(chain, cluster, Formats.of("float16", None, "float32")), request, split


def all_stages(request: Request, split: str) -> list[tuple[tuple[str, ...], Plan]]:
    """Every choice of stages that can be cut."""
    names, found = [block.name for block in request.chain.blocks], []
    for count in range(1, len(names) + 1):
        for ends in combinations(names, count):
            try:
                found.append((ends, SPLITS[split].plan(replace(request, stages=ends))))
            except PlanError:
                continue
    return found


@pytest.mark.parametrize("seed", range(40))
def test_auto_is_the_best_of_all_plans(seed: int) -> None:
    _, model, request, split = some_case(seed)
    plans = {ends: model.predict(plan).latency for ends, plan in all_stages(request, split)}
    chosen = boundaries.stages(request, SPLITS[split], model)
    assert plans[chosen] == pytest.approx(min(plans.values()), rel=1e-12)


def test_auto_leaves_out_what_cannot_be_cut() -> None:
    chain = trace(build("vgg16-features", {}), (3, 224, 224))
    cluster = Cluster.alike(9, PI, Link())
    model = CostModel(chain, cluster, Formats())
    chosen = boundaries.stages(Request(chain, 8, 0), SPLITS["height"], model)
    assert chosen[-1] == "28"  # 14 rows; behind the last pool are 7, and 8 strips do not fit
    with pytest.raises(PlanError, match="cannot cut the height, 224 long, into k = 225 shards"):
        boundaries.stages(Request(chain, 225, 0), SPLITS["height"], model)
    with pytest.raises(PlanError, match="no block of this model can be cut"):
        mlp = trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
        model = CostModel(mlp, cluster, Formats())
        boundaries.stages(Request(mlp, 2, 0), SPLITS["height"], model)


def test_vgg16_on_nine_pis() -> None:
    """The figure that the issue asks for, from a model alone."""
    chain = trace(build("vgg16", {}), (3, 224, 224))
    cluster, gains = Cluster.alike(9, PI, ETHERNET), {}
    for format_ in ("float16", "float32"):
        model = CostModel(chain, cluster, Formats.of(format_, None, format_))
        request = Request(chain, 8, 0)
        chosen = boundaries.stages(request, SPLITS["height"], model)
        got = model.predict(plan_of(chain, "height", 8, 0, *chosen))
        gains[format_] = got.speedup
        assert got.binds == "workers"
    assert gains["float16"] > 2.5 > 2.3 > gains["float32"] > 2


def test_one_device_is_said_to_be_faster() -> None:
    chain = trace(build("lenet5", {}), (1, 32, 32))
    got = CostModel(chain, Cluster.alike(5, PI, ETHERNET), Formats()).predict(
        plan_of(chain, "width", 4)
    )
    assert got.speedup < 1
    assert got.verdict.startswith("one device is predicted to be faster: ")
    assert got.verdict in got.table()


# ---- the file of a cluster, and what is measured

FILE = """\
[[device]]
ranks = [0]
host = "pi0"
flops = 7.8e9
sends = 5e6
receives = 6e6

[[device]]
ranks = [2, 1]
flops = 3e9
dense = 1e9
sends = 1e6
receives = 1e6
latency = 0.001
spread = [[0.1, 0.9, 0.95, 0.98, 1.0, 1.05, 1.1, 1.2]]
late = [0.0, 0.0, 0.0, 0.0, 1e-3, 5e-3, 0.01]
blocks."features.0" = { speed = 1e9, fixed = 1e-3 }
"""


def test_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(FILE)
    cluster = clusterfile.read(path)
    assert cluster.hosts == ("pi0", "", "") and not cluster.shared and cluster.abreast == 2
    assert cluster.devices[0] == Device(flops=7.8e9)
    rate = Rate(1e9, 1e-3)
    spread = ((0.1, 0.9, 0.95, 0.98, 1.0, 1.05, 1.1, 1.2),)
    assert cluster.devices[1] == Device(3e9, 1e9, blocks={"features.0": rate}, spread=spread)
    link = Link(1e6, 1e6, 1e-3, (0.0, 0.0, 0.0, 0.0, 1e-3, 5e-3, 0.01))
    assert cluster.links == (Link(5e6, 6e6), *(link,) * 2)
    cluster = replace(cluster, shared=True, abreast=5)
    path.write_text(clusterfile.write(cluster, "by hand"))
    assert clusterfile.read(path) == cluster


WRONG = {
    "misspelt": ('medium = "shared"\n[[device]]\nranks = [0]\nflop = 1e9', "flops"),
    "negative": (FILE.replace("7.8e9", "-1.0"), r"\[\[device\]\] 0 flops = -1.0: .*greater than"),
    "a gap": (FILE.replace("[2, 1]", "[1, 3]"), r"ranks \[2\] are in no \[\[device\]\]"),
    "only the leader": (FILE.split("\n\n")[0], r"ranks \[1\] are in no"),
    "twice": (FILE.replace("[2, 1]", "[1, 2, 1]"), "rank 1 is named twice"),
    "no device": ('medium = "shared"', "device.* is missing"),
    "no rate": (FILE.replace("sends = 5e6\n", ""), r"\[\[device\]\] 0 sends is missing"),
    "no TOML": ("[[device", "is not TOML"),
    "no number": (FILE.replace("7.8e9", "nan"), r"\[\[device\]\] 0 flops = nan: "),
    "nothing at all": (FILE.replace("7.8e9", "1e-320"), r"\[\[device\]\] 0 flops = 1e-320: "),
    "few quantiles": (FILE.replace("late = [0.0, ", "late = ["), r"\[\[device\]\] 1 late"),
    "for ever": (FILE.replace("sends = 5e6", "sends = 5e6\nlatency = inf"), "latency = inf: "),
    "rank 10^30": (FILE.replace("[2, 1]", f"[1, {10**30}]"), "is beyond every limit"),
    "rank 10^9": (FILE.replace("[2, 1]", f"[1, {10**9}]"), "ranks = 1000000000: .*less than"),
    "digits": (FILE.replace("[2, 1]", "9" * 5000), "a number of 640 digits or more"),
    "deep": (f"x = {'[' * 3000}", "arrays nested too deep"),
    "NUL": ('medium = "\\u0000"', "medium = .*: holds a NUL character"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_cluster_file(case: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(WRONG[case][0])
    with pytest.raises(JobError, match=WRONG[case][1]) as error:
        clusterfile.read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_how_times_vary() -> None:
    """Steps of 10 ms that take 5 and 15 ms in turn: short stretches vary, long ones do not."""
    walls = torch.full((9, 20), 0.01)
    walls[:, ::2], walls[:, 1::2] = 0.005, 0.015
    found = spread(torch.stack([walls, walls], dim=1), [0.01] * 20)
    lengths = [length for length, *_ in found]
    assert lengths == pytest.approx([0.01, 0.03, 0.1, 0.3, 1.0], abs=0.011)
    assert found[0][1:] == pytest.approx([0.5, 0.5, 0.5, found[0][4], 1.5, 1.5, 1.5])
    assert found[-1][1:] == pytest.approx([1.0] * 7, abs=0.01)
    device = Device(spread=((0.1, *range(7)), (10.0, *range(10, 17))))
    assert [device.slowness(t, 0.05) for t in (0.01, 0.1, 1.0, 99.0)] == [1, 1, 6, 11]
    assert [device.slowness(0.1, u) for u in (0.0, 0.15, 1.0)] == pytest.approx([0, 1.5, 6])
    assert Device().slowness(0.1, 0.9) == 1.0


def test_fit() -> None:
    assert fit((4e6, 3.0), (1e6, 1.5)) == Rate(2e6, 1.0)
    assert fit((1e6, 1.0), (4e6, 5.0)) == Rate(2 / (1e-6 + 1.25e-6))  # no negative rest
    assert fit((1e6, 2.0), (1e6, 2.0)) == Rate(5e5)


def test_throttled_times_are_stretched() -> None:
    """20 % of a core: 10 ms on the CPU take 50, whichever block is stopped in the middle of it."""
    passes = [[[9.0, 9.0], [9.0, 9.0]]] + [[[0.03, 0.02], [0.002, 0.008]]] * 3
    assert seconds(torch.tensor(passes)) == pytest.approx([0.01, 0.04], rel=1e-3)
