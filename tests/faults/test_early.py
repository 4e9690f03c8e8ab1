"""A worker dies while the setup is on its way along the chain: the job ends and says who."""

from __future__ import annotations

import pytest

PROGRAM = """
import os, signal, sys
from mpi4py import MPI
from torch import nn
from mpicoded import Group
from mpicoded.runtime.relay import Relay

move, moves = Relay.move, []

def dying(self):
    moves.append(self)
    if len(moves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return move(self)

if MPI.COMM_WORLD.Get_rank() == {victim}:
    Relay.move = dying
model = nn.Sequential(nn.Conv2d(3, 512, 3), nn.Conv2d(512, 1024, 3))  # 19 MB
with Group(MPI.COMM_WORLD, model, (3, 20, 40), start_limit=30.0) as group:
    if group is not None:
        print("started")
"""


@pytest.mark.parametrize("victim", [1, 4])
def test_under_ulfm_the_leader_names_the_dead(mpirun, victim):
    ended = mpirun(5, ["-c", PROGRAM.format(victim=victim)], timeout=60)
    assert ended.status != 0 and not ended.left
    assert f"rank {victim} on " in ended.output and "died before the start" in ended.output
    assert "started" not in ended.output


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
def test_without_ulfm_the_job_ends_with_it(mpirun, mpi):
    ended = mpirun(4, ["-c", PROGRAM.format(victim=2)], timeout=60, mpi=mpi, ft=False)
    assert ended.status != 0 and not ended.left
    assert "started" not in ended.output


@pytest.mark.parametrize(("mpi", "ft"), [("openmpi", True), ("openmpi", False), ("mpich", False)])
def test_an_error_on_the_leader_while_the_setup_is_on_its_way(mpirun, mpi, ft):
    """All are sent home in the middle of the chain, and nothing hangs in MPI_Finalize."""
    late = PROGRAM.replace("start_limit=30.0", "start_limit=30.0, suspect_after=1.0")
    late = late.replace(
        "if MPI.COMM_WORLD.Get_rank()",
        "from mpicoded.runtime.hall import Hall\n"
        "def failing(self, kind, limit, take, each=Hall.recv_each):\n"
        "    if kind.name == 'READY':\n"
        "        raise SystemExit('no more')\n"
        "    each(self, kind, limit, take)\n"
        "Hall.recv_each = failing\n"
        "if MPI.COMM_WORLD.Get_rank()",
    )
    ended = mpirun(4, ["-c", late.format(victim=9)], timeout=60, mpi=mpi, ft=ft)
    assert not ended.left and "no more" in ended.output
