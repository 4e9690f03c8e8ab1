"""Growth with ranks: the quickstart's eight units among more and more workers of one machine.

    python jobs/measure/growth.py [--ranks 9 33 65] [--rounds 5]

All but eight workers are spares. The sizes run in turn; a figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median

from against import FIGURES, ROOT, measure


def main() -> None:
    """Run every size in turn and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[9, 33, 65])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--job", default="jobs/quickstart.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    found: dict[int, list[list[float]]] = {ranks: [] for ranks in given.ranks}
    sets = ["runtime.start_limit=240", *given.set]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for ranks in given.ranks:
                found[ranks].append(measure(ROOT, given.job, sets, Path(folder), ranks))
    print("ranks  " + "  ".join(f"{name:>16}" for name in FIGURES))
    for ranks, rows in found.items():
        pairs = list(zip(found[given.ranks[0]], rows, strict=True))
        cells = [
            f"{median(row[i] for row in rows):8.3f} {median(b[i] / a[i] for a, b in pairs):5.2f} x"
            for i in range(len(FIGURES))
        ]
        print(f"{ranks:5}  " + "  ".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    main()
