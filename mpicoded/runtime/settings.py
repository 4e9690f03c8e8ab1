"""How the runtime waits, sends and shares; every wait has a limit, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from mpicoded.gather import Deadline


@dataclass(frozen=True)
class Settings:
    """Defaults are those of a job file's [gather] and [runtime].

    ``deadline`` None adapts (see :class:`mpicoded.gather.Deadline`); ``window`` queries are in
    flight at a time; inputs travel as ``wire``; with ``sharing`` a worker may take several units.
    """

    deadline: float | None = None
    patience: float = 2.0
    give_up: float = 2.0
    retries: int = 2
    window: int = 4
    wire: str = "float32"
    sharing: bool = False
    threads: int = 1
    start_limit: float = 120.0
    end_limit: float = 10.0
    suspect_after: float = 0.5

    def new_deadline(self) -> Deadline:
        """Return a deadline policy of its own for one stage."""
        return Deadline(self.deadline, self.patience)
