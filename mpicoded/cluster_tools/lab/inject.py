"""``lab fault``: a fault from another shell, through the job's own lab line if one runs."""

import json
import socket
import time
from typing import Any

from mpicoded.cluster_tools.lab.fault import KINDS, check
from mpicoded.cluster_tools.lab.fault_manager import FaultManager, shell_key
from mpicoded.cluster_tools.lab.lab import Lab
from mpicoded.cluster_tools.lab.state import Home, State, runs
from mpicoded.errors import LabError

ANSWER_LIMIT = 15.0  # s
END = "end"  # instead of a kind: ends all faults of the node


def inject(home: Home, kind: str, node: str, value: Any, seconds: float | None) -> str:
    """Begin a fault of a node, or end all of them; return what was done, in words.

    While a job runs the lab's own process does it, and tells the leader. Otherwise it is done
    here; one that lasts some ``seconds`` is waited for.
    """
    state = home.need()
    name = state.spec.nodes[state.spec.index(node)].name
    if kind not in (*KINDS, END):
        raise LabError(f"{kind!r} is not a fault of the lab; there are {', '.join((*KINDS, END))}")
    if kind != END:
        value, seconds = check(kind, value, seconds)
    about = {"kind": kind, "value": value, "seconds": seconds}
    if runs(state):
        ask(home, {"do": "heal" if kind == END else "fault", "node": name, **about})
    else:
        _inject_here(home, state, kind, state.spec.index(node), value, seconds)
    if kind == END:
        return f"{name}: no fault"
    until = f"for {seconds:g} s" if seconds else f"until `lab fault end {name}`"
    return f"{name}: {kind} {until}"


def ask(home: Home, what: dict[str, Any]) -> float:
    """Ask one thing on the lab line; return the time of the answer; LabError if it is an error."""
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.settimeout(ANSWER_LIMIT)
    try:
        with line:
            line.connect(str(home.line))
            line.sendall(json.dumps(what).encode() + b"\n")
            with line.makefile("rb") as file:
                answer = json.loads(file.readline() or b'{"error": "the job has just ended"}')
    except (OSError, ValueError) as error:
        raise LabError(f"the process that runs the job does not answer: {error}") from None
    if "error" in answer:
        raise LabError(str(answer["error"]))
    return float(answer["at"])


def _inject_here(
    home: Home, state: State, kind: str, node: int, value: Any, seconds: float | None
) -> None:
    manager, own = FaultManager(Lab.of(home, state.spec), state.faults), shell_key(kind, node)
    for fault in state.faults:
        if fault.key == own or (kind == END and fault.node == node):
            manager.end(fault.key)
    if kind == END:
        return
    manager.begin(own, kind, node, value, seconds)
    if seconds is not None:
        try:
            time.sleep(seconds)
        finally:
            FaultManager(manager.lab, home.need().faults).end(own)
