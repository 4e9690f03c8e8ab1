"""The exact code on real ranks: silent workers change nothing but the last digits."""

from __future__ import annotations

import numpy as np
import pytest

from digits import ROOT, Digits
from mpicoded.answer import Mode
from mpicoded.trace import Action

SETS = (
    "input.limit=28",
    "runtime.window=1",
    "runtime.placement=fixed",
    "runtime.suspect_after=4.0",
)


@pytest.mark.parametrize("split", ["width", "channels"])
def test_every_two_silent_workers(start, ranks, tmp_path, split):
    pattern = '{kind="pattern", missing=2}'
    run = Digits(start, tmp_path, *SETS, f"plan.split={split}", f"faults=[{pattern}]")
    run.job = ROOT / "jobs" / "mds.toml"
    run.serve(ranks)
    loaded = run.load()
    outputs, base = (loaded.predictions[name] for name in ("output", "base_output"))
    assert np.abs(outputs - base).max() < 1e-4 * np.abs(base).max()
    assert len(run.events(Action.SILENCE)) > 28, "two workers in every query and stage"
    arrived = loaded.queries["arrived"].astype(bool)  # (queries, stages, units)
    assert (arrived.sum(2) == 6).all()
    decoded = ~arrived[:, :, :6].all(2)  # a rank may be suspect for a while, and have no unit
    assert decoded.sum() > 28, "of 2 x 27 patterns with a data unit"
    assert set(loaded.queries["mode"].tolist()) <= {Mode.AVAILABLE, Mode.DEGRADED}


def test_a_silent_worker_of_all_queries(start, ranks, tmp_path):
    silence = '{kind="silence", rank=2}'
    code = ("code.k=2", "code.r=1")
    run = Digits(start, tmp_path, "input.limit=40", *code, f"faults=[{silence}]")
    run.job, run.n = ROOT / "jobs" / "mds.toml", 4
    run.serve(ranks)
    loaded = run.load()
    outputs, base = (loaded.predictions[name] for name in ("output", "base_output"))
    assert np.abs(outputs - base).max() < 1e-4 * np.abs(base).max()
    assert not len(run.events(Action.ARRIVE, 2))
