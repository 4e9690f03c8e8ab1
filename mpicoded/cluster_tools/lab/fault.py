"""Faults of nodes and links: which there are, and what several at a time mean for a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

from mpicoded.cluster_tools.lab.quantities import rate, show_rate
from mpicoded.errors import LabError
from mpicoded.faults import KINDS as ALL

# kind -> what its value is; None: it has none
KINDS = {kind: each.value or None for kind, each in ALL.items() if each.by_lab}
KINDS["freeze"] = None
REBOOT = ALL["reboot"].seconds  # that a node is away if nobody says how long


@dataclass(frozen=True)
class Fault:
    """What befalls node ``node``, since when (CLOCK_MONOTONIC), until when (None: until ended)."""

    key: str
    kind: str
    node: int
    value: float | None
    since: float
    until: float | None = None

    @property
    def away(self) -> bool:
        """Whether the node cannot be reached."""
        return self.kind in ("reboot", "link")

    def __str__(self) -> str:
        if self.value is None:
            return self.kind
        return f"{self.kind} {show_rate(self.value) if self.kind == 'rate' else f'{self.value:g}'}"


@dataclass(frozen=True)
class Condition:
    """All faults of a node together: what is left of its CPU limit, its rate (bit/s), its link."""

    cpu: float = 1.0
    rate: float = inf
    loss: float = 0.0
    link: bool = True
    rebooting: bool = False
    frozen: bool = False


def condition(faults: Iterable[Fault]) -> Condition:
    """Return what the faults of one node come to: the worst of each kind, slow-downs multiply."""
    result = Condition()
    for fault in faults:
        value = fault.value or 0.0
        result = Condition(
            result.cpu * value if fault.kind == "cpu" else result.cpu,
            min(result.rate, value) if fault.kind == "rate" else result.rate,
            max(result.loss, value) if fault.kind == "loss" else result.loss,
            result.link and not fault.away,
            result.rebooting or fault.kind == "reboot",
            result.frozen or fault.kind == "freeze",
        )
    return result


def check(kind: str, value: Any, seconds: Any) -> tuple[float | None, float | None]:
    """Return value and seconds as numbers; LabError if they do not suit the kind."""
    if kind not in KINDS:
        raise LabError(f"{kind!r} is not a fault of the lab; there are {', '.join(KINDS)}")
    wanted = KINDS[kind]
    number = None if wanted is None else _value(kind, value, wanted)
    if seconds is not None:
        seconds = _float(seconds)
        if not (seconds > 0 and isfinite(seconds)):
            raise LabError(f"fault {kind}: seconds = {seconds}: more than 0")
    return number, REBOOT if kind == "reboot" and seconds is None else seconds


def _value(kind: str, value: Any, wanted: str) -> float:
    if value is None:
        raise LabError(f"fault {kind} needs a value: {wanted}")
    if kind == "rate":
        bits = _float(value)
        bits = float(rate(str(value))) if bits != bits else bits
        if not 1_000 <= bits < inf:
            raise LabError(f"fault rate: {bits:g} bit/s: at least 1kbit")
        return bits
    number = _float(value)
    if not 0 < number <= 1:
        raise LabError(f"fault {kind}: value {value}: should be {wanted}")
    return number


def _float(value: Any) -> float:
    """Return a number; NaN for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def to_plain(fault: Fault) -> dict[str, Any]:
    """Return what :func:`from_plain` takes."""
    return dict(vars(fault))


def from_plain(data: Mapping[str, Any], nodes: int) -> Fault:
    """Return the fault that a state file holds; ValueError, TypeError or KeyError if it is none."""
    fault = Fault(**data)
    check(fault.kind, fault.value, None)
    if not (isinstance(fault.key, str) and 0 <= fault.node < nodes):
        raise ValueError(f"node {fault.node}")
    float(fault.since), float(fault.until or 0)
    return fault
