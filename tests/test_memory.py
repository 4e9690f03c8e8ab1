"""Bytes that a rank needs: by hand, against torch's own allocations, and refused in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from mpicoded import deploy
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.cost.memory import Memory, alive
from mpicoded.errors import PlanError
from mpicoded.job import Job
from mpicoded.network.graph import trace
from mpicoded.network.pieces import shard_program, whole_box
from mpicoded.split import SPLITS, Request
from networks import random_network

SMALL = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
WEIGHTS = 4 * (8 * 2 * 9 + 8 + 4 * 8 * 9 + 4)
CHAIN = trace(SMALL, (2, 6, 10))
PLAN = SPLITS["width"].plan(Request(CHAIN, k=2, r=0))
CLUSTER = Cluster.alike(4, Device(1e9), Link(1e6, 1e6))


def test_by_hand() -> None:
    """Unit 0 reads columns 0 to 6 of 10, its inner map is 6 columns wide, it writes 5."""
    need = Memory(CHAIN, window=3)
    own = need.of(PLAN, 1, CLUSTER)
    assert own.weights == 2 * WEIGHTS  # as they came, and packed
    assert own.maps == 4 * 6 * (8 * 6 + 4 * 5)  # the inner map and the output
    assert own.messages == 3 * 4 * 6 * (2 * 7 + 4 * 5)
    spare = need.of(PLAN, 3, CLUSTER)
    assert (spare.weights, spare.maps, spare.messages) == (own.weights, own.maps, 0)
    assert need.of(PLAN, 0, CLUSTER).weights == 3 * WEIGHTS  # the module, packed, and to be sent


def test_channels_pack_their_own_filters() -> None:
    request = Request(CHAIN, k=2, r=0, stages=(CHAIN.blocks[0].name,))
    chain = trace(nn.Sequential(nn.Conv2d(2, 8, 3)), (2, 6, 10))
    plan = SPLITS["channels"].plan(replace(request, chain=chain, stages=(), weights=(3.0, 1.0)))
    weights = 4 * (8 * 2 * 9 + 8)
    assert Memory(chain).of(plan, 1, CLUSTER).weights == weights + weights * 3 // 4
    assert Memory(chain).of(plan, 1, CLUSTER).maps == 4 * (2 * 60 + 6 * 4 * 8)


@pytest.mark.parametrize("seed", range(20))
def test_maps_are_those_that_torch_allocates(seed: int) -> None:
    """The largest value and one beside it at the least, all values together at the most."""
    model, shape = random_network(seed)
    chain = trace(model, shape)
    last = len(chain.blocks) - 1
    program = shard_program(chain, 0, last, whole_box(chain.shapes[chain.blocks[-1].exit]))
    sizes: list[int] = [torch.Size(shape).numel()]
    x = torch.rand(1, *shape)
    sizes += [torch.Size(chain.shapes[step.op.name]).numel() for step in program.steps]
    assert program(x).shape[1:] == chain.shapes[chain.blocks[-1].exit]
    found = alive(program, chain, chain.shapes[program.exit][0], group=False)
    assert max(sizes) <= found <= sum(sizes)


def test_a_rank_without_memory_is_refused_with_both_numbers() -> None:
    devices = list(CLUSTER.devices)
    need = Memory(CHAIN).of(PLAN, 2, CLUSTER).total
    devices[3] = Device(1e9, memory=1.0)  # a spare's is not asked for
    devices[2] = Device(1e9, memory=float(need))
    cluster = replace(CLUSTER, devices=tuple(devices))
    assert Memory(CHAIN).fits(PLAN, cluster)
    Memory(CHAIN).check(PLAN, cluster)
    devices[2] = Device(1e9, memory=need - 1.0)
    cluster = replace(CLUSTER, devices=tuple(devices))
    assert not Memory(CHAIN).fits(PLAN, cluster)
    with pytest.raises(PlanError, match=r"rank 2 needs 0\.0 MB .*window"):
        Memory(CHAIN).check(PLAN, cluster)


# ---- in a job


def job(folder: Path, speeds: Sequence[float], *sets: str, memory: str = "") -> Job:
    """LeNet-5 in strips on a cluster of these speeds, rank 0's first."""
    devices = "".join(
        f"\n[[device]]\nranks = [{p}]\nflops = {speed}\nsends = 1e6\nreceives = 1e6\n"
        for p, speed in enumerate(speeds)
    )
    (folder / "cluster.toml").write_text(devices + memory)
    file = folder / "job.toml"
    file.write_text(
        '[model]\nname = "lenet5"\n[input]\ndata = "digits"\n'
        '[plan]\nsplit = "width"\ncluster = "cluster.toml"\n[code]\nk = 3\n'
    )
    return Job.read(file, sets)


def sizes(job: Job) -> list[int]:
    plan = deploy.plan(job, deploy.traced(job, deploy.network(job), (1, 32, 32)))
    return [shard.writes.cols.size for shard in plan.stages[0].shards]


def test_measured_speeds_are_the_shares_unless_the_job_says_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = 'plan.stages=["conv1"]'
    assert sizes(job(tmp_path, (1e9, 1e9, 1e9, 1.05e9), stages)) == [11, 11, 10]
    assert not capsys.readouterr().err
    fast = job(tmp_path, (1e9, 3e9, 3e9, 1e9), stages)
    assert sizes(fast) == [14, 14, 4]
    assert "units by the speeds in cluster.toml: 1.00 : 1.00 : 0.33" in capsys.readouterr().err
    assert sizes(fast.on([0, 3, 2, 1])) == [4, 14, 14], "of the ranks that are there"
    given = job(tmp_path, (1e9, 3e9, 3e9, 1e9), stages, "plan.weights=[1, 2, 1]")
    assert sizes(given) == [8, 16, 8]
    coded = ('code.name="mds"', "code.r=1", "plan.linear=true")
    assert len(set(sizes(job(tmp_path, (1e9, 3e9, 3e9, 1e9), stages, *coded)))) == 1


def test_a_job_is_refused_where_a_rank_lacks_memory(tmp_path: Path) -> None:
    its = job(tmp_path, (1e9, 1e9, 1e9, 1e9), memory="memory = 2e4\n")
    with pytest.raises(PlanError, match=r"rank 3 needs 0\.\d MB .* and has 0\.0 MB .*more units"):
        deploy.deploy(its, (1, 32, 32))
    deploy.deploy(its.on([0, 1, 2, 2]), (1, 32, 32))
