"""A peer that dies while messages of others are there: one test of all receives tells which."""

from __future__ import annotations

PROGRAM = """
import os, signal, time
from contextlib import suppress
from mpi4py import MPI
from mpicoded.runtime.wire import Kind, Wire

comm = MPI.COMM_WORLD.Dup()
comm.Set_errhandler(MPI.ERRORS_RETURN)
pids = comm.allgather(os.getpid())
if comm.rank:
    wire = Wire(comm, [0])
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(1.4)
    wire.post(0, Kind.HELLO, b"x" * comm.rank)
    end = time.perf_counter() + 4.0
    while time.perf_counter() < end:
        wire.poll()
        time.sleep(0.01)
else:
    wire = Wire(comm, [1, 2, 3, 4])
    wire.poll()
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end:  # word of the death comes, nobody looks at it
        with suppress(MPI.Exception):
            comm.Iprobe(source=1, tag=1)
        time.sleep(0.01)
    time.sleep(1.2)  # messages come, nobody looks at them
    seen = []
    end = time.perf_counter() + 5.0
    while len(seen) < 4 and time.perf_counter() < end:
        seen += [(m.peer, m.kind.name, bytes(m.payload)) for m in wire.poll()]
        time.sleep(0.01)
    gone, *others = sorted(seen)
    assert gone[:2] == (1, "GONE"), gone
    assert others == [(p, "HELLO", b"x" * p) for p in (2, 3, 4)], others
    wire.poll()
    wire.give_up(4)
    os.kill(pids[4], signal.SIGKILL)
    end = time.perf_counter() + 1.0
    while time.perf_counter() < end:  # its open receive fails, and is nobody's business
        assert not wire.poll()
        with suppress(MPI.Exception):
            comm.Iprobe(source=4, tag=1)
        time.sleep(0.01)
    print("told apart", flush=True)
os._exit(0)
"""


def test_a_death_and_messages_at_once(start, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    assert "told apart" in start(5, [program], ft=True).wait(60).output
