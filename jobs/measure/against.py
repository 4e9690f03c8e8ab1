"""An older commit against this tree: queries a second, latency, the leader's own time, the start.

    python jobs/measure/against.py HEAD~20
    python jobs/measure/against.py v0.4 --rounds 9 --set input.limit=300

Both run the quickstart job without its faults on nine ranks, in turn, the order reversed every
round; each figure is the median of the ratios new / old, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import h5py
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MPIRUN = [str(Path(sys.executable).parent / "mpirun"), "--with-ft", "ulfm", "--oversubscribe"]
MPIRUN += ["--bind-to", "none", "--mca", "btl", "^ofi"]
FIGURES = ("start s", "queries a second", "p50 ms", "p99 ms", "own ms")
LIMIT = 300.0  # s a run


def main() -> None:
    """Run both trees in turn and print a line a figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("commit", help="what this tree is compared with")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--job", default="jobs/quickstart.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        old = Path(folder) / "old"
        _git("worktree", "add", "--detach", str(old), given.commit)
        try:
            trees = {"old": old, "new": ROOT}
            found: dict[str, list[list[float]]] = {name: [] for name in trees}
            for round_ in range(given.rounds):
                for name in sorted(trees, reverse=bool(round_ % 2)):
                    figures = measure(trees[name], given.job, given.set, Path(folder))
                    found[name].append(figures)
        finally:
            _git("worktree", "remove", "--force", str(old))
    for i, figure in enumerate(FIGURES):
        pairs = [(a[i], b[i]) for a, b in zip(found["old"], found["new"], strict=True)]
        ratios = [new / old for old, new in pairs]
        before, now = (median(side) for side in zip(*pairs, strict=True))
        print(
            f"{figure:16} old {before:8.3f}  new {now:8.3f}  new / old {median(ratios):.3f} "
            f"({min(ratios):.3f} … {max(ratios):.3f})"
        )


def measure(tree: Path, job: str, sets: Sequence[str], folder: Path, ranks: int = 9) -> list[float]:
    """Return the figures of one run; the start is a run of one query from end to end."""
    began = time.perf_counter()
    _run(tree, job, [*sets, "input.limit=1", "results.unsplit=false"], folder, ranks)
    start = time.perf_counter() - began
    _run(tree, job, sets, folder, ranks)
    with h5py.File(folder / "run.h5", "r", locking=False) as file:
        times = {name: file[f"queries/{name}"][:] for name in ("submitted", "answered", "own")}
    latency = 1e3 * (times["answered"] - times["submitted"])
    rate = len(latency) / float(times["answered"].max() - times["submitted"].min())
    p50, p99 = (float(np.percentile(latency, p)) for p in (50, 99))
    return [start, rate, p50, p99, 1e3 * float(np.median(times["own"]))]


def _run(tree: Path, job: str, sets: Sequence[str], folder: Path, ranks: int) -> None:
    words = ["-m", "mpicoded", "run", str(tree / job), "--overwrite"]
    for each in (*sets, "faults=[]", f'results.file="{folder / "run.h5"}"'):
        words += ["--set", each]
    root = dict.fromkeys(("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"), "1")
    root |= {name.replace("OMPI", "PRTE"): "1" for name in root}
    env = {**os.environ, **root, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "TERM": "dumb"}
    done = subprocess.run(
        [*MPIRUN, "-n", str(ranks), sys.executable, *words],
        cwd=tree, env=env, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{tree}: status {done.returncode}\n{done.stdout}{done.stderr}")


def _git(*words: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True)


if __name__ == "__main__":
    main()
