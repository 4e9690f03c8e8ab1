"""A worker dies while the setup is on its way along the chain: the job ends and says who."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest

from launching import Ended, Running

PROGRAM = """
import os, signal, sys
from mpi4py import MPI
from torch import nn
from mpicoded import Group
from mpicoded.runtime.chain_broadcast import ChainBroadcast

move, moves = ChainBroadcast.move, []

def dying(self):
    moves.append(self)
    if len(moves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return move(self)

if MPI.COMM_WORLD.Get_rank() == {victim}:
    ChainBroadcast.move = dying
model = nn.Sequential(nn.Conv2d(3, 512, 3), nn.Conv2d(512, 1024, 3))  # 19 MB
with Group(MPI.COMM_WORLD, model, (3, 20, 40), start_limit=30.0) as group:
    if group is not None:
        print("started")
"""


@pytest.mark.parametrize("victim", [1, 2])
def test_under_ulfm_the_leader_names_the_dead(mpirun, victim):
    ended = mpirun(3, ["-c", PROGRAM.format(victim=victim)], timeout=60)
    assert ended.status != 0 and not ended.left
    assert f"rank {victim} on " in ended.output and "died before the start" in ended.output
    assert "started" not in ended.output


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_without_ulfm_the_job_ends_with_it(mpirun, mpi):
    ended = mpirun(3, ["-c", PROGRAM.format(victim=1)], timeout=60, mpi=mpi, ft=False)
    assert ended.status != 0 and not ended.left
    assert "started" not in ended.output


FAILING = """
from mpicoded.runtime.pool import WorkerPool

def failing(self, kind, limit, take, each=WorkerPool.recv_each):
    if kind.name == 'READY':
        raise SystemExit('no more')
    each(self, kind, limit, take)

WorkerPool.recv_each = failing
"""
MPIS = (("openmpi", True), ("openmpi", False), ("mpich", False))


@pytest.fixture(scope="module")
def errors(beside: Callable[..., Future[Ended]]) -> dict[tuple[str, bool], Future[Ended]]:
    late = PROGRAM.replace("start_limit=30.0", "start_limit=30.0, suspect_after=1.0")
    late = late.replace("if MPI.COMM_WORLD.Get_rank()", FAILING + "if MPI.COMM_WORLD.Get_rank()")

    def failed(start: Callable[..., Running], folder: Path, mpi: str, ft: bool) -> Ended:
        return start(3, ["-c", late.format(victim=9)], mpi=mpi, ft=ft).wait(timeout=60)

    return {how: beside(failed, *how) for how in MPIS}


@pytest.mark.parametrize("how", MPIS, ids=str)
def test_an_error_on_the_leader_while_the_setup_is_on_its_way(errors, how):
    """All are sent home in the middle of the chain, and nothing hangs in MPI_Finalize."""
    ended = errors[how].result()
    assert not ended.left and "no more" in ended.output
