"""Experiment b, in one run: n_f = 0 and n_f = 2 silent workers take turns, block by block.

    python jobs/lab/alternating.py [--network resnet18|vgg16] [--repeats 1] [--queries 80]

A machine that drifts cancels: each block of n_f = 2 is compared with the blocks of n_f = 0 beside
it. The first query of a block is left out, as it meets what the block before has taught.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from bench import WARM, Scheme, interleave, lab, options

LEARNED = ('code.name="learned"', "code.untrained=true", "code.k=6", "code.r=2")
BLOCK = 5  # queries


def silent_in_turn(queries: int) -> str:
    """Return the faults: two workers answer nothing in every other block."""
    starts = range(WARM + BLOCK, queries - BLOCK + 1, 2 * BLOCK)
    faults = (
        f'{{kind="pattern", missing=2, start={s / queries:.6f}, stop={(s + BLOCK) / queries:.6f}}}'
        for s in starts
    )
    return f"faults=[{', '.join(faults)}]"


def main() -> None:
    """Run, and print the ratio of neighbouring blocks."""
    given = options(
        "alternating", network={"choices": ("resnet18", "vgg16"), "default": "resnet18"}
    )
    given.out = given.out / given.network
    queries = WARM + given.queries // BLOCK * BLOCK
    scheme = Scheme(
        "learned 6+2",
        f"jobs/lab/{given.network}.toml",
        (*LEARNED, silent_in_turn(queries)),
        queries=queries - WARM,
    )
    with lab(given):
        (runs,) = interleave([scheme], given)
    for seconds in runs.latencies():
        blocks = [float(np.median(b[1:])) for b in np.split(seconds, len(seconds) // BLOCK)]
        ratios = [b / a if i % 2 == 0 else a / b for i, (a, b) in enumerate(pairwise(blocks))]
        healthy, silent = (1e3 * float(np.median(blocks[i::2])) for i in (0, 1))
        print(
            f"n_f = 0: {healthy:.0f} ms, n_f = 2: {silent:.0f} ms, ratio {np.median(ratios):.3f} "
            f"({min(ratios):.3f} … {max(ratios):.3f}), {len(blocks)} blocks of {BLOCK}"
        )


if __name__ == "__main__":
    main()
