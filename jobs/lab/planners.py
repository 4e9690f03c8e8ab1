"""Experiment i: the planners of the field on one executor, their predictions beside the clock.

    MPICODED_DATA=... python jobs/lab/planners.py [--rate 50mbit] [--network vgg16] [--repeats 1]
        [--wires float32 float16 int8] [--queries 5]

The lab is measured first (`mpicoded profile`), every planner makes its plan for that cluster, and
all plans run in turn. Told are p50, the speed-up over one device, what was predicted, and over all
plans the slope of measured against predicted seconds through 0, and R².
"""

from __future__ import annotations

import numpy as np
from bench import LAB, ROOT, Runs, Scheme, interleave, lab, mpicoded, options

from mpicoded.deploy import deploy, images, predict
from mpicoded.formats import FORMATS
from mpicoded.job import Job
from mpicoded.planners import BY_NAME

JOB = "jobs/planned.toml"


def schemes(network: str, cluster: str, wires: list[str], planners: list[str]) -> list[Scheme]:
    """Return each planner's plan with each format on the wire; one device has none on it."""
    model = (f'model.name="{network}"', f'plan.cluster="{cluster}"')
    found = []
    for wire in wires:
        answers = FORMATS[wire].dtype if not FORMATS[wire].maps else wire  # of maps
        words = (f'runtime.wire="{wire}"', f'runtime.answers="{answers}"')
        for name in planners:
            if name != "single" or wire == wires[0]:
                sets = (*model, *words, f'plan.planner="{name}"')
                found.append(Scheme(f"{name} {wire}", JOB, sets, warm=2))
    return found


def predicted(scheme: Scheme) -> float:
    """Return the seconds of a query that are predicted for a scheme's plan."""
    job = Job.read(ROOT / scheme.job, list(scheme.sets))
    shape = tuple(images(job, job.input.split, limit=1).images.shape[1:])
    prediction = predict(job, deploy(job, shape))
    assert prediction is not None, "the job names a cluster"
    return prediction.latency


def told(all_runs: list[Runs]) -> None:
    """Print a line a plan, and how predictions compare with the clock."""
    seconds = np.array([float(np.median(runs.medians())) for runs in all_runs])
    ahead = np.array([predicted(runs.scheme) for runs in all_runs])
    one = seconds[0]
    for runs, p50, expected in zip(all_runs, seconds, ahead, strict=True):
        print(
            f"{runs.scheme.name:22s} p50 {p50:6.3f} s  predicted {expected:6.3f} s "
            f"({p50 / expected:.2f})  {one / p50:5.2f} x one device"
        )
    slope = float(ahead @ seconds / (ahead @ ahead))
    rest = seconds - slope * ahead
    r2 = 1 - float(rest @ rest) / float(((seconds - seconds.mean()) ** 2).sum())
    print(f"{len(seconds)} plans: measured = {slope:.3f} x predicted, R² = {r2:.3f}")


def main() -> None:
    """Measure the lab, run every plan, tell."""
    given = options(
        "planners",
        network={"default": "vgg16"},
        rate={"default": "50mbit"},
        wires={"nargs": "+", "default": ["float32", "float16", "int8"]},
        planners={"nargs": "+", "default": list(BY_NAME)},
    )
    given.out = given.out / given.network / given.rate
    given.out.mkdir(parents=True, exist_ok=True)
    cluster, limits = given.out / "cluster.toml", [*LAB]
    limits[limits.index("--rate") + 1] = given.rate
    with lab(given, limits):
        if not (cluster.exists() or given.plan):
            job = ("--set", f'model.name="{given.network}"', "--set", 'plan.planner="single"')
            mpicoded("lab", "profile", JOB, *job, "--out", str(cluster))
        planners = ["single", *(name for name in given.planners if name != "single")]
        if given.plan:  # for two on a cluster that is known
            cluster, given.wires = ROOT / "jobs" / "pis-50mbit.toml", given.wires[:1]
            planners = planners[:2]
        runs = interleave(schemes(given.network, str(cluster), given.wires, planners), given)
    told(runs)


if __name__ == "__main__":
    main()
