"""Write a trace as Chrome trace events, which Perfetto (ui.perfetto.dev) opens.

    process   threads (where spans overlap, a thread has several lanes)
    rank 0    queries, stages inside | compute: encode, decode, head | send | arrivals; counters
    rank p    receive | queue | compute | answer | faults

An arrow leads from every unit's send to its computation and on to its arrival. Times are in
microseconds since the run began. The format: "Trace Event Format", Google, 2016.
"""

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from mpicoded.answer import Mode
from mpicoded.errors import ResultsError
from mpicoded.outputs import write_whole
from mpicoded.results import Loaded
from mpicoded.study.report.fault_intervals import fault_intervals
from mpicoded.study.report.spans import SPAN, Array, first_seen, lanes, spans
from mpicoded.trace import Action

Event = dict[str, Any]
LEADER = 0
LANES = 1000  # lane i of a thread is the thread's number + i
QUERIES, COMPUTE, SEND, ARRIVALS = 1000, 2000, 3000, 4000  # threads of the leader
RECEIVE, QUEUE, WORK, ANSWER, FAULTS = 1000, 2000, 3000, 4000, 5000  # threads of a worker
LEADERS = ("queries", "compute", "send", "arrivals", "faults")
WORKERS = ("receive", "queue", "compute", "answer", "faults")
INSTANTS = (
    Action.SUSPECT, Action.RETURN, Action.FAIL, Action.LOST, Action.ALONE, Action.REPLAN,
)  # fmt: skip
MOMENT = 1e-6  # s; how long an arrival is drawn, so that an arrow can end in it


def write_trace(loaded: Loaded, path: Path) -> int:
    """Write the trace as JSON (gzip if .gz); return how many events; ResultsError if none."""
    if not len(loaded.events):
        raise ResultsError(f"{loaded.path}: there is no event in its trace, so nothing to write")
    events = trace_events(loaded)
    about = {"file": loaded.path.name, "mpi": str(loaded.attrs.get("mpi_library", ""))}
    tail = json.dumps({"displayTimeUnit": "ms", "otherData": about})[1:]
    lines = ",\n".join(json.dumps(event, separators=(",", ":")) for event in events)
    text = f'{{"traceEvents":[\n{lines}\n],\n{tail}\n'.encode()
    try:
        write_whole(path, gzip.compress(text, 6) if path.suffix == ".gz" else text)
    except OSError as error:
        raise ResultsError(f"{path}: cannot be written: {error.strerror}") from None
    return len(events)


def trace_events(loaded: Loaded) -> list[Event]:
    """Return all events: the names of tracks first, then by time, an outer span before an inner."""
    units = spans(loaded.events)
    parts, arrows = _units(units)
    queries = list(_queries(loaded))
    outer = [*(query for query, _ in queries), *_leader(loaded), *parts, *_faults(loaded)]
    _into_lanes(outer)
    inner = [stage | {"tid": query["tid"]} for query, stages in queries for stage in stages]
    timed = [*outer, *inner, *_arrows(arrows), *_moments(loaded), *_counters(loaded, units)]
    timed.sort(key=lambda e: (e["ts"], -e.get("dur", 0.0)))
    return [*_names(loaded, outer), *timed]


def _micros(seconds: float) -> float:
    return round(1e6 * float(seconds), 3)


def _span(name: str, pid: int, tid: int, start: float, stop: float, **args: Any) -> Event:
    ts = _micros(start)
    dur = round(max(_micros(stop) - ts, 0.0), 3)
    about = {"ph": "X", "name": name, "cat": "run", "pid": int(pid), "tid": tid}
    return {**about, "ts": ts, "dur": dur, "args": args}


def _queries(loaded: Loaded) -> Iterator[tuple[Event, list[Event]]]:
    """Yield the span of every query, and those of its stages inside it."""
    begun = first_seen(loaded)
    decodes = loaded.events[loaded.events["action"] == Action.DECODE]
    until = np.full((loaded.layout.queries, loaded.layout.stages), np.nan)
    until[decodes["query"], decodes["stage"]] = decodes["stop"]
    queries = loaded.queries
    for query in map(int, np.flatnonzero(~np.isnan(queries["answered"]))):
        mode = Mode(queries["mode"][query]).name.lower()
        start, stop = queries["submitted"][query], queries["answered"][query]
        now, stages = np.fmax(begun[query], start), list[Event]()
        for stage, end in enumerate(until[query]):
            if now <= end <= stop:  # never for NaN
                about = {"query": query, "stage": stage}
                stages.append(_span(f"stage {stage}", LEADER, QUERIES, now, end, **about))
                now = end
        yield _span(f"query {query}", LEADER, QUERIES, start, stop, query=query, mode=mode), stages


def _leader(loaded: Loaded) -> Iterator[Event]:
    own = (Action.ENCODE, Action.DECODE, Action.HEAD)
    for e in loaded.events[np.isin(loaded.events["action"], own)]:
        args = {"query": int(e["query"]), "stage": int(e["stage"])}
        name = Action(e["action"]).name.lower()
        yield _span(name, LEADER, COMPUTE, e["start"], e["stop"], **args)


def _units(units: Array) -> tuple[list[Event], list[list[Event]]]:
    """Return the spans of all units, and for each unit with an answer those that arrows join."""
    found, arrows = list[Event](), list[list[Event]]()
    for row in units.tolist():  # plain numbers, many times faster to take one by one
        parts = dict(_parts(dict(zip(SPAN.names or (), row, strict=True))))
        found += parts.values()
        joined = [parts[name] for name in ("send", "compute", "arrive") if name in parts]
        if "arrive" in parts and all(a["ts"] <= b["ts"] for a, b in itertools.pairwise(joined)):
            arrows.append(joined)
    return found, arrows


def _parts(span: dict[str, Any]) -> Iterator[tuple[str, Event]]:
    """Yield the parts of one unit's span to its rank and back, as far as they are known."""
    rank, unit = span["rank"], f"unit {span['unit']}"
    args = {name: span[name] for name in ("query", "stage", "unit", "rank")}
    out, back = {**args, "bytes": span["bytes_out"]}, {**args, "bytes": span["bytes_back"]}
    again = " again" if span["again"] else ""
    yield "send", _span(f"send {unit}{again}", LEADER, SEND, span["posted"], span["sent"], **out)
    if not isnan(span["came"]):
        yield "out", _span(unit, rank, RECEIVE, span["sent"], span["came"], **out)
        yield "queue", _span(unit, rank, QUEUE, span["came"], span["started"], **args)
    if not isnan(span["stopped"]):
        yield "compute", _span(unit, rank, WORK, span["started"], span["stopped"], **args)
    if not isnan(span["arrived"]):
        if not isnan(span["stopped"]):
            yield "back", _span(unit, rank, ANSWER, span["stopped"], span["arrived"], **back)
        fate, at = Action(span["fate"]).name.lower(), span["arrived"]
        yield "arrive", _span(f"{fate} {unit}", LEADER, ARRIVALS, at, at + MOMENT, **back)


def _faults(loaded: Loaded) -> Iterator[Event]:
    for e in fault_intervals(loaded):
        if e.stop > e.start:
            yield _span(e.word, e.rank, FAULTS, e.start, e.stop, fault=e.action.name.lower())


def _into_lanes(events: Iterable[Event]) -> None:
    """Move spans that would overlap on their thread to a further lane of it."""
    threads: dict[tuple[int, int], list[Event]] = {}
    for event in events:
        threads.setdefault((event["pid"], event["tid"]), []).append(event)
    for (_, tid), own in threads.items():
        own.sort(key=lambda e: (e["ts"], e["dur"]))
        ends = [(e["ts"], round(e["ts"] + e["dur"], 3)) for e in own]
        for event, lane in zip(own, lanes(ends), strict=True):
            event["tid"] = tid + lane


def _arrows(arrows: Iterable[list[Event]]) -> Iterator[Event]:
    """Yield start, steps and end of an arrow through the spans of every unit."""
    for number, joined in enumerate(arrows):
        for place, event in enumerate(joined):
            phase = "s" if place == 0 else "f" if place == len(joined) - 1 else "t"
            about = {key: event[key] for key in ("pid", "tid", "ts")}
            end = {"bp": "e"} if phase == "f" else {}
            yield {"ph": phase, "name": "unit", "cat": "unit", "id": number, **about, **end}


def _moments(loaded: Loaded) -> Iterator[Event]:
    """Yield the changes of a rank or a query at one moment."""
    for e in loaded.events[np.isin(loaded.events["action"], INSTANTS)]:
        args = {"query": int(e["query"])} if e["query"] >= 0 else {}
        yield _instant(Action(e["action"]).name.lower(), int(e["rank"]), e["stop"], **args)
    for fault in fault_intervals(loaded):
        if fault.start == fault.stop:
            yield _instant(fault.word, fault.rank, fault.start)


def _instant(name: str, rank: int, time: float, **args: Any) -> Event:
    about = {"ph": "i", "s": "t", "name": name, "cat": "fate", "pid": rank, "tid": FAULTS}
    return {**about, "ts": _micros(time), "args": args}


def _counters(loaded: Loaded, units: Array) -> Iterator[Event]:
    """Yield the counter events (ph "C") of the leader's process."""
    begun, answered = first_seen(loaded), loaded.queries["answered"]
    there = ~np.isnan(begun) & ~np.isnan(answered)
    yield from _counter("queries in flight", "queries", begun[there], answered[there], 1)
    for name, begin, end, size in (
        ("bytes to workers", "sent", "came", "bytes_out"),
        ("bytes from workers", "stopped", "arrived", "bytes_back"),
    ):
        whole = units[~np.isnan(units[begin]) & ~np.isnan(units[end])]
        stop = np.maximum(whole[begin], whole[end])
        yield from _counter(name, "bytes", whole[begin], stop, whole[size])


def _counter(
    name: str, unit: str, begin: Array, end: Array, amount: Array | int
) -> Iterator[Event]:
    """Yield the sum of the amounts between ``begin`` and ``end`` (events,), at every change."""
    steps = np.broadcast_to(amount, begin.shape)
    times, change = np.r_[begin, end], np.r_[steps, -steps]
    order = np.argsort(times, kind="stable")
    micros = np.round(1e6 * times[order], 3)
    level = np.cumsum(change[order])
    last = np.r_[np.flatnonzero(np.diff(micros)), len(micros) - 1] if len(micros) else []
    for i in last:  # only the last of several changes at one time
        args, ts = {unit: int(level[i])}, float(micros[i])
        yield {"ph": "C", "name": name, "pid": 0, "tid": 0, "ts": ts, "args": args}


def _names(loaded: Loaded, events: Iterable[Event]) -> Iterator[Event]:
    """Yield the names of all processes and threads, and in which order they are shown."""
    lanes: dict[int, set[int]] = {rank: {FAULTS} for rank in range(loaded.layout.ranks)}
    for event in events:
        lanes[event["pid"]].add(event["tid"])
    for rank, tids in lanes.items():
        hosts = [str(host) for host in loaded.cluster["host"][:, rank] if host]
        role, threads = ("leader", LEADERS) if rank == LEADER else ("rank", WORKERS)
        where = f" ({hosts[-1]})" if hosts else ""
        yield _metadata("process_name", rank, 0, name=f"{role} {rank}{where}")
        yield _metadata("process_sort_index", rank, 0, sort_index=rank)
        for tid in sorted(tids):
            kind, lane = threads[tid // LANES - 1], tid % LANES
            yield _metadata("thread_name", rank, tid, name=f"{kind} {lane + 1}" if lane else kind)
            yield _metadata("thread_sort_index", rank, tid, sort_index=tid)


def _metadata(kind: str, rank: int, tid: int, **args: Any) -> Event:
    return {"ph": "M", "name": kind, "pid": rank, "tid": tid, "args": args}
