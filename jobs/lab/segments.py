"""Coded segments: units that exchange halos under a code, against overlapping or gathered shards.

    python jobs/lab/segments.py [--network cifar|vgg16] [--repeats 3] [--queries 10]

cifar: VGG-9, k = 6, r = 2, batches of 1 and of 16 images. vgg16: learned 6 + 2 gathered at three
maps, and as one segment with n_f = 0 and 2 workers whose answers are missing, others in every
query.
"""

from __future__ import annotations

from bench import Scheme, draw, interleave, lab, options, tell

CIFAR = (
    'plan={split="tiles", tiles=[2, 3], stages=["features.20"]}',
    "code.k=6",
    "code.weights=../../data/learned-cifar-k6r2.safetensors",
    "runtime.wire=uint8",
    "runtime.window=1",
    "faults=[]",
)
LEARNED = ('code.name="learned"', "code.untrained=true", "code.k=6", "code.r=2")
# A pool is one stage with the convolution before it: nothing is computed twice, fewer exchanges.
VGG9 = ["features.0", "features.6", "features.7", "features.13", "features.14", "features.20"]
VGG16 = [f"features.{i}" for i in (0, 4, 5, 9, 10, 12, 16, 17, 19, 23, 24, 26, 30)]
WIDTHS = "args.widths=[64, 64, 128, 128, 256, 256, 512, 512]"  # a third of a data unit's work
SEGMENT = f'plan={{split="height", exchange="neighbours", stages={VGG16}, lost_halo="%s"}}'


def cifar(queries: int) -> list[Scheme]:
    """Return the schemes of VGG-9; the exchange comes second in each pair."""

    def of(batch: int) -> tuple[str, ...]:
        return f"input.batch={batch}", f"input.limit={batch * (queries + Scheme.warm)}"

    halos = f'plan={{split="tiles", tiles=[2, 3], exchange="neighbours", stages={VGG9}}}'
    return [
        Scheme(f"{name}, batch {batch}", "jobs/lab/cifar.toml", (*sets, *of(batch)))
        for batch in (1, 16)
        for name, sets in (("overlapping", CIFAR), ("segment", (*CIFAR, halos)))
    ]


def vgg16() -> list[Scheme]:
    """Return the schemes of VGG-16."""
    job, wire = "jobs/lab/vgg16.toml", "runtime.wire=uint8"
    two = 'faults=[{kind="pattern", missing=2}]'
    segment = (*LEARNED, wire, f"code.{WIDTHS}", "code.args.patch=4")
    restart, recompute = ((SEGMENT % how, *segment) for how in ("restart", "recompute"))
    return [
        Scheme("gathered 6+2", job, (*LEARNED, wire)),
        Scheme("segment 6+2", job, restart),
        Scheme("segment 6+2, n_f = 2", job, (*restart, two)),
        Scheme("segment 6+2, recompute", job, recompute),
    ]


def main() -> None:
    """Run all in turn and print ratios."""
    given = options("segments", network={"choices": ("cifar", "vgg16"), "default": "cifar"})
    given.out = given.out / given.network
    schemes = cifar(given.queries) if given.network == "cifar" else vgg16()
    with lab(given):
        runs = interleave(schemes, given)
    step = 2 if given.network == "cifar" else len(runs)
    for first in range(0, len(runs), step):
        tell(runs[first : first + step])
    if given.network == "vgg16":
        tell(runs[1:], runs[1])
    draw(runs, given.out / "segments.png", "Coded segments")


if __name__ == "__main__":
    main()
