"""Where the time goes: made-up traces whose phases are known, and sums that must come out."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Layout, Loaded, Results, load
from mpicoded.study.report.breakdown import Breakdown, breakdown, render_breakdown
from mpicoded.study.report.phases import ORDER, PHASES
from mpicoded.study.report.spans import spans
from mpicoded.trace import Action, Trace
from test_report import served, small

# One query of one stage; rank 2 ends it:
#
#     leader   submitted 0   encode 0.9-1.0   send 1.0-1.1, 1.1-1.2        decode 1.92-1.95
#     rank 1                                  came 1.15  compute 1.2-1.3   arrived 1.5
#     rank 2                                  came 1.3   compute 1.4-1.7   arrived 1.9
#     leader   head 1.96-1.98   answered 2.0
ONE = {"rank": 1, "query": 0, "stage": 0, "unit": 0}
TWO = {"rank": 2, "query": 0, "stage": 0, "unit": 1}
LEADER = {"query": 0, "stage": 0}
TRACE: list[tuple[Action, float, float, dict[str, int]]] = [
    (Action.ENCODE, 0.9, 1.0, LEADER),
    (Action.SEND, 1.0, 1.1, {**ONE, "nbytes": 1000}),
    (Action.SEND, 1.1, 1.2, {**TWO, "nbytes": 3000}),
    (Action.QUEUE, 1.15, 1.2, ONE),
    (Action.COMPUTE, 1.2, 1.3, ONE),
    (Action.ARRIVE, 1.0, 1.5, {**ONE, "nbytes": 100}),
    (Action.QUEUE, 1.3, 1.4, TWO),
    (Action.COMPUTE, 1.4, 1.7, TWO),
    (Action.ARRIVE, 1.0, 1.9, {**TWO, "nbytes": 300}),
    (Action.DECODE, 1.92, 1.95, LEADER),
    (Action.HEAD, 1.96, 1.98, LEADER),
]
EXPECTED = {"admit": 0.9, "encode": 0.1, "send": 0.2, "out": 0.1, "queue": 0.1, "compute": 0.3,
            "back": 0.2, "idle": 0.05, "decode": 0.03, "head": 0.02}  # fmt: skip


def loaded(path: Path, trace: list[Any] = TRACE, **how: Any) -> Loaded:
    """Return that query as a results file has it; ``arrived`` says which units were used."""
    events = Trace()
    for action, start, stop, about in trace:
        events.add(action, start, stop, **about)
    answer = served(0, Mode.AVAILABLE, latency=2.0)
    answer = dataclasses.replace(answer, arrived=np.array([how.pop("arrived", [True, True])]))
    with small(path, [answer], queries=1, **how) as results:
        results.add_events(events.drain())
    return load(path)


def phases(told: Breakdown) -> dict[str, float]:
    sums = {phase: float(told.seconds[:, :, number].sum()) for phase, number in ORDER.items()}
    return {phase: round(seconds, 9) for phase, seconds in sums.items() if seconds > 1e-12}


def text(told: Breakdown) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(render_breakdown(told))
    return out.getvalue()


def test_phases_are_those_of_the_unit_that_ended_the_stage(tmp_path: Path) -> None:
    told = breakdown(loaded(tmp_path / "run.h5"))
    assert phases(told) == EXPECTED
    assert (told.rank.item(), told.unit.item()) == (2, 1)
    assert told.seconds.sum() == pytest.approx(2.0, abs=1e-12)
    assert told.share("admit") == pytest.approx(0.45)
    assert told.median("compute") == pytest.approx([0.3, 0.3])
    assert told.stages.item() == pytest.approx(2.0 - 0.9 - 0.02)


def test_other_queries_keep_the_leader_busy(tmp_path: Path) -> None:
    other = (Action.HEAD, 1.905, 1.915, {"query": -1, "stage": 0})  # between arrival and decoding
    told = breakdown(loaded(tmp_path / "run.h5", [*TRACE, other]))
    assert phases(told) == {**EXPECTED, "busy": 0.01, "idle": 0.04}


def test_a_stage_without_all_its_data_waited_for_it(tmp_path: Path) -> None:
    """Unit 1 came after decoding began; from the arrival of unit 0 on it was waited for."""
    late = [e for e in TRACE if e[0] is not Action.ARRIVE or e[3]["rank"] == 1]
    late.append((Action.LATE, 1.0, 1.99, TWO))
    job = '[model]\nname = "x"\n[code]\nname = "replication"\nk = 2\nr = 1\n'
    told = breakdown(loaded(tmp_path / "run.h5", late, arrived=[True, False], job_text=job))
    assert told.rank.item() == 1
    expected = {**EXPECTED, "send": 0.1, "out": 0.05, "queue": 0.05, "compute": 0.1, "wait": 0.42}
    assert phases(told) == {**expected, "idle": 0.03}


def test_a_missing_parity_unit_is_not_waited_for(tmp_path: Path) -> None:
    job = '[model]\nname = "x"\n[code]\nname = "replication"\nk = 1\nr = 1\n'
    told = breakdown(loaded(tmp_path / "run.h5", arrived=[True, False], job_text=job))
    assert "wait" not in phases(told)
    assert phases(told)["idle"] == pytest.approx(0.45)


def test_a_unit_that_was_sent_again_was_waited_for_before(tmp_path: Path) -> None:
    """Rank 2 said nothing; its unit went to rank 1 at 1.5 and was here at 1.9."""
    kept = [e for e in TRACE if e[3].get("rank") != 2 or e[0] is Action.SEND]
    again = {**TWO, "rank": 1}
    more = [(Action.RESEND, 1.5, 1.55, again), (Action.QUEUE, 1.6, 1.6, again)]
    more += [(Action.COMPUTE, 1.6, 1.8, again), (Action.ARRIVE, 1.0, 1.9, again)]
    told = breakdown(loaded(tmp_path / "run.h5", [*kept, *more]))
    expected = {**EXPECTED, "wait": 0.5, "send": 0.05, "out": 0.05, "compute": 0.2, "back": 0.1}
    del expected["queue"]
    assert phases(told) == expected


def test_what_the_leader_did_alone_is_its_head(tmp_path: Path) -> None:
    told = breakdown(loaded(tmp_path / "run.h5", [(Action.HEAD, 0.5, 1.9, LEADER)]))
    assert phases(told) == {"idle": 0.6, "head": 1.4}
    assert told.rank.item() == -1
    assert told.paces == ()
    assert "wire" not in text(told)


def test_flows_are_bytes_over_the_time_they_took(tmp_path: Path) -> None:
    (flow,) = breakdown(loaded(tmp_path / "run.h5")).flows
    assert (flow.bytes_out, flow.bytes_back) == (4000, 400)
    assert flow.rate_out == pytest.approx(np.median([1000 / 0.05, 3000 / 0.1]))
    assert flow.rate_back == pytest.approx(np.median([100 / 0.2, 300 / 0.2]))
    assert flow.all_rate_out == pytest.approx(4000 / 0.3)  # 1.0 to 1.3
    assert flow.all_rate_back == pytest.approx(400 / 0.6)  # 1.3 to 1.9


def test_paces_are_flops_of_the_plan_over_seconds(tmp_path: Path) -> None:
    run = loaded(tmp_path / "run.h5")
    told = breakdown(dataclasses.replace(run, plan={"flops": np.array([[10**9, 6 * 10**9]])}))
    assert [(p.rank, p.units) for p in told.paces] == [(1, 1), (2, 1)]
    assert [p.seconds for p in told.paces] == pytest.approx([0.1, 0.3])
    assert [p.flops for p in told.paces] == pytest.approx([1e10, 2e10])
    assert np.isnan([p.flops for p in breakdown(run).paces]).all()  # the file has no plan
    assert "GFLOP/s" in text(told)


def test_predictions_stand_beside_what_was_measured(tmp_path: Path) -> None:
    run = loaded(tmp_path / "run.h5")
    assert breakdown(run).predicted is None
    assert "predicted" not in text(breakdown(run))
    plan = {"predicted": np.array([0.54]), "predicted_latency": np.array(1.0), "bound": np.nan}
    told = breakdown(dataclasses.replace(run, plan={**run.plan, **plan}))
    assert told.predicted == pytest.approx([0.54])
    lines = [line.split() for line in text(told).splitlines()]
    assert ["0", "540", "ms", "1,080", "ms", "2.00"] in lines
    assert ["latency", "1,000", "ms", "2,000", "ms", "2.00"] in lines


def test_table_names_every_phase_and_fits(tmp_path: Path) -> None:
    shown = text(breakdown(loaded(tmp_path / "run.h5")))
    for phase in EXPECTED:
        assert PHASES[phase] in shown
    assert PHASES["busy"] not in shown  # there was none
    assert "wire back" in shown
    assert "100 ms" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown


def random_run(path: Path, seed: int, queries: int = 30, stages: int = 3) -> Loaded:
    """Return a run whose times are random: clocks differ, ranks die, units go again."""
    rng = np.random.default_rng(seed)
    trace, units = Trace(), 4
    given: dict[str, Any] = {"job_text": "", "seed": 0, "attrs": {}, "plan": [], "plan_table": ""}
    results = Results.create(
        path, Layout(queries, stages, units, (3,), ranks=5), hosts=["a"] * 5, flush=60.0, **given
    )
    for query in range(queries):
        now = query * 0.5
        arrived = rng.random((stages, units)) < 0.8
        for stage in range(stages):
            now = _random_stage(trace, rng, query, stage, now, arrived[stage])
        trace.add(Action.HEAD, now, now + 0.01, query=query, stage=stages - 1)
        answer = served(query, Mode.AVAILABLE)
        times = {"submitted": query * 0.5 - 0.1, "answered": now + 0.02}
        seconds = np.zeros((stages, units), np.float32)
        results.add(dataclasses.replace(answer, arrived=arrived, seconds=seconds, **times))
    results.add_events(trace.drain())
    results.close(finished=True)
    return load(path)


def _random_stage(
    trace: Trace, rng: np.random.Generator, query: int, stage: int, now: float, arrived: Any
) -> float:
    trace.add(Action.ENCODE, now, now + 0.01, query=query, stage=stage)
    now, last = now + 0.01, now + 0.01
    for unit, here in enumerate(arrived):
        where = {"rank": unit + 1, "query": query, "stage": stage, "unit": unit}
        trace.add(Action.SEND, now, now + 0.001, **where, nbytes=10)
        now += 0.001
        if here:
            came, queued, work, back = now + rng.exponential(0.01, 4).cumsum()
            skew = rng.normal(0, 0.005)
            trace.add(Action.QUEUE, came + skew, queued + skew, **where)
            trace.add(Action.COMPUTE, queued + skew, work + skew, **where)
            trace.add(Action.ARRIVE, now, back, **where, nbytes=20)
            last = max(last, back)
    start = last + rng.exponential(0.005)
    trace.add(Action.DECODE, start, start + 0.002, query=query, stage=stage)
    return start + 0.002


@pytest.mark.parametrize("seed", range(5))
def test_phases_of_any_run_sum_up_to_its_latencies(tmp_path: Path, seed: int) -> None:
    run = random_run(tmp_path / "run.h5", seed)
    told = breakdown(run)
    assert told.seconds.shape == (30, 3, len(PHASES))
    assert (told.seconds >= 0).all()
    np.testing.assert_allclose(told.seconds.sum((1, 2)), told.latency, atol=1e-12)
    some = run.queries["arrived"].any(2)
    np.testing.assert_array_equal(told.rank >= 0, some)
    assert sum(told.share(phase) for phase in PHASES) == pytest.approx(1)
    ways = spans(run.events)
    assert len(ways) == 30 * 3 * 4
    assert (ways["fate"] > 0).sum() == run.queries["arrived"].sum()
    assert max(map(len, text(told).splitlines())) <= 80


def test_an_answer_belongs_to_the_last_post_before_it(tmp_path: Path) -> None:
    """The same unit went to the same rank twice; what came first was of the second post."""
    trace = [(Action.SEND, 1.0, 1.1, ONE), (Action.RESEND, 2.0, 2.1, ONE)]
    trace += [(Action.QUEUE, 2.2, 2.3, ONE), (Action.COMPUTE, 2.3, 2.4, ONE)]
    first, second = spans(loaded(tmp_path / "run.h5", trace).events)
    assert np.isnan(first["came"])
    assert second["came"] == 2.2
    assert second["again"]


def test_without_answers_or_trace_is_an_error(tmp_path: Path) -> None:
    small(tmp_path / "none.h5", []).close(finished=False)
    with pytest.raises(ResultsError, match="no query has an answer"):
        breakdown(load(tmp_path / "none.h5"))
    small(tmp_path / "bare.h5", [served(0, Mode.AVAILABLE)]).close(finished=False)
    with pytest.raises(ResultsError, match="has no trace"):
        breakdown(load(tmp_path / "bare.h5"))
