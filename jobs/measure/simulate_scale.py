"""Wall time and memory of a simulated run, from 64 to 10,000 ranks: `python simulate_scale.py`.

    spares   6 + 2 units an image (MDS, two stages); all other ranks have nothing to do
    wide     a unit for every worker: k images a query, each on two (replication)

Each run has a process of its own. Wide runs have fewer queries, as their tasks grow with the ranks.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from mpicoded.cluster import Cluster, Device, Link
from mpicoded.codes import CODES, CodeRequest
from mpicoded.codes.mds import Mds
from mpicoded.cost.model import CostModel, Formats
from mpicoded.deploy import network, traced
from mpicoded.deploy import plan as planned
from mpicoded.job import Job
from mpicoded.network.graph import Chain
from mpicoded.runtime.deployment import Deployment
from mpicoded.simulate import simulate
from mpicoded.split import SPLITS, Request

JOB = Path(__file__).parents[1] / "mds.toml"
DEVICE, LINK = Device(7.8e9, 1.5e9, 1e9, 1e8, 1e8), Link(5.2e6, 5.2e6, 1e-3)
RUNS = [("spares", n, 1000) for n in (64, 1000, 10_000)]
RUNS += [("wide", 64, 1000), ("wide", 250, 100), ("wide", 1000, 100)]


def deployment(kind: str, ranks: int, job: Job, chain: Chain) -> Deployment:
    """Return the plan and its codes."""
    if kind == "spares":
        plan = planned(job, chain)
        return Deployment(chain, plan, (Mds(plan.k, plan.r),) * len(plan.stages))
    k = (ranks - 1) // 2
    plan = SPLITS["batch"].plan(Request(chain, k, k, batch=k))
    return Deployment(chain, plan, (CODES["replication"](CodeRequest(k, k, plan.stages[0])),))


def measure(kind: str, ranks: int, queries: int) -> str:
    """Simulate once; return a line of the table."""
    job = Job.read(JOB, ["code.k=6"])
    chain = traced(job, network(job).requires_grad_(False), (1, 32, 32))
    its = deployment(kind, ranks, job, chain)
    cluster = Cluster.alike(ranks, DEVICE, LINK)
    model = CostModel(chain, cluster, Formats())
    start, cpu = time.perf_counter(), time.process_time()
    answers, _ = simulate(its, model, job.settings, queries, jitter=0.02)
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    tasks = queries * its.plan.n * len(its.plan.stages)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    p50 = 1e3 * np.median([answer.latency for answer in answers])
    return (
        f"{kind:7} {ranks:6} {queries:8} {tasks:9} {took:8.1f} s {cpu:8.1f} s "
        f"{1e6 * cpu / tasks:8.0f} us {memory:7.0f} MB {p50:10.2f} ms"
    )


def main() -> None:
    """Print the table, or a line of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("one", nargs="*", help="KIND RANKS QUERIES: this run alone")
    one = parser.parse_args().one
    if one:
        print(measure(one[0], int(one[1]), int(one[2])))
        return
    print(
        "plan     ranks  queries     tasks       wall        CPU      a task     memory    sim. p50"
    )
    for run in RUNS:
        subprocess.run([sys.executable, __file__, *map(str, run)], check=True)


if __name__ == "__main__":
    main()
