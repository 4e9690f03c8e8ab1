"""On real ranks: a slow one gets less by a new plan, and a plan slower than one device is left."""

from __future__ import annotations

import pytest

PROGRAM = """
import time
import torch
from mpicoded.cluster import Cluster, Device, Link
from mpicoded.cost.model import CostModel, Formats
from mpicoded.faults import Fault
from mpicoded.models import build
from mpicoded.network.graph import trace
from mpicoded.runtime.deployment import uncoded
from mpicoded.runtime.leader import Leader
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.replanner import Replanner
from mpicoded.runtime.worker import serve
from mpicoded.settings import Settings
from mpicoded.trace import Action
from networks import close, plan_of

def by_speed(model):
    weights = tuple(device.flops for device in model.cluster.devices[1:])
    return plan_of(model.chain, "width", 3, 0, "pool1", "pool2", weights=weights)

what = {what!r}
if comm.Get_rank():
    serve(comm, 60)
else:
    torch.manual_seed(0)
    model = build("lenet5", {{}})
    chain = trace(model, (1, 32, 32))
    cluster = Cluster.alike(4, Device(1e8, 1e9, pack=1e8, unpack=1e8), Link(1e8, 1e8))
    cost = CostModel(chain, cluster, Formats())
    deployment = uncoded(chain, by_speed(cost), None)
    if what == "replan":
        wanted, faults = Action.REPLAN, [Fault("slow", 2, 30, 10**6, factor=30.0)]
        how = {{"replanner": Replanner(2.0, by_speed, cost, deployment)}}
    else:
        wanted, how = Action.ALONE, {{"fallback": True}}
        faults = [Fault("delay", rank, 0, 10**6, seconds=0.05) for rank in (1, 2, 3)]
    pool = WorkerPool(comm, 60)
    ranks = pool.connect(60).timed(cluster)
    leader = Leader(pool, ranks, deployment, Settings(retries=20), faults, 1, **how)
    events, right, count, left, until = [], 0, 0, 30, time.monotonic() + 60
    while left and time.monotonic() < until:
        x = torch.randn(4, 1, 1, 32, 32)
        answers = [future.result(60) for future in [leader.submit(image) for image in x]]
        with torch.inference_mode():
            right += sum(close(a.output, model(y), 1e-5) for a, y in zip(answers, x, strict=True))
        events += leader.trace.drain().tolist()
        count, left = count + 4, left - any(Action(event[4]) is wanted for event in events)
    switched = min(event[1] for event in events if Action(event[4]) is wanted)
    late = [event for event in events if event[1] > switched + 8]
    sent = {{event[2:4] for event in late if Action(event[4]) is Action.SEND}}
    print(right == count, sorted(sent))
    leader.close()
    pool.release()
"""


@pytest.mark.parametrize("what", ["replan", "fallback"])
def test_all_answers_are_right_before_and_after(ranks, what):
    ended = ranks.run(4, "-c", PROGRAM.format(what=what))
    assert ended.status == 0, ended.output
    units = [(stage, unit) for stage in (0, 1) for unit in (0, 1, 2)]
    assert f"True {units if what == 'replan' else []}" in ended.stdout, ended.output
    said = "the next queries go by a new plan" if what == "replan" else "rank 0 runs them unsplit"
    assert said in ended.stderr
