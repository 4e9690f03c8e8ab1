"""The results file of a simulated run: the same layout, and every report of it, without tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from digits import QUICKSTART
from mpicoded.answer import Answer, Mode
from mpicoded.cluster import Cluster
from mpicoded.cluster_tools.launch.progress import look
from mpicoded.commands.dump import finished, open_simulated
from mpicoded.commands.report import report
from mpicoded.deploy import images, network, plan, traced
from mpicoded.job import Job
from mpicoded.plan import Plan
from mpicoded.results import Results, load
from mpicoded.trace import Action, Trace

QUERIES = 12
MODES = (Mode.AVAILABLE, Mode.DEGRADED, Mode.AVAILABLE, Mode.LOST)


@pytest.fixture(scope="module")
def sizes() -> Plan:
    job = Job.read(QUICKSTART, [])
    data = images(job, job.input.split, limit=1)
    return plan(job, traced(job, network(job), tuple(data.images.shape[1:])))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job.read(QUICKSTART, [f"results.file={tmp_path / 'run.h5'}"])


def serve(results: Results, plan: Plan, trace: Trace) -> None:
    """Add answers whose units each took 10 ms of a virtual second."""
    shape = (len(plan.stages), plan.n)
    for query in range(QUERIES):
        mode, now = MODES[query % len(MODES)], float(query)
        arrived = np.ones(shape, bool)
        arrived[:, 0] = mode == Mode.AVAILABLE
        for unit in range(plan.n):
            where = {"rank": unit + 1, "query": query, "stage": 0, "unit": unit}
            trace.add(Action.SEND, now, now, **where, nbytes=100)
            trace.add(Action.COMPUTE, now + 0.001, now + 0.009, **where)
            trace.add(Action.ARRIVE, now, now + 0.01, **where, nbytes=100)
        seconds = np.where(arrived, np.float32(0.01), np.float32(np.nan))
        stop = now + 0.012
        times = {"encode": 0.001, "gather": 0.01, "decode": 0.001, "head": 0.0, "own": 0.002}
        results.add(Answer(query, None, mode, arrived, seconds, now, stop, **times, attempts=1))
    results.add_events(trace.drain())


def test_a_simulated_run_is_written_read_and_reported(job, sizes, tmp_path, capsys):
    path = job.results_path
    with open_simulated(job, sizes, Cluster.local(9), QUERIES, overwrite=False) as results:
        serve(results, sizes, Trace())
    for outputs in (True, False):
        loaded = load(path, outputs)
        assert loaded.finished and loaded.attrs["clock"] == "simulated"
        assert loaded.queries["mode"].tolist() == [MODES[q % 4] for q in range(QUERIES)]
        assert "class" not in loaded.predictions and not loaded.labels
        assert loaded.queries["latency"] == pytest.approx(0.012)
    assert load(path).predictions["output"].size == 0
    assert finished(job).layout.queries == QUERIES
    progress = look(path)
    assert progress is not None and progress.finished and progress.answered == QUERIES

    report([path])
    printed = capsys.readouterr().out
    assert "simulated clock, 9 ranks" in printed and "12" in printed
    assert "not finite" not in printed and "accuracy" not in printed
    report([path], breakdown=True)
    report([path], figure=tmp_path / "run.png", trace=tmp_path / "run.json")
    report([path], figure=tmp_path / "one.png", query=1)
    report([path, path], figure=tmp_path / "two.png", label=["a", "b"])
    for name in ("run.png", "run.json", "one.png", "two.png"):
        assert (tmp_path / name).stat().st_size


def test_a_simulated_run_can_be_resumed(job, sizes):
    with open_simulated(job, sizes, Cluster.local(9), QUERIES, overwrite=False) as results:
        layout = results.layout
    about = {"job_text": job.text, "hosts": ["pi"] * 9, "flush": 60.0}
    with Results.resume(job.results_path, layout, **about) as results:
        assert results.pending.size == QUERIES
        serve(results, sizes, Trace())
    assert load(job.results_path).finished
