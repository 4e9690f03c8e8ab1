"""Progress of a run, read from its results file, without a lock, while the leader writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from mpicoded import seal


@dataclass(frozen=True)
class Progress:
    """``answered`` of ``queries`` have an answer; ``compared`` were run unsplit too.

    ``file`` tells one file of this name from the next: a start of the leader makes a new one.
    ``touched`` changes while ranks are at work (:mod:`mpicoded.results.beat`), answers or not.
    """

    file: tuple[int, int]
    touched: int
    answered: int
    queries: int
    compared: int
    finished: bool

    @property
    def steps(self) -> int:
        """A number that grows as long as the run gets on."""
        return self.answered + self.compared

    def __str__(self) -> str:
        return f"{self.answered} of {self.queries} queries are answered"


def look(path: Path) -> Progress | None:
    """Return the progress, or None where there is no file or it cannot be read just now."""
    try:
        if seal.broken(path):
            return None
        with h5py.File(path, "r", locking=False) as file:
            stat = path.stat()  # once it is open, as a file of NFS is only then looked at anew
            mode, status = file["queries/mode"], file["status"]
            answered = int((mode[:] != _flag(mode, "pending")).sum())
            compared = 0
            if answered == len(mode) and "predictions/base_check" in file:
                compared = int((file["predictions/base_check"][:] != 0).sum())
            finished = int(status[()]) == _flag(status, "finished") and answered == len(mode)
            identity = (stat.st_dev, stat.st_ino)
            return Progress(identity, stat.st_mtime_ns, answered, len(mode), compared, finished)
    except (OSError, KeyError, ValueError, RuntimeError):
        return None


def _flag(dataset: Any, meaning: str) -> int:
    index = dataset.attrs["flag_meanings"].split().index(meaning)
    return int(dataset.attrs["flag_values"][index])
