"""The spec of a lab: its nodes, their limits and the medium between them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpicoded.cluster_tools.lab.units import rate, size
from mpicoded.errors import JobError, LabError, near
from mpicoded.jobfile import parse, read_text

NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")
SWITCH = "sw"
MOST = 250  # nodes; their addresses share 10.77.0.0/24
MEDIA = ("switched", "shared")
# SIMD width of a node in bits -> what makes oneDNN and ATen use no more. A Pi's NEON has 128.
VECTORS: dict[int, dict[str, str]] = {
    128: {"ONEDNN_MAX_CPU_ISA": "SSE41", "ATEN_CPU_CAPABILITY": "default"},
    256: {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
    512: {},
}
KEYS = {"nodes", "network", "vectors"}
NODE_KEYS = {"name", "cpu", "rate", "memory"}
NETWORK_KEYS = {"medium", "rate"}


@dataclass(frozen=True)
class Node:
    """One emulated computer: a share of a core, bit/s each way, bytes; None is no limit."""

    name: str
    cpu: float
    rate: int | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Spec:
    """All nodes, the leader's first; a shared medium carries ``rate`` bit/s in all."""

    nodes: tuple[Node, ...]
    medium: str = "switched"
    rate: int | None = None
    vectors: int = 512

    def __post_init__(self) -> None:
        """Check names, shares and the medium; LabError."""
        if not 1 <= len(self.nodes) <= MOST:
            raise LabError(f"{len(self.nodes)} nodes: a lab has from 1 to {MOST}")
        for node in self.nodes:
            _check_node(node)
        names = [node.name for node in self.nodes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            count = names.count(twice[0])
            raise LabError(f"node {twice[0]!r} is there {count} times: names differ")
        if self.medium not in MEDIA:
            raise LabError(f"medium {self.medium!r} is not one of {', '.join(MEDIA)}")
        if self.vectors not in VECTORS:
            known = ", ".join(map(str, VECTORS))
            raise LabError(f"vectors of {self.vectors} bits: should be one of {known}")
        if self.medium == "shared" and self.rate is None:
            raise LabError("a shared medium needs a rate, such as 50mbit")

    def address(self, index: int) -> str:
        """Return the address of node ``index``."""
        return f"10.77.0.{index + 1}"

    def index(self, name: str) -> int:
        """Return the number of the node of that name, address or number; LabError if none."""
        for i, node in enumerate(self.nodes):
            if name in (node.name, self.address(i), str(i)):
                return i
        known = ", ".join(node.name for node in self.nodes)
        raise LabError(f"{name!r} is not a node of the lab; there are {known}")


def equal(count: int, cpu: float, bits: int, memory: int | None, medium: str, vectors: int) -> Spec:
    """Return a lab of ``count`` equal nodes n0, n1, …"""
    own, common = (bits, None) if medium == "switched" else (None, bits)
    nodes = tuple(Node(f"n{i}", cpu, own, memory) for i in range(count))
    return Spec(nodes, medium, common, vectors)


def read_spec(path: Path) -> Spec:
    """Read a cluster file; LabError naming file and key if it is not one."""
    try:
        return from_plain(parse(path, read_text(path, "cluster file")))
    except JobError as error:
        raise LabError(str(error)) from None
    except LabError as error:
        raise LabError(f"{path}: {error}") from None


def from_plain(data: Mapping[str, Any]) -> Spec:
    """Return the Spec of a cluster file's data; a switched network's rate is its nodes' default."""
    _known(data, KEYS, "")
    network = _table(data.get("network", {}), "[network]")
    _known(network, NETWORK_KEYS, "[network] ")
    medium = network.get("medium", "switched")
    bits = rate(network["rate"]) if "rate" in network else None
    tables = data.get("nodes", [])
    if not isinstance(tables, list):
        raise LabError("nodes: should be tables, [[nodes]]")
    nodes = tuple(_node(table, i) for i, table in enumerate(tables))
    if medium == "switched" and bits is not None:
        nodes, bits = tuple(replace(n, rate=n.rate or bits) for n in nodes), None
    vectors = data.get("vectors", 512)
    return Spec(nodes, medium, bits, vectors if isinstance(vectors, int) else 0)


def _node(table: Any, index: int) -> Node:
    where = f"[[nodes]] {index}"
    table = _table(table, where)
    _known(table, NODE_KEYS, where + " ")
    cpu, name = table.get("cpu", 1.0), table.get("name", f"n{index}")
    if isinstance(cpu, bool) or not isinstance(cpu, int | float) or not isinstance(name, str):
        raise LabError(f"{where}: name is a string and cpu a share of a core, such as 0.2")
    try:
        bits = rate(table["rate"]) if "rate" in table else None
        memory = size(table["memory"]) if "memory" in table else None
    except LabError as error:
        raise LabError(f"{where}: {error}") from None
    return Node(name, float(cpu), bits, memory)


def _check_node(node: Node) -> None:
    if not NAME.fullmatch(node.name) or node.name == SWITCH or node.name.endswith("-"):
        raise LabError(
            f"{node.name!r} is not a name of a node: small letters, digits and '-', at most 15, a "
            f"letter first, not {SWITCH!r}"
        )
    if not 0.01 <= node.cpu <= 1024:
        raise LabError(f"node {node.name}: cpu = {node.cpu:g}: a share of a core, 0.01 or more")
    if node.rate is not None and node.rate < 10_000:
        raise LabError(f"node {node.name}: rate = {node.rate} bit/s: at least 10kbit")
    if node.memory is not None and node.memory < 2**26:
        raise LabError(f"node {node.name}: memory = {node.memory} bytes: at least 64mb")


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise LabError(f"{where}: should be a table of keys")
    return value


def _known(data: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    for key in data:
        if key not in keys:
            hint = near(key, keys) or f"; keys are {', '.join(sorted(keys))}"
            raise LabError(f"{where}{key} is not a key{hint}")
