"""Imports point one way: a table of layers, and which outside package may stand where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launching import environment

PACKAGE = Path(__file__).parents[1] / "mpicoded"

# From low to high. A part (a module, or a package with all that is in it) imports its own layer
# and lower ones only.
LAYERS = (
    "errors answer geometry cluster faults trace paths processes outputs seal room formats "
    "jobfile section arrivals",
    "network stage plan moves steps dry_run scheduling",
    "split cost classes settings expected_accuracy",
    "planners",
    "codes models datasets",
    "runtime simulate",
    "deploy cluster_tools.profiling",
    "clusterfile job conflicts reference group",
    "results study cluster_tools cluster_tools.launch cluster_tools.lab",
    "study.report",
    "commands __main__",
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts.split()}

# What a module may name in a type, under `if TYPE_CHECKING:`, though it lies higher: it is given
# the job, and imports nothing of it.
TYPES_ONLY = {
    ("deploy", "job"),
    ("expected_accuracy", "job"),
    ("expected_accuracy", "codes"),
}

# Two wings beside serving; their parts are packages of their own. Only the command line and one
# wing's own parts import them.
WINGS = ("study", "cluster_tools")

# Parts that are chosen by name in a job, and so never know of one another.
STRANGERS = ("codes", "models")

# The only parts that may import an outside package.
ONLY_IN = {
    "mpi4py": {"runtime", "__main__", "commands", "group"},
    "h5py": {"results", "datasets", "cluster_tools.launch"},
    "matplotlib": {"study.report"},
    "pydantic": {"job", "jobfile", "clusterfile", "section", "settings", "cluster_tools.lab"},
    "simpy": {"simulate"},
    "typer": {"commands", "__main__"},
}
# A worker has no use for these, and its start has no time for them.
NOT_FOR_WORKERS = {"h5py", "simpy", "typer", "rich", "pydantic", "matplotlib", "scipy", "PIL"}


@dataclass(frozen=True)
class Import:
    """``module`` (a dotted name of ours) imports ``target`` in a line of its file."""

    module: str
    target: str
    line: int
    for_types: bool

    @property
    def part(self) -> str:
        return part(self.module)

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def part(name: str) -> str:
    """``mpicoded.codes.learned`` -> ``codes``, a wing's ``study.report``; the bare package ''."""
    names = name.split(".")[1:]
    inner = ".".join(names[:2])
    return inner if inner in LEVEL else ".".join(names[:1])


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def statements(node: ast.AST, for_types: bool = False) -> Iterator[tuple[ast.stmt, bool]]:
    """Every import statement below ``node``, and whether ``if TYPE_CHECKING:`` guards it."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, for_types
    guarded = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    for child in ast.iter_child_nodes(node):
        inside = guarded and isinstance(node, ast.If) and child in node.body
        yield from statements(child, for_types or inside)


def targets(node: ast.stmt) -> list[str]:
    """The dotted names that a statement imports; `from mpicoded import x` names mpicoded.x."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert isinstance(node, ast.ImportFrom)
    assert node.level == 0, f"line {node.lineno}: name the whole module, not a relative one"
    if node.module == "mpicoded":
        return [f"mpicoded.{alias.name}" for alias in node.names]
    return [str(node.module)]


def all_imports() -> list[Import]:
    return [
        Import(module_name(file), target, node.lineno, for_types)
        for file in sorted(PACKAGE.rglob("*.py"))
        for node, for_types in statements(ast.parse(file.read_text()))
        for target in targets(node)
    ]


IMPORTS = all_imports()
OURS = [imp for imp in IMPORTS if imp.target.split(".")[0] == "mpicoded"]
THEIRS = [imp for imp in IMPORTS if imp.target.split(".")[0] != "mpicoded"]


def test_every_part_has_a_layer():
    parts = {part(module_name(file)) for file in PACKAGE.rglob("*.py")} - {""}
    assert parts <= LEVEL.keys(), f"put {sorted(parts - LEVEL.keys())} into LAYERS"


def test_imports_point_down():
    up = [
        str(imp)
        for imp in OURS
        if imp.part and LEVEL[part(imp.target)] > LEVEL[imp.part]
        if not (imp.for_types and (imp.part, part(imp.target)) in TYPES_ONLY)
    ]
    assert not up, up


def test_serving_imports_no_wing():
    strays = [
        str(imp)
        for imp in OURS
        if (wing := part(imp.target).split(".")[0]) in WINGS
        if imp.part.split(".")[0] not in (wing, "commands", "__main__", "")
    ]
    assert not strays, strays


def test_each_exception_is_needed():
    used = {(imp.part, part(imp.target)) for imp in OURS if imp.for_types}
    assert used >= TYPES_ONLY


def test_strangers_do_not_meet():
    met = [
        str(imp)
        for imp in OURS
        if imp.part in STRANGERS
        if part(imp.target) in STRANGERS and part(imp.target) != imp.part
    ]
    assert not met, met


@pytest.mark.parametrize("name", ONLY_IN)
def test_outside_package_stays_in_its_place(name):
    strays = [str(i) for i in THEIRS if i.target.split(".")[0] == name]
    strays = [text for text in strays if part(text.split(":")[0]) not in ONLY_IN[name]]
    assert not strays, strays


def test_no_module_imports_itself_in_a_circle():
    """Only of imports at the top of a module; those inside functions happen later."""
    edges: dict[str, set[str]] = {}
    modules = {module_name(file) for file in PACKAGE.rglob("*.py")}
    for file in PACKAGE.rglob("*.py"):
        body = ast.parse(file.read_text()).body
        top = [node for node in body if isinstance(node, ast.ImportFrom)]
        names = {f"{node.module}.{alias.name}" for node in top for alias in node.names}
        names |= {str(node.module) for node in top}
        edges[module_name(file)] = (names & modules) - {module_name(file), "mpicoded"}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above, module])
        if module not in done:
            for target in sorted(edges[module]):
                visit(target, (*above, module))
            done.add(module)

    for module in sorted(edges):
        visit(module, ())


def loaded_by(statement: str) -> set[str]:
    """The outermost names of the modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}; import sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment("openmpi", {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_worker_starts_with_little():
    loaded = loaded_by("import mpicoded.runtime.worker")
    assert {"mpi4py", "numpy", "torch"} <= loaded
    assert not loaded & NOT_FOR_WORKERS
    assert "pydantic" not in loaded_by("import mpicoded.group"), "a worker of a Group"


def test_package_is_light():
    assert not loaded_by("import mpicoded") & (NOT_FOR_WORKERS | {"mpi4py", "numpy", "torch"})
