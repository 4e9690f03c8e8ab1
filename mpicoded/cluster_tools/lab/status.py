"""Status of a lab: measured at its control groups and links, as a table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from mpicoded.cluster_tools.lab.fault import Fault
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.network import Traffic
from mpicoded.cluster_tools.lab.spec import Node
from mpicoded.cluster_tools.lab.state import Home, Look, State, runs
from mpicoded.cluster_tools.lab.units import show_rate, show_size

COLUMNS = (
    ("node", "left"), ("address", "left"), ("cpu", "right"), ("used", "right"), ("rate", "right"),
    ("sent", "right"), ("received", "right"), ("memory", "right"), ("of", "right"),
    ("link", "left"), ("limits", "left"), ("processes", "right"), ("faults", "left"),
)  # fmt: skip


@dataclass(frozen=True)
class NodeStatus:
    """One node: limits in force (None: none), and use; ``used`` cores since the last look."""

    node: Node
    address: str
    cpu: float | None
    used: float
    memory: int
    traffic: Traffic
    processes: int
    faults: tuple[Fault, ...]


def measure(home: Home) -> tuple[State, list[NodeStatus]]:
    """Look at every node of a lab that is up, and remember that look."""
    state = home.need()
    lab = Lab.of(home, state.spec)
    now, seconds = time.monotonic(), lab.cpu_seconds()
    before = state.look or Look(now - 1.0, seconds)
    used = [
        (new - old) / max(now - before.at, 1e-3)
        for new, old in zip(seconds, before.cpu, strict=True)
    ]
    traffic = lab.network.traffic()
    rows = [_node(lab, state, i, used[i], traffic[i]) for i in range(len(seconds))]
    home.change(look=Look(now, seconds))
    return state, rows


def _node(lab: Lab, state: State, index: int, used: float, traffic: Traffic) -> NodeStatus:
    group, node = lab.group(index), state.spec.nodes[index]
    address, faults = state.spec.address(index), tuple(state.of_node(index))
    return NodeStatus(
        node, address, group.cpu_limit(), used, group.memory(), traffic, len(group.pids()), faults
    )


def table(rows: Sequence[NodeStatus]) -> Table:
    """Return the nodes as a table; a node's name is its host name."""
    shown = Table(box=None, pad_edge=False, header_style="")
    for name, side in COLUMNS:
        shown.add_column(name, justify="right" if side == "right" else "left", no_wrap=True)
    for row in rows:
        shown.add_row(
            row.node.name,
            row.address,
            "free" if row.cpu is None else f"{100 * row.cpu:.3g} %",
            f"{100 * row.used:.1f} %",
            show_rate(row.traffic.rate),
            show_size(row.traffic.sent),
            show_size(row.traffic.received),
            show_size(row.memory),
            show_size(row.node.memory),
            "up" if row.traffic.up else "down",
            "lifted" if row.cpu is None else "in force",
            str(row.processes),
            ", ".join(map(str, row.faults)),
        )
    return shown


def headline(state: State) -> str:
    """Return a line about the job that runs in the lab."""
    if state.run and runs(state):
        return f"process {state.run[0]} runs a job in the lab"
    return "no job runs in the lab"
