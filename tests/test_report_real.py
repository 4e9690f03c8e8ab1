"""A real run on nine ranks, with a slow one: its trace, its breakdown, its pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from digits import Digits
from mpicoded.study.report.breakdown import breakdown
from mpicoded.study.report.fault_intervals import fault_intervals
from mpicoded.study.report.figure import draw
from mpicoded.study.report.spans import spans
from mpicoded.study.report.timeline import draw_query
from mpicoded.trace import Action
from test_report_trace import written


def test_tells_where_the_time_of_a_real_run_went(tmp_path: Path, struck: Digits) -> None:
    run = struck.load()
    told = breakdown(run)
    assert len(told.queries) == 300
    np.testing.assert_allclose(told.seconds.sum((1, 2)), told.latency, atol=1e-9)
    assert (told.seconds >= 0).all()
    assert (told.rank > 0).all()  # every stage was ended by a unit that is known
    for phase in ("encode", "send", "compute", "back", "decode", "head"):
        assert 0 < told.share(phase) < 1
    assert all(pace.flops > 1e6 for pace in told.paces)
    ways = spans(run.events)
    ways = ways[~np.isnan(ways["stopped"]) & ~np.isnan(ways["arrived"])]
    # a message may be there long before a busy leader notes down that it was sent
    for before, after in (("posted", "sent"), ("posted", "came"), ("came", "started"),
                          ("started", "stopped"), ("stopped", "arrived")):  # fmt: skip
        assert (ways[before] <= ways[after]).all(), (before, after)
    assert {e.rank for e in fault_intervals(run) if e.action is Action.SLOW} == {3}
    names = {e["name"] for e in written(struck.path)}
    assert {"encode", "decode", "head", "slow", "crash", "fail", "query 299"} <= names
    draw(run, tmp_path / "run.png")
    draw_query(run, 50, tmp_path / "query.png")
