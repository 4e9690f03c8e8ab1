"""What a run leaves behind: folders, files beside the results, segments in /dev/shm."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

from mpicoded.processes import pids, read

SHM = Path("/dev/shm")
SEGMENT = re.compile(r"/dev/shm/(\S+)$", re.MULTILINE)
OFTEN = 0.2  # s between two looks at which segments are the run's


class Leftovers:
    """``folder`` is the run's TMPDIR, ``file`` its results file, alone in its folder.

    Segments count if a process of the run, or of its mpirun, was seen to use one of the same job:
    other jobs of this machine make and leave theirs meanwhile.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder, self.file = folder, file
        self._jobs: set[str] = set()
        self._looked = 0.0

    def look(self, ours: Iterable[int]) -> None:
        """Note, now and then, which segments the processes of the run use."""
        if time.monotonic() > self._looked + OFTEN:
            self._looked = time.monotonic()
            self._jobs |= {_job(name) for name in _mapped(ours)}

    def found(self) -> list[str]:
        """Return what lies about and is used by no living process."""
        names = [path.name for path in sorted(self.folder.glob("mpicoded-*"))]
        names += sorted({path.name for path in self.file.parent.iterdir()} - {self.file.name})
        return [*names, *sorted(self._loose())]

    def remove(self) -> None:
        """Remove the segments, which are memory: a few hundred runs would fill it."""
        for name in self._loose():
            (SHM / name).unlink(missing_ok=True)

    def _loose(self) -> set[str]:
        ours = {each.name for each in SHM.iterdir() if _job(each.name) in self._jobs}
        return ours - _mapped(pids()) if ours else ours


def _job(name: str) -> str:
    """Return what the segments of one job have in common: all but the rank at the end."""
    return name.rpartition(".")[0] or name


def _mapped(users: Iterable[int]) -> set[str]:
    """Return the segments that these processes use."""
    maps = (read(pid, "maps").decode(errors="replace") for pid in users)
    return {name for text in maps for name in SEGMENT.findall(text)}
