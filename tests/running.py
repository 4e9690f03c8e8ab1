"""A made-up run in a real results file, for the tests of the report: a slow rank and a dead one."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from mpicoded import seal
from mpicoded.answer import Answer, Mode
from mpicoded.results import Layout, Results
from mpicoded.results.checks import checksums, row_paths
from mpicoded.trace import EVENT, Action, Trace

UNITS, RANKS = 8, 9
SLOW, DEAD = 3, 6  # ranks; `SLOW` from 20 % to 50 % of the run, `DEAD` from 60 % on


def write_run(path: Path, queries: int = 400, classes: bool = True, **how: Any) -> Results:
    """Write the run; a unit's rank is unit + 1 until ``DEAD`` dies, then rank 1 takes its unit."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, queries)
    outputs = (10,) if classes else (2, 5)
    layout = Layout(queries, 1, UNITS, outputs, RANKS, has_labels=classes)
    given: dict[str, Any] = {"job_text": "seed = 7\n", "seed": 7, "plan": [], "plan_table": ""}
    given |= {"attrs": {"mpi_library": "Open MPI v5.0.11, package: x"}, "hosts": ["pi"] * RANKS}
    if classes:
        given |= {"labels": labels, "held_out": np.arange(queries) % 5 == 0}
    results = Results.create(path, layout, flush=60.0, **given | how)
    trace, now, last_word = Trace(), 0.0, 0.0
    for query in range(queries):
        answer = _serve(trace, rng, query, query / queries, now, int(labels[query]), outputs)
        results.add(answer)
        now += 0.011
        if query == int(0.6 * queries):
            trace.add(Action.FAIL, last_word, now + 0.04, rank=DEAD)
        last_word = now
    trace.add(Action.SUSPECT, 0.25 * now, 0.27 * now, rank=SLOW)
    trace.add(Action.RETURN, 0.27 * now, 0.28 * now, rank=SLOW)
    results.add_events(trace.drain())
    results.write_base(_outputs(labels, outputs, rng, wrong=0.01))
    return results


def reseal(path: Path) -> None:
    """Make the seal and the checksums of rows fit what the file holds, as an attacker would."""
    with h5py.File(path, "r+") as file:
        at = file["seal"].id.get_offset()
        with contextlib.suppress(KeyError, ValueError, TypeError, OSError, RuntimeError):
            layout = Layout.parse(file.attrs["layout"])
            events = [f"trace/{name}" for name in EVENT.names or ()]
            checks = {"queries/check": row_paths(layout), "trace/check": events}
            for name, paths in checks.items():
                sums = checksums([file[p][:] for p in paths])
                file[name][:] = np.where(file[name][:] == 0, 0, sums)
    with path.open("r+b") as raw:
        seal.seal(raw.fileno(), at, [])
    assert not seal.broken(path)


def _serve(
    trace: Trace,
    rng: np.random.Generator,
    query: int,
    done: float,
    now: float,
    label: int,
    outputs: tuple[int, ...],
) -> Answer:
    seconds = np.full((1, UNITS), np.nan, np.float32)
    trace.add(Action.ENCODE, now, now + 0.0004, query=query, stage=0)
    deadline = 0.016 + rng.exponential(0.002)
    for unit in range(UNITS):
        rank = unit + 1
        if rank == DEAD and done > 0.6:
            if done < 0.61:
                trace.add(Action.SEND, now, now, rank=rank, query=query, stage=0, unit=unit)
                continue
            rank = 1
        work = 0.008 * rng.lognormal(0, 0.2) * (10 if rank == SLOW and 0.2 < done < 0.5 else 1)
        stop = now + 0.002 + work
        where: dict[str, Any] = {"rank": rank, "query": query, "stage": 0, "unit": unit}
        trace.add(Action.SEND, now, now, **where, nbytes=2000)
        trace.add(Action.COMPUTE, now + 0.001, now + 0.001 + work, **where)
        late = stop - now > deadline
        trace.add(Action.LATE if late else Action.ARRIVE, now, stop, **where, nbytes=4000)
        if not late:
            seconds[0, unit] = stop - now
    arrived = ~np.isnan(seconds)
    mode = Mode.AVAILABLE if arrived[:, :6].all() else Mode.DEGRADED
    gather = float(np.nanmax(seconds)) if mode == Mode.AVAILABLE else deadline
    output = _outputs(np.array([label]), outputs, rng, 0.01 if mode == Mode.AVAILABLE else 0.02)
    return Answer(
        query=query,
        output=output,
        mode=mode,
        arrived=arrived,
        seconds=seconds,
        submitted=now,
        answered=now + gather + 0.002,
        encode=0.0004,
        gather=gather,
        decode=0.0006,
        head=0.0004,
        own=0.0018,
        attempts=1,
    )


def _outputs(
    labels: np.ndarray[Any, Any], outputs: tuple[int, ...], rng: np.random.Generator, wrong: float
) -> torch.Tensor:
    slip = rng.random(len(labels)) < wrong
    scores = torch.eye(10)[torch.from_numpy((labels + slip) % 10)]
    return scores.reshape(len(labels), *outputs)
