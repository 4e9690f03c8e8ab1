"""Limits of CPU and memory: control groups, version 1 or 2, whichever the machine has."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from mpicoded import processes
from mpicoded.errors import LabError

MOUNTS = Path("/proc/self/mountinfo")
PERIOD = 10_000  # us; short, so that a pause for want of quota is short
LEAST = 1_000  # us; the kernel takes no smaller quota
LONGEST = 1_000_000  # us; nor a longer period
NEEDED = ("cpu", "cpuacct", "memory")
WEIGHTS = {1: ("cpu.shares", 1024, 262_144), 2: ("cpu.weight", 100, 10_000)}  # usual, highest
END_LIMIT = 5.0  # s


def quota(share: float) -> tuple[int, int]:
    """Return (quota, period) in us of a ``share`` of a core, the period as short as can be."""
    period = min(max(PERIOD, ceil(LEAST / share)), LONGEST)
    return max(round(period * share), LEAST), period


@dataclass(frozen=True)
class Group:
    """The control group of one node: one folder a controller (all the same in version 2)."""

    version: int
    folders: Mapping[str, Path]

    def create(self) -> None:
        """Make the folders."""
        for folder in set(self.folders.values()):
            folder.mkdir(exist_ok=True)

    def enter(self, pid: int) -> None:
        """Put a process, with its children to come, under the limits."""
        for folder in set(self.folders.values()):
            (folder / "cgroup.procs").write_text(str(pid))

    def limit_cpu(self, share: float | None) -> None:
        """Let the group use ``share`` of a core; None lifts the limit."""
        folder = self.folders["cpu"]
        if self.version == 2:
            text = "max" if share is None else "{} {}".format(*quota(share))
            (folder / "cpu.max").write_text(text)
            return
        # A quota of -1 first: the kernel refuses a pair that is odd for a moment.
        (folder / "cpu.cfs_quota_us").write_text("-1")
        if share is not None:
            amount, period = quota(share)
            (folder / "cpu.cfs_period_us").write_text(str(period))
            (folder / "cpu.cfs_quota_us").write_text(str(amount))

    def limit_memory(self, count: int | None) -> None:
        """Let the group hold ``count`` bytes; None lifts the limit."""
        name = "memory.max" if self.version == 2 else "memory.limit_in_bytes"
        none = "max" if self.version == 2 else "-1"
        try:
            (self.folders["memory"] / name).write_text(none if count is None else str(count))
        except OSError as error:  # what the processes hold now cannot be pushed out
            raise LabError(f"memory limit of {count} bytes: {error.strerror}") from None

    def cpu_limit(self) -> float | None:
        """Return the share of a core in force; None if there is no limit."""
        folder = self.folders["cpu"]
        if self.version == 2:
            amount, period = (folder / "cpu.max").read_text().split()
        else:
            amount = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return None if amount in ("max", "-1") else int(amount) / int(period)

    def cpu_seconds(self) -> float:
        """Return the CPU time used since the group was made."""
        if self.version == 2:
            words = (self.folders["cpu"] / "cpu.stat").read_text().split()
            return int(words[words.index("usage_usec") + 1]) / 1e6
        return int((self.folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9

    def memory(self) -> int:
        """Return bytes held now."""
        name = "memory.current" if self.version == 2 else "memory.usage_in_bytes"
        return int((self.folders["memory"] / name).read_text())

    def pids(self) -> list[int]:
        """Return the processes of the group."""
        return sorted(pids(self.folders.values()))

    def kill(self) -> None:
        """SIGKILL every process, and those they start meanwhile; return when they are gone."""
        kill_all(self.folders.values())


@dataclass(frozen=True)
class Cgroups:
    """Where the controllers are mounted: version 1 has a tree for each, version 2 one for all."""

    version: int
    roots: Mapping[str, Path]

    def group(self, lab: str, node: str) -> Group:
        """Return the group of one node; :meth:`Group.create` makes it."""
        folders = {name: root / lab / node for name, root in self.roots.items()}
        return Group(self.version, folders)

    def delegate(self, lab: str) -> None:
        """Make the lab's own folder; version 2 wants controllers passed down to it."""
        for folder in set(self.roots.values()):
            (folder / lab).mkdir(exist_ok=True)
            if self.version == 2:
                for parent in (folder, folder / lab):
                    (parent / "cgroup.subtree_control").write_text("+cpu +memory")

    def weigh(self, lab: str, processes: int | None) -> None:
        """Let a lab count as so many processes where cores are short; None: before all others."""
        # a node that waits for its quota because others use the cores is no Pi
        name, one, most = WEIGHTS[self.version]
        weight = most if processes is None else min(one * processes, most)
        (self.roots["cpu"] / lab / name).write_text(str(weight))

    def groups(self, lab: str) -> list[Path]:
        """Return every folder that a lab has, the inner ones first."""
        tops = [root / lab for root in sorted(set(self.roots.values()))]
        tops = [top for top in tops if top.is_dir()]
        return [*(child for top in tops for child in top.iterdir() if child.is_dir()), *tops]

    def remove(self, lab: str) -> None:
        """Kill all processes in the lab's groups and remove these; nothing there is fine."""
        for folder in self.groups(lab):
            kill_all([folder])
            _remove(folder)


def find(mounts: Path = MOUNTS) -> Cgroups:
    """Return where the controllers are; LabError if this machine has them not."""
    one: dict[str, Path] = {}
    two: Path | None = None
    for line in mounts.read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split()[:3]
        place = Path(before.split()[4].replace("\\040", " "))
        if kind == "cgroup":
            one |= {name: place for name in options.split(",") if name in NEEDED}
        elif kind == "cgroup2":
            two = place
    if all(name in one for name in NEEDED):
        return Cgroups(1, one)
    controllers = _read(two / "cgroup.controllers").split() if two else []
    missing = [name for name in ("cpu", "memory") if name not in controllers]
    if two and not missing:
        return Cgroups(2, dict.fromkeys(NEEDED, two))
    raise LabError(
        f"this machine has no control groups for {' and '.join(missing)}; on a Raspberry Pi add "
        "cgroup_enable=memory to /boot/firmware/cmdline.txt and start it anew"
    )


def pids(folders: Iterable[Path]) -> set[int]:
    """Return the processes in any of ``folders``."""
    words = [word for folder in folders for word in _read(folder / "cgroup.procs").split()]
    return {int(word) for word in words} - {0}  # 0 is one of another pid namespace


def kill_all(folders: Iterable[Path]) -> None:
    """SIGKILL all processes in ``folders`` until none is left; LabError if one stays."""
    places = set(folders)
    if left := processes.kill_all(lambda: pids(places), END_LIMIT):
        raise LabError(f"processes {sorted(left)} do not end {END_LIMIT:g} s after SIGKILL")


def _remove(folder: Path) -> None:
    """Remove a group; the kernel may need a moment after its last process has gone."""
    limit = time.monotonic() + END_LIMIT
    while folder.exists():
        try:
            folder.rmdir()
        except OSError as error:
            if time.monotonic() > limit:
                raise LabError(f"cannot remove {folder}: {error.strerror}") from None
            time.sleep(0.01)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
