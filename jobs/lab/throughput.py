"""Experiment j: queries a second of pipelines, replicas and halo exchange; arrivals and switching.

    MPICODED_DATA=... python jobs/lab/throughput.py [--network vgg16] [--window 12] [--queries 24]
        [--unequal] [--loads 0.3 0.6 0.9] [--planners deepslicing pico replicas]

The lab is measured first. One device answers one query after the other; every planner's plan then
has `window` in flight. Told are the seconds between two answers, how many times faster than one
device that is, what was predicted, and what share of that time each worker computed. With
`--unequal` the workers have 1.2, 0.8 and 0.6 (2 + 2 + 4) of a node's CPU. With `--loads`, shares of
the best throughput, queries arrive by a Poisson process: the first planner's plan, the second's,
and both with [plan] switch.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from bench import LAB, ROOT, Runs, Scheme, interleave, lab, mpicoded, options

from mpicoded.cost.usage import Usage
from mpicoded.deploy import cost_model, deploy, images
from mpicoded.job import Job
from mpicoded.results import Loaded
from mpicoded.trace import Action

JOB = "jobs/planned.toml"
SHARES = (1.0, 1.2, 1.2, 0.8, 0.8, 0.6, 0.6, 0.6, 0.6)  # PICO: 1.2 GHz, 800 and 600 MHz


def schemes(network: str, cluster: Path, planners: list[str], window: int) -> list[Scheme]:
    """Return one device, and each planner's plan with a window of queries."""
    model = (f'model.name="{network}"', f'plan.cluster="{cluster}"')
    size = ("input.size=[299, 299]",) * (network == "inception-v3")
    many = [
        Scheme(name, JOB, (*model, *size, f'plan.planner="{name}"', f"runtime.window={window}"),
               warm=window)
        for name in planners
    ]  # fmt: skip
    one = Scheme("single", JOB, (*model, *size, 'plan.planner="single"'), queries=4, warm=2)
    return [one, *many]


def full(file: Loaded, warm: int) -> tuple[float, float, int]:
    """Return when ``warm`` queries were answered, when all had come in, and the answers between."""
    answered = np.sort(file.queries["answered"])
    last = max(warm, len(answered) - warm) - 1
    return float(answered[warm - 1]), float(answered[last]), last - warm + 1


def period(file: Loaded, warm: int) -> float:
    """Seconds between two answers, after the first ones and before the last, which run dry."""
    begin, end, count = full(file, warm)
    return (end - begin) / count


def busy(file: Loaded, warm: int) -> list[float]:
    """Share of the time in which each worker computed, while the pipeline was full."""
    begin, end, _ = full(file, warm)
    ran = np.unique(file.events[file.events["action"] == Action.COMPUTE])  # some are told twice
    inside = np.clip(ran["stop"], begin, end) - np.clip(ran["start"], begin, end)
    ranks = sorted({*ran["rank"].tolist()} - {0})
    return [float(inside[ran["rank"] == rank].sum() / (end - begin)) for rank in ranks]


def predicted(scheme: Scheme) -> tuple[float, float]:
    """Return period and latency of a scheme's plan, as predicted."""
    job = Job.read(ROOT / scheme.job, list(scheme.sets))
    deployment = deploy(job, tuple(images(job, job.input.split, limit=1).images.shape[1:]))
    model = cost_model(job, deployment.chain)
    assert model is not None, "the job names a cluster"
    return Usage.of(model, deployment.plan).period, model.predict(deployment.plan).latency


def told(all_runs: list[Runs]) -> float:
    """Print a line a plan; return the least period."""
    one, least = float(np.median(all_runs[0].medians())), np.inf
    print(f"{'single':12s} {one:6.3f} s")
    for runs in all_runs[1:]:
        warm = runs.scheme.warm
        seconds = float(np.median([period(file, warm) for file in runs.files]))
        ahead, latency = predicted(runs.scheme)
        shares = busy(runs.files[0], warm)
        each = " ".join(f"{share:.2f}" for share in shares)
        print(
            f"{runs.scheme.name:12s} {seconds:6.3f} s, predicted {ahead:6.3f} (latency "
            f"{latency:.3f}): {one / seconds:.2f} x one device; workers compute "
            f"{100 * np.mean(shares):.0f} % of it: {each}; {runs.modes()}"
        )
        least = min(least, seconds)
    return least


def arriving(plans: list[Scheme], loads: list[float], least: float, count: int) -> list[Scheme]:
    """Return an open loop at each load for two plans, and for switching between them."""
    found = []
    for load in loads:
        words = ('input.arrivals="poisson"', f"input.rate={load / least:.4f}")
        both = (*plans[0].sets, f'plan.switch="{plans[1].name}"')
        for name, sets in (*((p.name, p.sets) for p in plans[:2]), ("switch", both)):
            found.append(Scheme(f"{name} at {load:g}", JOB, (*sets, *words), queries=count, warm=0))
    return found


def main() -> None:
    """Measure the lab, run every plan, tell."""
    given = options(
        "throughput",
        network={"default": "vgg16"},
        window={"type": int, "default": 12},
        unequal={"action": "store_true"},
        loads={"nargs": "*", "type": float, "default": []},
        planners={"nargs": "+", "default": ["deepslicing", "pico", "replicas"]},
    )
    given.out /= f"{given.network}{'-unequal' * given.unequal}"
    given.out.mkdir(parents=True, exist_ok=True)
    cluster, limits = given.out / "cluster.toml", [*LAB]
    if given.unequal:
        nodes = given.out / "nodes.toml"
        cpus = "".join(f"[[nodes]]\ncpu = {0.2 * share:.2f}\n" for share in SHARES)
        nodes.write_text(f'vectors = 128\n{cpus}[network]\nrate = "50mbit"\n')
        limits = ["--cluster", str(nodes)]
    with lab(given, limits):
        all_schemes = schemes(given.network, cluster, given.planners, given.window)
        if not cluster.exists():
            words = (word for each in all_schemes[0].sets for word in ("--set", each))
            mpicoded("lab", "profile", JOB, *words, "--out", str(cluster))
        least = told(interleave(all_schemes, given))
        loads = arriving(all_schemes[1:], given.loads, least, 2 * given.queries)
        for runs in interleave(loads, given) if loads else ():
            seconds = np.concatenate([file.queries["latency"] for file in runs.files])
            print(f"{runs.scheme.name:24s} mean latency {np.nanmean(seconds):.3f} s {runs.modes()}")


if __name__ == "__main__":
    main()
