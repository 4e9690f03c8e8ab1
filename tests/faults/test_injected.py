"""Faults that the job itself injects: the quickstart's own, and silence, which can be repeated."""

from __future__ import annotations

import numpy as np

from digits import Digits
from mpicoded.answer import Mode
from mpicoded.trace import Action


def test_slow_and_crash(start, tmp_path):
    slow = '{kind="slow", rank=2, factor=300.0, start=0.2, stop=0.5}'
    crash = '{kind="crash", rank=7, start=0.6}'
    run = Digits(
        start, tmp_path, "input.limit=300", "gather.deadline=0.05", f"faults=[{slow}, {crash}]"
    )
    run.start()
    run.end(timeout=60)
    compute = run.events(Action.COMPUTE, 2)
    slowed = (compute["query"] >= 60) & (compute["query"] < 150)
    seconds = compute["stop"] - compute["start"]
    assert np.median(seconds[slowed]) > 4 * np.median(seconds[~slowed])
    assert run.events(Action.FAIL)["rank"].tolist() == [7]
    assert run.events(Action.ARRIVE, 7)["query"].max() < 180
    assert (run.load().queries["mode"] == Mode.DEGRADED).any()


def test_silence_strikes_twice_in_the_same_way(start, tmp_path):
    silence = ", ".join(f'{{kind="silence", rank={p}, probability=0.2}}' for p in (2, 5))
    fixed = ("gather.deadline=20.0", "gather.give_up=20.0", "runtime.suspect_after=4.0")
    more = ("input.limit=150", "runtime.window=8", "results.unsplit=false", f"faults=[{silence}]")
    runs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        run = Digits(start, folder, *fixed, *more)
        run.start()
        run.end(timeout=90)
        runs.append(run.load())
    modes, arrived, outputs = (
        [run.queries["mode"] for run in runs],
        [run.queries["arrived"][:, 0] for run in runs],  # (queries, units)
        [run.predictions["output"] for run in runs],
    )
    degraded = modes[0] == Mode.DEGRADED
    assert degraded.sum() > 20
    assert np.array_equal(modes[0], modes[1])
    # With all data here nobody waits for the parity units, which may or may not have come.
    assert np.array_equal(*(a[degraded] for a in arrived))
    assert np.array_equal(*(a[:, :6] for a in arrived))
    assert np.array_equal(*outputs)
