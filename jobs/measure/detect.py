"""Time from the SIGKILL of a worker to its exclusion by the leader, under ULFM.

    mpirun --with-ft ulfm -n 9 python jobs/measure/detect.py

The leader kills five workers one after the other, half of them while it waits, half in a query,
and reads the time of the FAIL event from the trace.
"""

from __future__ import annotations

import os
import signal
import time
from statistics import median

import torch
from mpi4py import MPI

from mpicoded import Group
from mpicoded.models import build
from mpicoded.trace import Action


def main() -> None:
    """Kill workers and print how long their exclusion took."""
    comm = MPI.COMM_WORLD
    pids = comm.allgather(os.getpid())
    with Group(comm, build("lenet5", {}), (1, 32, 32), k=2, r=0, stages=["pool2"]) as group:
        if group is None:
            return
        seconds = []
        for victim in range(1, min(6, len(pids) - 1)):
            for _ in range(20):
                group.infer(torch.zeros(1, 32, 32))
            future = group.submit(torch.zeros(1, 32, 32)) if victim % 2 else None
            killed = time.perf_counter()
            os.kill(pids[victim], signal.SIGKILL)
            time.sleep(1.0)
            if future is not None:
                future.result()
            events = group.trace.drain()
            (stop,) = events["stop"][events["action"] == Action.FAIL]
            seconds.append(group.began + float(stop) - killed)
        print(
            f"SIGKILL to exclusion: {1e3 * median(seconds):.0f} ms "
            f"(median of {len(seconds)}; {1e3 * min(seconds):.0f} … {1e3 * max(seconds):.0f})"
        )


if __name__ == "__main__":
    main()
