"""Memory of a worker above plain `import torch, mpi4py`, its own weights and buffers included.

    mpirun --with-ft ulfm -n 9 python jobs/measure/memory.py

Every rank notes its resident memory right after the plain imports, and what PyTorch takes for its
first convolution; the leader reads the workers' again after 200 queries.
"""

from __future__ import annotations

import os
from statistics import median

import torch
from mpi4py import MPI


def resident(pid: int) -> float:
    """Resident memory in MB."""
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return int(lines["VmRSS"].split()[0]) / 1e3


def main() -> None:
    """Print what a worker holds above the plain imports."""
    comm = MPI.COMM_WORLD
    torch.zeros(8).sum()
    pids, plain = comm.allgather(os.getpid()), comm.allgather(resident(os.getpid()))
    torch.set_num_threads(1)
    with torch.inference_mode():
        torch.conv2d(torch.zeros(1, 1, 32, 32), torch.zeros(6, 1, 5, 5))
    first = comm.allgather(resident(os.getpid()) - plain[comm.Get_rank()])
    from mpicoded import Group
    from mpicoded.models import build

    model = build("lenet5", {})
    with Group(comm, model, (1, 32, 32), k=6, stages=["pool2"]) as group:
        if group is None:
            return
        for future in [group.submit(torch.zeros(1, 32, 32)) for _ in range(200)]:
            future.result()
        above = [resident(pid) - mb for pid, mb in zip(pids[1:], plain[1:], strict=True)]
        weights = sum(p.numel() for p in model.parameters()) * 4 / 1e6
        print(
            f"plain imports {median(plain):.0f} MB; a worker is {median(above):.1f} MB above "
            f"(max {max(above):.1f}), of that weights {weights:.2f} MB and PyTorch's first "
            f"convolution {median(first):.1f} MB"
        )


if __name__ == "__main__":
    main()
