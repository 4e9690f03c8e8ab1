"""Faults of nodes and links: their kinds, and the condition of a node with several at a time."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, isfinite, prod
from typing import Any

from mpicoded.cluster_tools.lab.units import rate, show_rate
from mpicoded.errors import LabError
from mpicoded.faults import KINDS as ALL

# kind -> what its value is; None: it has none
KINDS = {kind: each.value or None for kind, each in ALL.items() if each.by_lab}
KINDS["freeze"] = None
REBOOT = ALL["reboot"].seconds  # that a node is away if nobody says how long


@dataclass(frozen=True)
class Fault:
    """A fault of node ``node`` from ``since`` (CLOCK_MONOTONIC) ``until`` (None: until ended)."""

    key: str
    kind: str
    node: int
    value: float | None
    since: float
    until: float | None = None

    @property
    def away(self) -> bool:
        """True if the node cannot be reached."""
        return self.kind in ("reboot", "link")

    def __str__(self) -> str:
        if self.value is None:
            return self.kind
        return f"{self.kind} {show_rate(self.value) if self.kind == 'rate' else f'{self.value:g}'}"


@dataclass(frozen=True)
class Condition:
    """All faults of a node together: the share of its CPU limit, its rate (bit/s), its link."""

    cpu: float = 1.0
    rate: float = inf
    loss: float = 0.0
    link: bool = True
    rebooting: bool = False
    frozen: bool = False


def condition(faults: Iterable[Fault]) -> Condition:
    """Combine the faults of one node: the worst of each kind, slow-downs multiply."""
    found = list(faults)
    values = {kind: [f.value or 0.0 for f in found if f.kind == kind] for kind in KINDS}
    return Condition(
        cpu=prod(values["cpu"]),
        rate=min(values["rate"], default=inf),
        loss=max(values["loss"], default=0.0),
        link=not any(f.away for f in found),
        rebooting=bool(values["reboot"]),
        frozen=bool(values["freeze"]),
    )


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
