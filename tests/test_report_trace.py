"""The trace as Chrome trace events: parsed again, and held against the format's own rules."""

from __future__ import annotations

import gzip
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.results import load
from mpicoded.study.report.trace_events import write_trace
from mpicoded.trace import Action, Trace
from running import DEAD, RANKS, write_run
from test_report import served, small

Event = dict[str, Any]
TINY = 1e-3  # µs, to which times are rounded


def check(text: str) -> list[Event]:
    """Hold a trace against what Perfetto needs of it; return its events."""
    whole = json.loads(text)
    events: list[Event] = whole["traceEvents"]
    names = [e for e in events if e["ph"] == "M"]
    timed = events[len(names) :]
    assert all(e["ph"] != "M" for e in timed), "names come first"
    assert all(a["ts"] <= b["ts"] for a, b in zip(timed, timed[1:], strict=False)), "sorted"
    assert {e["ph"] for e in timed} <= set("XistfC")
    for event in timed:
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert event["ts"] >= 0
    check_names(names, timed)
    check_spans(timed)
    check_arrows(timed)
    check_counters(timed)
    return events


def check_names(names: list[Event], timed: list[Event]) -> None:
    """Every track has one name, and is used in no other process."""
    tracks = Counter((e["name"], e["pid"], e["tid"]) for e in names)
    assert set(tracks.values()) == {1}
    for event in timed:
        assert ("process_name", event["pid"], 0) in tracks
        if event["ph"] == "X":
            assert ("thread_name", event["pid"], event["tid"]) in tracks


def tracks_of(timed: list[Event]) -> dict[tuple[int, int], list[Event]]:
    tracks = defaultdict(list)
    for event in timed:
        if event["ph"] == "X":
            tracks[event["pid"], event["tid"]].append(event)
    return tracks


def check_spans(timed: list[Event]) -> None:
    """No two spans of a track overlap, but that stages lie inside of their query."""
    for track, spans in tracks_of(timed).items():
        assert all(span["dur"] >= 0 for span in spans)
        stages = [span for span in spans if span["name"].startswith("stage")]
        queries = {s["args"]["query"]: s for s in spans if s["name"].startswith("query")}
        for stage in stages:
            query = queries[stage["args"]["query"]]
            assert query["ts"] <= stage["ts"] + TINY
            assert stage["ts"] + stage["dur"] <= query["ts"] + query["dur"] + TINY
        for some in (stages, [span for span in spans if span not in stages]):
            for before, after in zip(some, some[1:], strict=False):
                assert before["ts"] + before["dur"] <= after["ts"] + TINY, (track, before, after)


def check_arrows(timed: list[Event]) -> None:
    """An arrow has one start, one end, nothing out of order, and lies in spans of its tracks."""
    arrows = defaultdict(list)
    for event in timed:
        if event["ph"] in "stf":
            arrows[event["id"]].append(event)
    starts = {track: [s["ts"] for s in spans] for track, spans in tracks_of(timed).items()}
    for number, parts in arrows.items():
        assert "".join(e["ph"] for e in parts) in ("sf", "stf"), number
        assert len({(e["name"], e["cat"]) for e in parts}) == 1
        assert parts[-1]["bp"] == "e"
        for event in parts:
            own = starts[event["pid"], event["tid"]]
            assert own[np.searchsorted(own, event["ts"])] == event["ts"], "begins with a span"


def check_counters(timed: list[Event]) -> None:
    """A counter is never below zero, and is zero at the end."""
    last = {}
    for event in timed:
        if event["ph"] == "C":
            ((_, value),) = event["args"].items()
            assert value >= 0
            last[event["name"]] = value
    assert not any(last.values())


def written(path: Path) -> list[Event]:
    out = path.with_suffix(".json")
    count = write_trace(load(path), out)
    events = check(out.read_text())
    assert count == len(events)
    return events


def named(events: list[Event], name: str) -> list[Event]:
    return [e for e in events if e["name"] == name]


def test_of_a_run_is_by_the_rules_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    write_run(path, queries=200).close(finished=True)
    events = written(path)
    kinds = Counter(e["ph"] for e in events)
    sent, silent = 200 * 8, 1  # one unit was lost with its rank
    assert sum(e["ph"] == "X" and e["name"].startswith("send") for e in events) == sent
    assert kinds["s"] == kinds["t"] == kinds["f"] == sent - silent
    assert sum(e["ph"] == "X" and e["name"].startswith("query") for e in events) == 200
    assert not named(events, "stage 0")  # the made-up run decodes nothing
    assert {e["args"]["name"] for e in named(events, "process_name")} == {
        "leader 0 (pi)",
        *(f"rank {rank} (pi)" for rank in range(1, RANKS)),
    }
    assert [e["pid"] for e in named(events, "fail")] == [DEAD]


ONE = {"query": 0, "stage": 0, "unit": 0, "rank": 1}


def one_unit(path: Path, *more: tuple[Action, float, float, dict[str, int]]) -> list[Event]:
    """One query with one unit: sent 1.0-1.1, came 1.3, computed 1.4-1.8, arrived 1.9."""
    trace = Trace()
    trace.add(Action.ENCODE, 0.9, 1.0, query=0, stage=0)
    trace.add(Action.SEND, 1.0, 1.1, **ONE, nbytes=100)
    trace.add(Action.QUEUE, 1.3, 1.4, **ONE)
    trace.add(Action.COMPUTE, 1.4, 1.8, **ONE)
    trace.add(Action.ARRIVE, 1.0, 1.9, **ONE, nbytes=10)
    trace.add(Action.DECODE, 1.9, 1.95, query=0, stage=0)
    trace.add(Action.HEAD, 1.95, 1.98, query=0, stage=0)
    for action, start, stop, about in more:
        trace.add(action, start, stop, **about)
    with small(path, [served(0, Mode.AVAILABLE, latency=2.0)], queries=1) as results:
        results.add_events(trace.drain())
    return written(path)


def test_of_one_unit_has_every_part_at_its_time(tmp_path: Path) -> None:
    events = one_unit(tmp_path / "run.h5")
    spans = {(e["pid"], e["name"], e["tid"] // 1000): e for e in events if e["ph"] == "X"}
    times = {key: (e["ts"], round(e["ts"] + e["dur"], 3)) for key, e in spans.items()}
    assert times == {
        (0, "query 0", 1): (0, 2e6),
        (0, "stage 0", 1): (9e5, 1.95e6),
        (0, "encode", 2): (9e5, 1e6),
        (0, "send unit 0", 3): (1e6, 1.1e6),
        (1, "unit 0", 1): (1.1e6, 1.3e6),
        (1, "unit 0", 2): (1.3e6, 1.4e6),
        (1, "unit 0", 3): (1.4e6, 1.8e6),
        (1, "unit 0", 4): (1.8e6, 1.9e6),
        (0, "arrive unit 0", 4): (1.9e6, 1.9e6 + 1),
        (0, "decode", 2): (1.9e6, 1.95e6),
        (0, "head", 2): (1.95e6, 1.98e6),
    }
    about = {"query": 0, "stage": 0, "unit": 0, "rank": 1}
    assert spans[0, "send unit 0", 3]["args"] == {**about, "bytes": 100}
    assert spans[1, "unit 0", 4]["args"] == {**about, "bytes": 10}
    arrow = [(e["ph"], e["pid"], e["ts"]) for e in events if e["ph"] in "stf"]
    assert arrow == [("s", 0, 1e6), ("t", 1, 1.4e6), ("f", 0, 1.9e6)]
    out = [(e["ts"], e["args"]["bytes"]) for e in named(events, "bytes to workers")]
    assert out == [(1.1e6, 100), (1.3e6, 0)]


def test_stages_lie_in_the_lane_of_their_query(tmp_path: Path) -> None:
    """Queries begin every second and take a second and a half; the last one is lost undecoded."""
    trace = Trace()
    for query in range(4):
        trace.add(Action.ENCODE, query + 0.1, query + 0.2, query=query, stage=0)
        if query < 3:
            trace.add(Action.DECODE, query + 0.7, query + 0.8, query=query, stage=0)
    answers = [served(query, Mode.AVAILABLE, latency=1.5) for query in range(3)]
    answers.append(served(3, Mode.LOST, latency=1.5))
    with small(tmp_path / "run.h5", answers, queries=4) as results:
        results.add_events(trace.drain())
    spans = [e for e in written(tmp_path / "run.h5") if e["name"].startswith(("query", "stage"))]
    assert {(e["name"], e["args"]["query"], e["tid"]) for e in spans} == {
        ("query 0", 0, 1000), ("stage 0", 0, 1000),
        ("query 1", 1, 1001), ("stage 0", 1, 1001),
        ("query 2", 2, 1000), ("stage 0", 2, 1000),
        ("query 3", 3, 1001),
    }  # fmt: skip


def test_spans_that_overlap_get_lanes(tmp_path: Path) -> None:
    two = {**ONE, "unit": 1}
    more = [(Action.SEND, 1.1, 1.2, two), (Action.QUEUE, 1.25, 1.8, two)]
    more += [(Action.COMPUTE, 1.8, 1.85, two), (Action.LATE, 1.0, 1.99, two)]
    events = one_unit(tmp_path / "run.h5", *more)
    lanes = {e["args"]["name"] for e in events if e["name"] == "thread_name" and e["pid"] == 1}
    assert lanes == {"receive", "receive 2", "queue", "queue 2", "compute", "answer", "answer 2",
                     "faults"}  # fmt: skip
    assert len(named(events, "late unit 1")) == 1


def test_faults_are_spans_and_what_befell_ranks_are_moments(tmp_path: Path) -> None:
    rank = {"rank": 2}
    more = [(Action.SLOW, 0.5, 0.5, rank), (Action.SLOW, 0.5, 1.5, rank)]
    more += [(Action.LINK, 1.0, 1.0, rank), (Action.CRASH, 1.7, 1.7, rank)]
    more += [(Action.SUSPECT, 1.2, 1.3, rank), (Action.RETURN, 1.3, 1.4, rank)]
    more += [(Action.FAIL, 1.7, 1.75, rank)]
    events = one_unit(tmp_path / "run.h5", *more)
    assert [(e["ts"], e["dur"]) for e in named(events, "slow")] == [(5e5, 1e6)]
    assert [(e["ts"], e["dur"]) for e in named(events, "link down")] == [(1e6, 1e6)]  # to the end
    moments = [(e["name"], e["pid"], e["ts"]) for e in events if e["ph"] == "i"]
    assert moments == [
        ("suspect", 2, 1.3e6),
        ("return", 2, 1.4e6),
        ("crash", 2, 1.7e6),
        ("fail", 2, 1.75e6),
    ]


def test_a_unit_that_was_sent_again_has_two_ways(tmp_path: Path) -> None:
    other = {**ONE, "unit": 1}
    again = {**other, "rank": 2}
    more = [(Action.SEND, 1.1, 1.15, other), (Action.RESEND, 1.5, 1.55, again)]
    more += [(Action.QUEUE, 1.6, 1.61, again), (Action.COMPUTE, 1.61, 1.7, again)]
    events = one_unit(tmp_path / "run.h5", *more, (Action.ARRIVE, 1.0, 1.88, again))
    assert len(named(events, "send unit 1")) == 1
    assert len(named(events, "send unit 1 again")) == 1
    assert Counter(e["ph"] for e in events if e["ph"] in "sf") == {"s": 2, "f": 2}


def test_gz_is_the_same(tmp_path: Path) -> None:
    one_unit(tmp_path / "run.h5")
    write_trace(load(tmp_path / "run.h5"), tmp_path / "run.json.gz")
    plain = (tmp_path / "run.json").read_bytes()
    assert gzip.decompress((tmp_path / "run.json.gz").read_bytes()) == plain


def test_without_events_is_an_error(tmp_path: Path) -> None:
    small(tmp_path / "run.h5", []).close(finished=False)
    with pytest.raises(ResultsError, match="no event in its trace"):
        write_trace(load(tmp_path / "run.h5"), tmp_path / "out.json")


def test_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    one_unit(tmp_path / "run.h5")
    with pytest.raises(ResultsError, match=r"out\.json: cannot be written: No such file"):
        write_trace(load(tmp_path / "run.h5"), tmp_path / "none" / "out.json")
