"""Runs the tests of tests/mpi under mpirun, each file on the numbers of ranks that it states.

Such a file has a line ``RANKS = (1, 2, 4)``; its tests are run by every rank at once.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "mpi"


def ranks(file: Path) -> tuple[int, ...]:
    """The numbers of ranks a file asks for, read without importing it."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "RANKS":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{file.name} has no line RANKS = (…)")


CASES = [(file.name, n) for file in sorted(FOLDER.glob("test_*.py")) for n in ranks(file)]


@pytest.mark.parametrize(("name", "n"), CASES)
def test_ranks(mpirun, name, n):
    quiet = ["-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    ended = mpirun(n, ["-m", "pytest", "--with-mpi", *quiet, FOLDER / name], timeout=300)
    assert ended.status == 0, ended.output
