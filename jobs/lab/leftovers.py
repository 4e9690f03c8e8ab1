"""What a run leaves behind: folders, files beside the results, segments in /dev/shm."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from started import read

SHM = Path("/dev/shm")
OFTEN = 1.0  # s between two looks at who uses the segments
GRACE = 2.0  # s: a segment may have been made, but not be mapped yet


class Leftovers:
    """Everything new since this was made, less what belongs to other jobs of this machine.

    ``folder`` is the run's TMPDIR, ``file`` its results file, alone in its folder.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder, self.file = folder, file
        self._before = _segments()
        self._others: set[str] = set()  # jobs
        self._looked = 0.0

    def look(self, ours: Iterable[int]) -> None:
        """Note which new segments other jobs use, now and then; ``ours`` are the run's pids."""
        if time.monotonic() < self._looked + OFTEN:
            return
        self._looked = time.monotonic()
        new = _segments() - self._before
        if new:
            self._others |= {_job(name) for name in _mapped(new, set(ours))}

    def found(self) -> list[str]:
        """Return what lies about and is used by no living process."""
        names = [path.name for path in sorted(self.folder.glob("mpicoded-*"))]
        names += sorted({path.name for path in self.file.parent.iterdir()} - {self.file.name})
        return [*names, *sorted(self._loose())]

    def _loose(self) -> set[str]:
        end = time.monotonic() + GRACE
        while True:
            new = {name for name in _segments() - self._before if _job(name) not in self._others}
            used = {_job(name) for name in _mapped(new, set())} if new else set()
            loose = {name for name in new if _job(name) not in used}
            if not loose or time.monotonic() > end:
                return loose
            time.sleep(0.2)


def _segments() -> set[str]:
    """Return the segments of this user."""
    found = set()
    for path in SHM.iterdir():
        try:
            if path.stat().st_uid == os.getuid():
                found.add(path.name)
        except OSError:
            continue
    return found


def _job(name: str) -> str:
    """Return what the segments of one job have in common: all but the rank at the end."""
    return name.rpartition(".")[0] or name


def _mapped(names: Iterable[str], without: set[int]) -> set[str]:
    """Return those that are mapped by a process, ``without`` these."""
    pids = {int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()} - without
    texts = [text for pid in pids if str(SHM) in (text := read(pid, "maps"))]
    return {name for name in names if any(f"{SHM}/{name}" in text for text in texts)}
