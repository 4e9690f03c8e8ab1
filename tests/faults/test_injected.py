"""Faults that the job itself injects: the quickstart's own, and silence, which can be repeated."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from digits import Digits
from mpicoded.answer import Mode
from mpicoded.trace import Action


def test_slow_and_crash(struck):
    run = struck
    compute = run.events(Action.COMPUTE, 3)
    slowed = (compute["query"] >= 60) & (compute["query"] < 150)
    seconds = compute["stop"] - compute["start"]
    assert np.median(seconds[slowed]) > 4 * np.median(seconds[~slowed])
    assert run.events(Action.FAIL)["rank"].tolist() == [7]
    assert run.events(Action.ARRIVE, 7)["query"].max() < 180
    assert (run.load().queries["mode"] == Mode.DEGRADED).any()


def test_silence_strikes_twice_in_the_same_way(start, ranks, tmp_path):
    silence = [f'{{kind="silence", rank={p}, probability=0.2}}' for p in (2, 5)]
    # so slow that a rank which waits for a core does not fall behind by more than it may
    paces = [f'{{kind="delay", rank={p}, seconds=0.02}}' for p in range(1, 9)]
    fixed = (
        "gather.deadline=20.0",
        "gather.give_up=20.0",
        "runtime.suspect_after=2.0",
        "runtime.placement=fixed",
    )
    faults = f"faults=[{', '.join(silence + paces)}]"
    runs = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        more = ("input.limit=80", "runtime.window=8", "results.unsplit=false", faults)
        run = Digits(start, folder, *fixed, *more)
        run.serve(ranks)
        runs.append(run.load())
    modes, arrived, outputs = (
        [run.queries["mode"] for run in runs],
        [run.queries["arrived"][:, 0] for run in runs],  # (queries, units)
        [run.predictions["output"] for run in runs],
    )
    assert (modes[0] == Mode.DEGRADED).sum() > 20
    # With all data here nobody waits for the parity units, which may or may not have come; and a
    # rank that has fallen behind all the same is given none: then the others decide.
    whole = np.logical_and(*(a[:, :6].all(axis=1) for a in arrived))
    same = whole | (arrived[0] == arrived[1]).all(axis=1)
    assert same.mean() > 0.9
    assert np.array_equal(*(mode[same] for mode in modes))
    assert np.array_equal(*(output[same] for output in outputs))


def test_a_frozen_rank_thaws_and_comes_back(start, ranks, tmp_path):
    freeze = '{kind="freeze", rank=2, start=0.05, seconds=1.0}'
    paces = ", ".join(f'{{kind="delay", rank={p}, seconds=0.02}}' for p in (1, 2))
    run = Digits(start, tmp_path, "input.limit=240", small=True, k=1)
    run.sets[1] = f"faults=[{freeze}, {paces}]"
    run.serve(ranks)
    stood = run.events(Action.FREEZE, 2)
    assert len(stood) == 2, "word of it before and after"
    assert stood["start"][0] == stood["stop"][0]
    assert 0.95 < stood["stop"][1] - stood["start"][1] < 2.0
    computed = run.events(Action.COMPUTE, 2)
    during = (computed["start"] > stood["start"][1]) & (computed["stop"] < stood["stop"][1])
    assert not during.any()
    assert (computed["start"] > stood["stop"][1]).any(), "it works again"
    assert not len(run.events(Action.FAIL))


def test_every_pattern_of_two_silent_workers(start, ranks, tmp_path):
    pattern = '{kind="pattern", missing=2}'
    sets = ("input.limit=56", "runtime.window=1", "runtime.placement=fixed", f"faults=[{pattern}]")
    run = Digits(start, tmp_path, *sets)
    run.serve(ranks)
    queries = run.load().queries
    arrived = queries["arrived"][:, 0].astype(bool)  # (queries, units)
    for query, silent in enumerate(list(combinations(range(1, 9), 2)) * 2):
        answered = run.events(Action.ARRIVE)["rank"][run.events(Action.ARRIVE)["query"] == query]
        assert not set(silent) & set(answered.tolist())
        assert queries["mode"][query] in (Mode.DEGRADED, Mode.AVAILABLE)
        assert arrived[query].sum() == 6, "what the answer was made from"
    silences = run.events(Action.SILENCE)
    assert len(silences) == 2 * 56


def test_a_crash_is_in_the_trace_at_its_time(start, tmp_path):
    crash = '{kind="crash", rank=2, start=0.5}'
    run = Digits(start, tmp_path, "input.limit=60", f"faults=[{crash}]", small=True, k=1)
    run.start()
    run.end(timeout=60)
    struck, noticed = run.events(Action.CRASH, 2), run.events(Action.FAIL, 2)
    assert struck["query"].tolist() == [30]
    assert 0 < noticed["stop"][0] - struck["start"][0] < 1.0
