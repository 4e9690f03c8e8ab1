"""How the runtime waits, sends and shares; every wait has a limit, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from mpicoded.errors import JobError
from mpicoded.scheduling.deadline import Deadline

WIRES = ("float32", "float16", "uint8", "int8")
PARITIES = ("float32", "float16", "int8")
ANSWERS = ("float32", "float16", "int8")
PLACEMENTS = ("adaptive", "fixed")


@dataclass(frozen=True)
class Settings:
    """Defaults are those of a job file's [gather] and [runtime].

    ``deadline`` None adapts (see :class:`mpicoded.scheduling.deadline.Deadline`); ``window``
    queries are in flight at a time; a stage does not wait for more once its answer is expected to
    have ``min_accuracy`` (see :mod:`mpicoded.scheduling.accuracy`). Inputs travel as ``wire``, those
    of coded units as ``parity`` (None: as ``wire``), outputs as ``answers``; with ``sharing`` a
    worker may take several units.
    ``placement`` "fixed" keeps every unit on its own rank as long as that is there, and asks
    nobody else for what is only late: the same faults then hit the same units. ``threads`` "auto"
    is every rank's share of the cores of its node.
    """

    deadline: float | None = None
    patience: float = 2.0
    min_accuracy: float | None = None
    give_up: float = 30.0
    retries: int = 2
    window: int = 4
    wire: str = "float32"
    parity: str | None = None
    answers: str = "float32"
    sharing: bool = False
    placement: str = "adaptive"
    threads: int | str = 1
    start_limit: float = 120.0
    end_limit: float = 10.0
    suspect_after: float = 0.5

    def __post_init__(self) -> None:
        """Check the values, as a job file does.

        Raises
        ------
        JobError
            If one of them is out of range.
        """
        limits = ("give_up", "start_limit", "end_limit", "suspect_after")
        wrong = [
            *(["window"] if self.window < 1 else []),
            *(["threads"] if self.threads != "auto" and not _positive(self.threads) else []),
            *(name for name in limits if not 0 < getattr(self, name) < inf),
            *(["wire"] if self.wire not in WIRES else []),
            *(["parity"] if self.parity not in (None, *PARITIES) else []),
            *(["answers"] if self.answers not in ANSWERS else []),
            *(["placement"] if self.placement not in PLACEMENTS else []),
            *(["retries"] if self.retries < 0 else []),
            *(["patience"] if self.patience < 1 else []),
            *(["min_accuracy"] if not self._share() else []),
        ]
        if self.deadline is not None and not (
            isinstance(self.deadline, int | float) and self.deadline >= 0
        ):
            wrong.append("deadline")
        if wrong:
            told = ", ".join(f"{name} = {getattr(self, name)!r}" for name in wrong)
            raise JobError(
                f"{told}: window and threads start at 1 (threads may be 'auto'), patience at 1, "
                "retries at 0; min_accuracy is a share above 0, limits are positive seconds, "
                "deadline is seconds or None; wire is "
                f"one of {', '.join(WIRES)}, parity None or one of {', '.join(PARITIES)}, "
                f"answers of {', '.join(ANSWERS)}, placement of {', '.join(PLACEMENTS)}"
            )

        if self.min_accuracy is not None and self.deadline == 0:
            raise JobError(
                f"min_accuracy = {self.min_accuracy:g} with deadline = 0: at the deadline any "
                "answer will do, and that is at once; raise it or leave it out"
            )

    def _share(self) -> bool:
        return self.min_accuracy is None or 0 < self.min_accuracy <= 1

    def new_deadline(self) -> Deadline:
        """Return a deadline policy of its own for one stage."""
        return Deadline(self.deadline, self.patience)


def _positive(value: int | str) -> bool:
    return isinstance(value, int) and value >= 1
