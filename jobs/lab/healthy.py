"""Experiment a: nothing fails. One device, uncoded, replication, learned code.

    python jobs/lab/healthy.py [--network vgg16|resnet18] [--repeats 5] [--queries 40]

Before anything else the lab is measured (`mpicoded profile`): the stages are chosen for what its
nodes and links can do, and the plan's own prediction stands beside what was measured.
"""

from __future__ import annotations

from bench import ROOT, Scheme, draw, interleave, lab, mpicoded, options, ratio, tell


def main() -> None:
    """Run all schemes in turn and tell their ratios."""
    given = options("healthy", network={"choices": ("vgg16", "resnet18"), "default": "vgg16"})
    given.out = given.out / given.network
    job, cluster = f"jobs/lab/{given.network}.toml", given.out / "cluster.toml"
    given.out.mkdir(parents=True, exist_ok=True)
    auto = (f'plan.cluster="{cluster}"', 'plan.stages="auto"')
    if given.plan and not cluster.exists():
        auto = ()
    tiles = ('plan.split="tiles"', "plan.tiles=[4, 2]")
    learned = ('code.name="learned"', "code.untrained=true")
    with lab(given):
        if not (cluster.exists() or given.plan):
            mpicoded("lab", "profile", job, "--out", str(cluster))
        schemes = [
            Scheme("one device", job, ("code.k=1",), ranks=1, queries=4, warm=1),
            Scheme("uncoded 8", job, ("code.k=8", *auto)),
            Scheme("uncoded 7", job, ("code.k=7", *auto), queries=20),
            Scheme("learned 7+1", job, (*learned, "code.k=7", "code.r=1", *auto)),
            Scheme(
                "learned 6+2", job, (*learned, "code.k=6", "code.r=2", *auto), queries=5, repeats=2
            ),
            Scheme(
                "replication 4x2",
                job,
                ('code.name="replication"', "code.k=4", "code.r=4", *auto),
                queries=5,
                repeats=2,
            ),
            Scheme("tiles 4 x 2", job, ("code.k=8", *tiles, *auto), queries=5, repeats=2),
        ]
        one, eight, seven, coded, *_ = runs = interleave(schemes, given)
    tell(runs)
    print(f"speed-up of uncoded 8 over one device: {1 / ratio(eight, one)[0]:.2f}")
    for other in (seven, eight):
        print(f"learned 7+1 / {other.scheme.name}: {ratio(coded, other)[0]:.3f}")
    mpicoded("plan", job, *[w for s in ("code.k=8", *auto) for w in ("--set", s)])
    mpicoded("report", str(eight.files[0].path.relative_to(ROOT)), "--breakdown")
    draw(runs, given.out / "latency.png", f"Healthy: {given.network} at 224 x 224, 8 workers")


if __name__ == "__main__":
    main()
