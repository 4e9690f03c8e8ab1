"""What the launcher must know of a job, read without the job's own model.

The supervisor stays beside the leader for the whole run, so it loads neither torch nor what needs
it; whether the job is right is for the leader to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpicoded.jobfile import override, parse, read_text


@dataclass(frozen=True)
class Outline:
    """``units`` is k + r; ``start_limit`` the seconds that all ranks have to meet.

    ``flush`` is for how many seconds the results file may stand still.
    """

    units: int
    threads: int
    start_limit: float
    results: Path
    flush: float = 1.0

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
            units=_value(data, "code", "k", 1) + _value(data, "code", "r", 0),
            threads=max(1, _value(data, "runtime", "threads", 1)),
            start_limit=float(_value(data, "runtime", "start_limit", 120.0)),
            flush=float(_value(data, "results", "flush", 1.0)),
            results=(path.absolute().parent / Path(file).expanduser()).resolve(),
        )


def _value(data: dict[str, Any], section: str, key: str, default: Any) -> Any:
    found = data.get(section)
    value = found.get(key, default) if isinstance(found, dict) else default
    if isinstance(default, float) and type(value) is int:
        return float(value)
    return value if isinstance(value, type(default)) else default
