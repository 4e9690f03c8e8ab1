"""Small runs of the digits on real ranks, watched through their results files, for fault tests."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launching import Ended, Running
from many_jobs import LiveRanks, Outcome
from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded, load
from mpicoded.trace import Action

ROOT = Path(__file__).parents[1]
QUICKSTART = ROOT / "jobs" / "quickstart.toml"  # 8 workers: six shards and two parity units
# the begin of many jobs; what follows it is still of [input]
UNTRAINED = """\
[model]
name = "lenet5"
[input]
data = "digits"
size = [32, 32]"""
BASE = ROOT / "data" / "lenet5-digits.safetensors"
TRAINED = UNTRAINED.replace("[input]", f'weights = "{BASE}"\n[input]')
SMALL = f"""\
seed = 7
{TRAINED}
[plan]
split = "width"
stages = ["pool2"]
[code]
name = "replication"  # 2 k workers: any one of them may be missing
k = {{k}}
r = {{k}}
[runtime]
window = 2
"""


class Digits:
    """One job on its file; ``start`` may be called again, to resume it.

    ``pace`` is the least time that a query takes, in seconds: every worker's answers are delayed.
    """

    def __init__(
        self,
        launch: Callable[..., Running],
        folder: Path,
        *sets: str,
        small: bool = False,
        k: int = 2,
        pace: float = 0.0,
    ) -> None:
        self.launch = launch
        self.path = folder / "run.h5"
        self.job, self.n = QUICKSTART, 9
        if small:
            self.job, self.n = folder / "small.toml", 2 * k + 1
            self.job.write_text(SMALL.format(k=k))
        delays = [f'{{kind="delay", rank={p}, seconds={pace}}}' for p in range(1, self.n) if pace]
        own = (f"faults=[{', '.join(delays)}]", f"results.file={self.path}", "results.flush=0")
        self.sets = [word for each in (*own, *sets) for word in ("--set", each)]
        self.began = float("inf")  # time.perf_counter() at second 0 of the run, or a little later

    def start(self, *flags: str, **how: Any) -> Running:
        """Start the job; ``how`` is what the fixture ``start`` takes."""
        args = ["-m", "mpicoded", "run", self.job, *self.sets, *flags]
        self.running: Running = self.launch(self.n, args, cwd=ROOT, **how)
        return self.running

    def load(self) -> Loaded:
        """What the file holds now."""
        return load(self.path)

    def answered(self) -> int:
        """How many queries the file holds an answer of; 0 as long as it cannot be read."""
        if not self.path.exists():
            return 0
        try:
            queries = self.load().queries
        except (ResultsError, KeyError):
            return 0
        done = queries["mode"] != Mode.PENDING
        if done.any():
            self.began = min(self.began, time.perf_counter() - queries["answered"][done].max())
        return int(done.sum())

    def wait_until(self, answered: int, timeout: float = 60.0) -> None:
        """Wait until so many queries are answered."""
        limit = time.perf_counter() + timeout
        while self.answered() < answered:
            alive = self.running.process.poll() is None
            assert alive and time.perf_counter() < limit, self.running.text()
            time.sleep(0.01)

    def kill(self, ranks: Iterable[int]) -> float:
        """SIGKILL these ranks; return when."""
        pids = self.running.ranks()
        now = time.perf_counter()
        for rank in ranks:
            os.kill(pids[rank], signal.SIGKILL)
        return now

    def end(self, timeout: float) -> Ended:
        """Wait for the end; assert that all is answered and nobody is left."""
        ended = self.running.wait(timeout)
        assert (ended.status, ended.left) == (0, ()), (
            f"status {ended.status}, left {ended.left}\n{ended.output}"
        )
        self.all_is_answered()
        return ended

    def serve(self, ranks: LiveRanks, *more: Mode) -> Outcome:
        """Run the job on ranks that stay; all is answered, or of ``more``."""
        ended = ranks.run(self.n, "run", self.job, *self.sets, cwd=ROOT)
        assert ended.status == 0, ended.output
        self.all_is_answered(*more)
        return ended

    def all_is_answered(self, *more: Mode) -> None:
        modes = self.load().queries["mode"]
        assert set(modes.tolist()) <= {Mode.AVAILABLE, Mode.DEGRADED, *more}, np.bincount(modes)

    def events(self, action: Action, rank: int | None = None) -> npt.NDArray[np.void]:
        """The events of one kind, of one rank or of all."""
        events = self.load().events
        mine = events["action"] == action
        return events[mine if rank is None else mine & (events["rank"] == rank)]


def all_are_the_base_models(run: Digits) -> None:
    """Assert that every query has an answer of its own, the base model's."""
    loaded = run.load()
    assert set(loaded.queries["mode"].tolist()) == {Mode.AVAILABLE}
    assert np.array_equal(loaded.predictions["class"], loaded.predictions["base_class"])


def three_of_four_die(run: Digits, draw: random.Random) -> None:
    """Kill ranks one after the other at moments that are drawn; nothing is lost."""
    run.start()
    killed = draw.sample(range(1, 5), 3)
    for i, rank in enumerate(killed):
        run.wait_until(40 + 60 * i + draw.randrange(20))
        time.sleep(draw.uniform(0, 0.02))
        run.kill([rank])
    run.end(timeout=60)
    assert {int(rank) for rank in run.events(Action.FAIL)["rank"]} == set(killed)
    all_are_the_base_models(run)


def two_are_stopped_and_go_on(run: Digits, draw: random.Random, ft: bool = True) -> None:
    """Stop ranks 2 and 4 for a while at moments that are drawn; nothing is lost."""
    run.start(ft=ft)
    for answered, rank in ((40, 2), (120, 4)):
        run.wait_until(answered)
        time.sleep(draw.uniform(0, 0.02))
        pid = run.running.ranks()[rank]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(1.5)
        os.kill(pid, signal.SIGCONT)
    run.end(timeout=60)
    assert {int(rank) for rank in run.events(Action.SUSPECT)["rank"]} >= {2, 4}
    all_are_the_base_models(run)
