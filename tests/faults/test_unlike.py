"""Stages with their own k and homes, on real ranks that die, stop and fall silent: none is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import torch
from mpi4py import MPI
from mpicoded.faults import Fault
from mpicoded.models import build
from mpicoded.network.graph import trace
from mpicoded.runtime.deployment import uncoded
from mpicoded.runtime.exit import exit_rank_later
from mpicoded.runtime.leader import Leader
from mpicoded.runtime.pool import WorkerPool
from mpicoded.runtime.worker import serve
from mpicoded.settings import Settings
from mpicoded.trace import Action
from networks import close, mixed

comm, seed, queries = MPI.COMM_WORLD, {seed}, 120
if comm.Get_rank():
    exit_rank_later(comm, [])
    serve(comm, 60)
else:
    torch.manual_seed(0)
    model = build("lenet5", {{}})
    chain = trace(model, (1, 32, 32))
    plan = mixed(chain, 5, seed)
    dead, frozen, silent = plan.stages[0].ranks[0], plan.stages[-1].ranks[-1], 1 + seed % 5
    faults = [
        Fault("crash", dead, 30, queries),
        Fault("freeze", frozen, 60, queries, seconds=0.8),
        Fault("silence", silent, 0, queries, probability=0.03),
    ]
    pool = WorkerPool(comm, 60)
    exit_rank_later(comm, pool.stuck)
    settings = Settings(suspect_after=0.3, give_up=10.0, retries=20)
    leader = Leader(pool, pool.connect(60), uncoded(chain, plan, None), settings, faults, 1)
    images = torch.randn(queries, 1, 1, 32, 32)
    answers = [future.result(60) for future in [leader.submit(x) for x in images]]
    with torch.inference_mode():
        right = sum(close(a.output, model(x), 1e-5) for a, x in zip(answers, images, strict=True))
    actions = set(leader.trace.drain()["action"].tolist())
    print(right, "right", plan.shape, len({{st.k for st in plan.stages}}), Action.FAIL in actions)
    leader.close()
    pool.release()
"""


@pytest.mark.parametrize("seed", [1, 4])
def test_a_rank_dies_one_stops_and_answers_are_lost(mpirun, seed):
    program = PROGRAM.format(tests=str(Path(__file__).parents[1]), seed=seed)
    ended = mpirun(7, ["-c", program], timeout=90)
    assert ended.status == 0, ended.output
    assert "120 right" in ended.stdout and ended.stdout.rstrip().endswith("True"), ended.output
    assert not ended.left
