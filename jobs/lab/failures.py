"""Experiment b: n_f = 0, 1, 2 workers fail in every query, others each time, known to nobody.

    python jobs/lab/failures.py [--network resnet18|vgg16] [--repeats 5] [--queries 40]

The table of CoCoI (arXiv 2501.06856) in its relative form: every scheme over its own n_f = 0.
"""

from __future__ import annotations

from bench import COMPARED, Scheme, draw, interleave, lab, options, ratio, tell


def silent(count: int) -> str:
    """Return the fault: ``count`` workers answer nothing, all sets of them in turn."""
    return f'faults=[{{kind="pattern", missing={count}}}]'


def count(name: str) -> int | None:
    """Return the queries of a run: as asked for the code, few for what it is compared with."""
    return None if name.startswith("learned") else 6


def main() -> None:
    """Run every scheme with every number of failures in turn."""
    given = options("failures", network={"choices": ("resnet18", "vgg16"), "default": "resnet18"})
    given.out, job = given.out / given.network, f"jobs/lab/{given.network}.toml"
    schemes = [
        Scheme(
            f"{name}, n_f = {failed}",
            job,
            (*sets, silent(failed)),
            queries=count(name),
            repeats=None if count(name) is None and failed != 1 else 1,
        )
        for name, sets in COMPARED.items()
        for failed in (0, 1, 2)
    ]
    with lab(given):
        runs = interleave(schemes, given)
    for first in range(0, len(runs), 3):
        tell(runs[first : first + 3])
        more = [ratio(each, runs[first])[0] - 1 for each in runs[first + 1 : first + 3]]
        print(f"  n_f = 1: {more[0]:+.1%}, n_f = 2: {more[1]:+.1%}")
    draw(
        runs,
        given.out / "latency.png",
        f"Workers that fail silently, others in every query: {given.network}",
    )


if __name__ == "__main__":
    main()
