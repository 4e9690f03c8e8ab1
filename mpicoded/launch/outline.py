"""What the launcher must know of a job, read without the job's own model.

The supervisor stays beside the leader for the whole run, so it loads neither torch nor what needs
it; whether the job is right is for the leader to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from mpicoded.jobfile import override, parse, read_text


@dataclass(frozen=True)
class Outline:
    """``units`` is k + r; ``start_limit`` the seconds that all ranks have to meet.

    ``quiet`` is for how many seconds the results file may stand still though all is well, and
    ``end_limit`` how long ranks may take to leave.
    """

    units: int
    threads: int
    start_limit: float
    results: Path
    quiet: float = 1.5
    end_limit: float = 10.0

    @classmethod
    def read(cls, path: Path, sets: Sequence[str]) -> Outline:
        """Read a job file and its overrides; values of a wrong type count as not there.

        Raises
        ------
        JobError
            If it is no job file, or an override cannot be read.
        """
        data = parse(path, read_text(path))
        for each in sets:
            override(data, each)
        file = _value(data, "results", "file", f"{path.stem}.h5")
        return cls(
            units=max(1, _value(data, "code", "k", 1) + _value(data, "code", "r", 0)),
            threads=max(1, _value(data, "runtime", "threads", 1)),
            start_limit=_seconds(data, "runtime", "start_limit", 120.0),
            quiet=_quiet(data),
            end_limit=_seconds(data, "runtime", "end_limit", 10.0),
            results=(path.absolute().parent / Path(file).expanduser()).resolve(),
        )


def _quiet(data: dict[str, Any]) -> float:
    """Return how long nothing may be heard of a run in which all goes as its job says."""
    quiet = _seconds(data, "results", "flush", 1.0)
    quiet += _seconds(data, "runtime", "suspect_after", 0.5)
    faults = data.get("faults")
    faults = [f for f in faults if isinstance(f, dict)] if isinstance(faults, list) else []
    if sum(map(_silent, faults)) > _value(data, "code", "r", 0):  # the code cannot do without them
        rounds = 1 + max(0, _value(data, "gather", "retries", 2))
        quiet += rounds * _seconds(data, "gather", "give_up", 30.0)
        quiet += max(_seconds({"": fault}, "", "seconds", 0.0) for fault in faults)
    return quiet


def _silent(fault: dict[str, Any]) -> float:
    """Return how many ranks an injected fault makes silent."""
    if fault.get("kind") in ("slow", "delay", "cpu", "rate"):
        return 0
    return inf if fault.get("rank") == "all" else _value({"": fault}, "", "missing", 1)


def _seconds(data: dict[str, Any], section: str, key: str, default: float) -> float:
    value = float(_value(data, section, key, default))
    return value if 0 <= value < inf else default


def _value(data: dict[str, Any], section: str, key: str, default: Any) -> Any:
    found = data.get(section)
    value = found.get(key, default) if isinstance(found, dict) else default
    if isinstance(default, float) and type(value) is int:
        return float(value)
    return value if isinstance(value, type(default)) else default
