"""The tools of the fault tests: real jobs, their ranks, their end."""

from __future__ import annotations

import signal
import time

import pytest

MPIS = pytest.mark.parametrize(
    ("mpi", "ft"), [("openmpi", True), ("openmpi", False), ("mpich", False)]
)
HELLO = """
import sys
from mpi4py import MPI
sys.stdout.write(f"rank {MPI.COMM_WORLD.rank} of {MPI.COMM_WORLD.size}\\n")
"""
SLEEP = HELLO + "sys.stdout.flush(); import time; time.sleep(60)"
NO_MPI = "import time; print('up', flush=True); time.sleep(60)"


@MPIS
def test_job_ends(mpirun, mpi, ft):
    ended = mpirun(3, ["-c", HELLO], timeout=30, mpi=mpi, ft=ft)
    assert (ended.status, ended.left) == (0, ())
    assert sorted(ended.stdout.splitlines()) == [f"rank {rank} of 3" for rank in range(3)]


@MPIS
def test_time_out_leaves_nobody(start, mpi, ft):
    job = start(3, ["-c", SLEEP], mpi=mpi, ft=ft)
    job.wait_for("rank 2 of 3", timeout=30)
    assert sorted(job.ranks()) == [0, 1, 2]
    job.signal(1, signal.SIGSTOP)
    with pytest.raises(AssertionError, match="rank 0 of 3"):
        job.wait(timeout=0.2)
    assert job.pids() == []


def test_orphans_are_told_and_killed(start):
    job = start(2, ["-c", NO_MPI])
    job.wait_for("up\nup", timeout=30)
    job.process.send_signal(signal.SIGKILL)
    assert job.wait(timeout=5, grace=0.5).left == (0, 1)
    assert job.pids() == []


def test_signal_reaches_one_rank(start):
    job = start(3, ["-c", SLEEP])
    job.wait_for("rank 2 of 3", timeout=30)
    job.signal(1, signal.SIGKILL)
    limit = time.monotonic() + 5
    while 1 in job.ranks() and time.monotonic() < limit:
        time.sleep(0.02)
    assert sorted(job.ranks()) == [0, 2]
