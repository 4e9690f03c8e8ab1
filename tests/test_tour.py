"""docs/tour.md: every path and name in it exists, and its drawings are those of small plans."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpicoded.moves import schedule
from mpicoded.steps import draw
from test_steps import DRAWINGS

ROOT = Path(__file__).parents[1]
TOUR = (ROOT / "docs/tour.md").read_text()
WORDS = sorted(set(re.findall(r"`([^`\n]+)`", TOUR)))
PATHS = [word for word in WORDS if re.fullmatch(r"(mpicoded|docs|jobs|tests)/[\w./-]+", word)]
# steps.draw, LeaderRank.on, Plan; a keyword such as `window` has no capital and no dot
NAMES = [word for word in WORDS if re.fullmatch(r"\w+(\.\w+)+|[A-Z]\w*[a-z]\w*", word)]


def defined(body: list[ast.stmt]) -> Iterator[str]:
    """The names that statements bind."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names)


def all_names() -> tuple[set[str], dict[str, set[str]]]:
    """``module.Name`` of all modules, and of every class its members by its bare name."""
    names, members = set[str](), defaultdict[str, set[str]](set)
    for file in (ROOT / "mpicoded").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT / "mpicoded").with_suffix("").parts)
        module = module.removesuffix(".__init__")
        body = ast.parse(file.read_text()).body
        names |= {f"{module}.{name}" for name in defined(body)}
        for node in body:
            if isinstance(node, ast.ClassDef):
                members[node.name] |= set(defined(node.body))
    return names, members


MODULE_NAMES, MEMBERS = all_names()


def exists(name: str) -> bool:
    first, _, member = name.partition(".")
    return name in MODULE_NAMES or (first in MEMBERS and (not member or member in MEMBERS[first]))


def test_tour_names_much():
    assert len(PATHS) > 20 and len(NAMES) > 60


@pytest.mark.parametrize("path", PATHS)
def test_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", NAMES)
def test_name_exists(name: str) -> None:
    assert exists(name)


@pytest.mark.parametrize("name", ["steps.nothing", "Plan.nothing", "Nothing", "nowhere.Plan"])
def test_name_that_does_not_exist(name: str) -> None:
    assert not exists(name)


def test_drawings() -> None:
    blocks = re.findall(r"(?m)(?:^    .*\n)+", TOUR)
    drawn = [re.sub(r"(?m)^    ", "", each).rstrip("\n") for each in blocks if "gather" in each]
    plans = [DRAWINGS[name][0] for name in ("star", "halo exchange", "pipeline")]
    assert drawn == [draw(schedule(plan)) for plan in plans]
