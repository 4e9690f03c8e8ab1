"""Damaged files of every kind through all verbs: no traceback, no hang, never more than 2 GB.

    python jobs/measure/fuzz.py --seconds 3600 --seed 1 --keep findings

Round ``i`` of a seed is always the same one: ``--round i`` runs it alone and leaves its folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from fuzzing import Fuzz


def main() -> int:
    """Run rounds until the time or their number is over; the status tells of findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=10**9, help="at most so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", type=int, help="this one alone")
    parser.add_argument("--only", default="", help="files whose name has this, such as images")
    parser.add_argument("--keep", type=Path, default=Path("findings"))
    given = parser.parse_args()
    given.keep.mkdir(parents=True, exist_ok=True)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="mpicoded-fuzz-") as scratch:
        fuzz = Fuzz(given.seed, Path(scratch) / "files", given.keep.resolve(), given.only)
        end = time.monotonic() + given.seconds
        first = given.round or 0
        last = given.rounds if given.round is None else first + 1
        number = first
        while number < last and time.monotonic() < end:
            finding = fuzz.one(number)
            number += 1
            if finding is not None:
                found[finding.what.split(":")[0]] += 1
                print(finding, flush=True)
    told = ", ".join(f"{count} {what}" for what, count in found.items()) or "none"
    print(f"{number - first} mutations, seed {given.seed}; findings: {told}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
