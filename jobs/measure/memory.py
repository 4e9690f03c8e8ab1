"""Memory of a worker above plain `import torch, mpi4py`, its own weights and buffers included.

    mpirun --with-ft ulfm -n 9 python jobs/measure/memory.py

Every rank notes its resident memory right after the plain imports, and what PyTorch takes for its
first convolution; the leader reads the workers' again after 200 queries. Pages of libraries are one
copy for all ranks of a host, and read again from disk if memory is short: its own are the rest.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from mpi4py import MPI


def resident(pid: int) -> np.ndarray:
    """Resident memory in MB: all, and that of libraries."""
    with open(f"/proc/{pid}/status") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    return np.array([int(lines[key].split()[0]) / 1e3 for key in ("VmRSS", "RssFile")])


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
        above = np.array([resident(pid) - mb for pid, mb in zip(pids[1:], plain[1:], strict=True)])
        (every, library), (torch_s, _) = np.median(above, axis=0), np.median(first, axis=0)
        weights = sum(p.numel() for p in model.parameters()) * 4 / 1e6
        print(
            f"plain imports {np.median(plain, axis=0)[0]:.0f} MB; a worker is {every:.1f} MB above "
            f"(max {above[:, 0].max():.1f}): pages of libraries {library:.1f} MB, its own "
            f"{every - library:.1f} MB with weights of {weights:.2f} MB. PyTorch's first "
            f"convolution takes {torch_s:.1f} MB"
        )


if __name__ == "__main__":
    main()
