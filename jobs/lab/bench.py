"""What the experiments of this folder share: a lab, schemes that run in turn, latencies pooled.

An experiment is a list of schemes. Each runs `repeats` times, one after the other in every repeat
(interleaved), every run with its own results file. The first queries of a run warm up and are left
out. Ratios are taken within a repeat; told are their median and their range over the repeats.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mpicoded.answer import Mode
from mpicoded.results import Loaded, load

ROOT = Path(__file__).resolve().parents[2]
WARM = 3  # queries
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
LAB = ("--nodes", "9", "--cpu", "0.2", "--rate", "50mbit", "--vectors", "128")
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#8A8A8A", "#000000")

# What is compared where nodes fail or straggle: name, and the `--set` words.
COMPARED = {
    "uncoded 8": ("code.k=8",),
    "replication 4x2": ('code.name="replication"', "code.k=4", "code.r=4"),
    "learned 6+2": ('code.name="learned"', "code.untrained=true", "code.k=6", "code.r=2"),
}


@dataclass(frozen=True)
class Scheme:
    """One way to run a job: ``sets`` are `--set` words, ``queries`` those that count in a run."""

    name: str
    job: str
    sets: tuple[str, ...] = ()
    ranks: int = 9
    queries: int | None = None  # None: what the command line says
    repeats: int | None = None  # only in the last so many
    warm: int = WARM


@dataclass
class Runs:
    """The runs of one scheme, one a repeat."""

    scheme: Scheme
    files: list[Loaded] = field(default_factory=list)

    def latencies(self) -> list[npt.NDArray[np.float64]]:
        """Seconds of every counted query, by repeat."""
        return [file.queries["latency"][self.scheme.warm :] for file in self.files]

    def percentiles(self) -> npt.NDArray[np.float64]:
        """p50, p95 and p99 of all counted queries."""
        return np.nanpercentile(np.concatenate(self.latencies()), (50, 95, 99))

    def medians(self) -> npt.NDArray[np.float64]:
        """p50 of every repeat."""
        return np.array([np.nanmedian(seconds) for seconds in self.latencies()])

    def modes(self) -> dict[str, int]:
        """Number of answers by mode, warm-up included."""
        mode = np.concatenate([file.queries["mode"] for file in self.files])
        return {m.name.lower(): int((mode == m).sum()) for m in Mode}


def options(experiment: str, **more: dict[str, object]) -> argparse.Namespace:
    """Read the command line that all experiments have."""
    parser = argparse.ArgumentParser(prog=f"python jobs/lab/{experiment}.py")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--queries", type=int, default=40, help="counted queries of a run")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "lab" / experiment)
    parser.add_argument("--plan", action="store_true", help="check all jobs, run nothing")
    parser.add_argument("--plain", action="store_true", help="by mpirun on this machine, no lab")
    for name, how in more.items():
        parser.add_argument(f"--{name}", **how)  # type: ignore[arg-type]
    given = parser.parse_args()
    given.out = given.out.resolve()  # a job's own paths are relative to its file
    return given


@contextmanager
def lab(given: argparse.Namespace, words: Sequence[str] = LAB) -> Iterator[None]:
    """Have a lab while this lasts; one that is up already with these limits is left up."""
    if given.plan or given.plain:
        yield
        return
    had = mpicoded("lab", "status", quiet=True, check=False).returncode == 0
    mpicoded("lab", "up", *words)
    try:
        yield
    finally:
        if not had:
            mpicoded("lab", "down")


def mpicoded(
    *words: str, quiet: bool = False, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a verb of mpicoded in the repository root."""
    command = [sys.executable, "-m", "mpicoded", *words]
    ended = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=quiet)
    if check and ended.returncode:
        print(ended.stdout or "", ended.stderr or "", file=sys.stderr)
        raise SystemExit(f"mpicoded {' '.join(words)} ended with status {ended.returncode}")
    return ended


def interleave(schemes: Sequence[Scheme], given: argparse.Namespace) -> list[Runs]:
    """Run every scheme once a repeat, in turn; files that are complete already are kept."""
    given.out.mkdir(parents=True, exist_ok=True)
    if given.plan:
        for scheme in schemes:
            mpicoded("plan", scheme.job, *_sets(scheme, given.queries))
        raise SystemExit
    runs = [Runs(scheme) for scheme in schemes]
    for repeat in range(given.repeats):
        for each in runs:
            if repeat >= given.repeats - (each.scheme.repeats or given.repeats):
                each.files.append(_run(each.scheme, repeat, given))
    return runs


def _run(scheme: Scheme, repeat: int, given: argparse.Namespace) -> Loaded:
    file = given.out / f"{scheme.name.replace(' ', '-')}-{repeat}.h5"
    if file.exists() and (loaded := load(file)).finished:
        return loaded
    sets = (*_sets(scheme, given.queries), "--set", f'results.file="{file}"')
    began = time.perf_counter()
    verb = ("launch",) if given.plain else ("lab", "run")
    mpicoded(*verb, scheme.job, "-n", str(scheme.ranks), *sets, "--resume", quiet=True)
    runs = Runs(scheme, [load(file)])
    p50, p95, p99 = runs.percentiles()
    print(
        f"{repeat + 1}/{given.repeats} {scheme.name}: p50 {1e3 * p50:.0f} ms, p95 {1e3 * p95:.0f}, "
        f"p99 {1e3 * p99:.0f}; {time.perf_counter() - began:.0f} s",
        flush=True,
    )
    return runs.files[0]


def _sets(scheme: Scheme, queries: int) -> tuple[str, ...]:
    limit = (scheme.queries or queries) + scheme.warm
    words = ("results.unsplit=false", f"input.limit={limit}", *scheme.sets)
    return tuple(part for word in words for part in ("--set", word))


def ratio(runs: Runs, to: Runs) -> tuple[float, float, float]:
    """Median, least and largest over the repeats of p50 / p50 of ``to``."""
    both = min(len(runs.files), len(to.files))
    ratios = runs.medians()[-both:] / to.medians()[-both:]
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def tell(all_runs: Sequence[Runs], to: Runs | None = None) -> None:
    """Print a line a scheme."""
    to = to or all_runs[0]
    for runs in all_runs:
        p50, p95, p99 = 1e3 * runs.percentiles()
        middle, low, high = ratio(runs, to)
        count = sum(map(len, runs.latencies()))
        modes = ", ".join(f"{n} {name}" for name, n in runs.modes().items() if n)
        print(
            f"{runs.scheme.name:28s} p50 {p50:6.0f} ms  p95 {p95:6.0f}  p99 {p99:6.0f}  n {count}"
            f"  / {to.scheme.name}: {middle:.3f} ({low:.3f} … {high:.3f})  {modes}"
        )


def draw(all_runs: Sequence[Runs], path: Path, title: str) -> None:
    """Draw the distributions of latency of all schemes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
        _bars(left, all_runs)
        _curves(right, all_runs)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
        figure.savefig(path, dpi=150)
    print(f"drawn: {path}")


def _bars(axes: matplotlib.axes.Axes, all_runs: Sequence[Runs]) -> None:
    """p50 as a bar, a line from there to p99, the number beside it."""
    for row, runs in enumerate(all_runs):
        p50, _, p99 = 1e3 * runs.percentiles()
        colour, share = _looks(all_runs)[runs.scheme.name]
        axes.barh(row, p50, color=colour, alpha=share, height=0.6)
        axes.plot([p50, p99], [row, row], color="#444444", linewidth=1.2)
        axes.plot(p99, row, "|", color="#444444", markersize=9)
        axes.text(p99, row, f"  {p50:.0f} | {p99:.0f}", va="center", fontsize=8)
    axes.set_yticks(range(len(all_runs)), [runs.scheme.name for runs in all_runs])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("latency, ms: p50 (bar) to p99 (mark)")


def _looks(all_runs: Sequence[Runs]) -> dict[str, tuple[str, float]]:
    """Return a colour for each scheme, paler with every further thing that happens to it."""
    families: dict[str, list[str]] = {}
    for runs in all_runs:
        families.setdefault(runs.scheme.name.split(",")[0], []).append(runs.scheme.name)
    return {
        name: (colour, 1 - 0.3 * place)
        for colour, names in zip(COLOURS * len(families), families.values(), strict=False)
        for place, name in enumerate(names)
    }


def _curves(axes: matplotlib.axes.Axes, all_runs: Sequence[Runs]) -> None:
    for runs in all_runs:
        seconds = np.sort(np.concatenate(runs.latencies()))
        share = (np.arange(len(seconds)) + 1) / len(seconds)
        colour, alpha = _looks(all_runs)[runs.scheme.name]
        axes.step(1e3 * seconds, share, color=colour, alpha=alpha, where="post")
    axes.set_xscale("log")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which(lambda ms, _: f"{ms:.0f}")  # 600, not 6 x 10^2
    axes.set_xlabel("latency, ms (log)")
    axes.set_ylabel("share of queries")
    axes.grid(color="#E4E4E4", linewidth=0.6, which="both")
    axes.set_title("colours as at the left", fontsize=8, loc="right")
