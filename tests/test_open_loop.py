"""Open loops on real ranks: queries are asked on a schedule, and refused when too many wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from digits import Digits
from launching import Running
from many_jobs import LiveRanks
from mpicoded.answer import Mode
from mpicoded.job import Job
from mpicoded.results import Loaded
from mpicoded.study.report import load as its_load

Start = Callable[..., Running]
PACE = 0.03  # s that a query takes each of the two workers
UNCODED = 'code={name="uncoded", k=2}'


def digits(start: Start, folder: Path, queries: int, *sets: str, pace: float = 0.0) -> Digits:
    """Two workers that both are needed for every query."""
    more = (UNCODED, f"input.limit={queries}", *sets)
    return Digits(start, folder, *more, small=True, k=1, pace=pace)


def is_on_schedule(run: Digits, loaded: Loaded) -> None:
    """Queries of one start count as submitted when they were to be asked."""
    seconds = Job.read(run.job, run.sets[1::2]).schedule(loaded.layout.queries)
    began = loaded.queries["submitted"] - seconds
    np.testing.assert_allclose(began, began[0], atol=1e-6)


def has_its_own_answers(loaded: Loaded) -> None:
    """Each query that was answered has its own answer, and no other query's."""
    done = loaded.queries["mode"] == Mode.AVAILABLE
    own, base = (loaded.predictions[name][:, 0] for name in ("output", "base_output"))
    np.testing.assert_allclose(own[done], base[done], atol=1e-4)
    pairs = np.abs(own[done, None] - base[None]).max(axis=2) < 1e-3
    assert pairs.sum() == done.sum(), "no two queries have the same output"
    assert np.isnan(own[~done]).all()


def test_below_capacity_none_is_refused(start: Start, ranks: LiveRanks, tmp_path: Path) -> None:
    sets = ("input.arrivals=poisson", "input.rate=20.0", "runtime.queue=30")
    run = digits(start, tmp_path, 40, *sets)
    run.serve(ranks)
    loaded = run.load()
    is_on_schedule(run, loaded)
    has_its_own_answers(loaded)
    queries = loaded.queries
    parts = sum(queries[name] for name in ("encode", "gather", "decode", "head"))
    assert (queries["latency"] >= parts).all(), "a sojourn is service, and waiting before it"
    told = its_load.load(loaded)
    assert told and len(told.busy) == 3 and all(0 < share < 1 for share in told.busy)
    assert (loaded.attrs["arrivals"], loaded.attrs["rate"]) == ("poisson", 20)
    assert loaded.attrs["queue"] == 30


def test_far_above_capacity_a_short_queue_refuses_the_rest(
    start: Start, ranks: LiveRanks, tmp_path: Path
) -> None:
    sets = ("input.arrivals=constant", "input.rate=200.0", "runtime.queue=2")
    run = digits(start, tmp_path, 120, *sets, pace=PACE)
    ended = run.serve(ranks, Mode.REFUSED)
    loaded = run.load()
    is_on_schedule(run, loaded)
    has_its_own_answers(loaded)
    mode = loaded.queries["mode"]
    assert set(mode.tolist()) == {Mode.AVAILABLE, Mode.REFUSED}
    assert (mode[:4] == Mode.AVAILABLE).all(), "two in flight, and two that wait"
    refused = mode == Mode.REFUSED
    assert not loaded.queries["attempts"][refused].any()
    assert not loaded.queries["arrived"][refused].any()
    told = its_load.load(loaded)
    assert told and told.answered < told.offered / 2
    answered, time = (~refused).sum(), (~refused).sum() / told.answered
    assert 0.3 * time / PACE < answered < time / PACE + 1, "its goodput is the capacity"
    assert "refused" in ended.stdout and "goodput" in ended.stdout


def test_resumed_it_goes_on_in_the_schedule_where_it_was(start: Start, tmp_path: Path) -> None:
    (tmp_path / "seconds.txt").write_text("0\n30\n30.1\n30.1\n30.3\n")
    run = digits(start, tmp_path, 5, f"input.arrivals={tmp_path}/seconds.txt")
    run.start()
    run.wait_until(1)
    run.kill([0])
    run.running.wait(timeout=20)
    run.start("--resume")
    run.end(timeout=60)
    loaded = run.load()
    assert loaded.layout.starts == 2
    submitted = loaded.queries["submitted"] - loaded.cluster["began"][1]
    np.testing.assert_allclose(submitted[1:] - submitted[1], [0, 0.1, 0.1, 0.3], atol=1e-6)
    assert 0 < submitted[1] < 25
    has_its_own_answers(loaded)
