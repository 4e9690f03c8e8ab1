"""The table and the picture: their numbers, checked against counts by hand."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from mpicoded.answer import Answer, Mode
from mpicoded.errors import ResultsError
from mpicoded.results import Layout, Loaded, Results, load
from mpicoded.study.report.figure import draw
from mpicoded.study.report.table import Summary, render, summary
from mpicoded.trace import Action, Trace
from running import DEAD, RANKS, SLOW, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    path = tmp_path_factory.mktemp("run") / "run.h5"
    write_run(path).close(finished=True)
    return load(path)


def text(told: Summary, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(render(told))
    return out.getvalue()


def served(query: int, mode: Mode, answer: int = 0, latency: float = 0.1) -> Answer:
    """Return an answer of class ``answer``, submitted at second ``query``."""
    output = None if mode == Mode.LOST else torch.eye(3)[answer : answer + 1]
    numbers = dict.fromkeys(("encode", "gather", "decode", "head"), 0.0)
    return Answer(
        query=query,
        output=output,
        mode=mode,
        arrived=np.ones((1, 2), bool),
        seconds=np.zeros((1, 2), np.float32),
        submitted=query,
        answered=query + latency,
        own=0.002,
        attempts=1,
        **numbers,
    )


def small(path: Path, answers: list[Answer], queries: int = 8, **how: Any) -> Results:
    """Return a file of a run with three ranks and three classes; the true class is always 0."""
    layout = Layout(queries, 1, 2, (3,), ranks=3, has_labels="labels" in how)
    given: dict[str, Any] = {"job_text": "", "seed": 0, "attrs": {"mpi_library": "MPICH 5"}}
    given |= {"plan": [], "plan_table": "", "hosts": ["a", "b", "c"], "flush": 60.0}
    results = Results.create(path, layout, **given | how)
    for answer in answers:
        results.add(answer)
    return results


LABELS: dict[str, Any] = {"labels": np.zeros(8), "held_out": np.arange(8) < 4}
OWN, REBUILT, LOST = Mode.AVAILABLE, Mode.DEGRADED, Mode.LOST
# query:      0 own right, 1 own wrong, 2 rebuilt right, 3 lost | 4, 5 own right, 6, 7 rebuilt wrong
MIXED = [served(0, OWN), served(1, OWN, 1), served(2, REBUILT), served(3, LOST)]
MIXED += [served(4, OWN), served(5, OWN), served(6, REBUILT, 1), served(7, REBUILT, 2)]


def mixed(path: Path) -> Results:
    results = small(path, MIXED, **LABELS)
    results.write_base(torch.eye(3)[[0, 1, 0, 0, 0, 0, 1, 0]])  # wrong on 1 and 6
    return results


class TestScores:
    def test_of_all_images(self, tmp_path: Path) -> None:
        mixed(tmp_path / "run.h5").close(finished=True)
        told = summary(load(tmp_path / "run.h5"))
        assert (told.available, told.degraded, told.lost, told.pending) == (4, 3, 1, 0)
        score = told.all
        assert score
        assert (score.images, score.own, score.rebuilt) == (8, 4, 3)
        assert score.available == 3 / 4
        assert score.degraded == 1 / 3
        assert score.recovery == 2 / 3  # on 6 both are wrong in the same way
        assert score.overall == 4 / 8  # the lost one is wrong
        assert score.unsplit == 6 / 8
        assert score.agreement == 6 / 8  # not the lost one, not 7
        share = score.rebuilt / (score.images - 1)  # of those with an answer
        mean = (1 - share) * score.available + share * score.degraded
        assert math.isclose(score.overall, mean * 7 / 8)

    def test_of_held_out_images_are_apart(self, tmp_path: Path) -> None:
        mixed(tmp_path / "run.h5").close(finished=True)
        score = summary(load(tmp_path / "run.h5")).held_out
        assert score
        assert (score.images, score.own, score.rebuilt) == (4, 2, 1)
        assert (score.available, score.degraded, score.overall) == (1 / 2, 1, 2 / 4)

    def test_what_is_not_finite_is_no_class_and_wrong(self, tmp_path: Path) -> None:
        answers = [served(query, OWN) for query in range(8)]
        for answer, number in zip(answers[:3], (math.nan, math.inf, -math.inf), strict=True):
            assert answer.output is not None
            answer.output[0, 1] = number
        base = torch.eye(3)[[0] * 8]
        base[:2, 0] = math.nan
        with small(tmp_path / "run.h5", answers, **LABELS) as results:
            results.write_base(base)
        loaded = load(tmp_path / "run.h5")
        assert loaded.predictions["class"].ravel().tolist() == [-1] * 3 + [0] * 5
        assert loaded.predictions["base_class"].ravel().tolist() == [-1] * 2 + [0] * 6
        told = summary(loaded)
        assert told.not_finite == (3, 2)
        assert told.all
        assert (told.all.available, told.all.overall, told.all.unsplit) == (5 / 8, 5 / 8, 6 / 8)
        assert told.all.agreement == 5 / 6  # of those with a class, here or there
        shown = " ".join(text(told).split())
        assert "not finite (NaN or infinite), so of no class and wrong: 3 answers" in shown
        assert "2 of the unsplit model" in shown

    def test_count_only_what_was_served(self, tmp_path: Path) -> None:
        with small(tmp_path / "run.h5", [served(2, OWN), served(5, REBUILT, 1)], **LABELS):
            pass
        told = summary(load(tmp_path / "run.h5"))
        assert told.pending == 6
        assert told.all
        assert (told.all.images, told.all.overall) == (2, 0.5)
        assert math.isnan(told.all.recovery)  # the unsplit model never ran
        assert "pending" in text(told)
        assert "--resume" in text(told)
        assert "unsplit" not in text(told)

    def test_without_labels_are_agreement_only(self, tmp_path: Path) -> None:
        with small(tmp_path / "run.h5", MIXED) as results:
            results.write_base(torch.eye(3)[[0, 1, 0, 0, 0, 0, 1, 0]])
        shown = text(summary(load(tmp_path / "run.h5")))
        assert "A_a" not in shown
        assert "accuracy" not in shown
        assert "all answers = unsplit" in shown
        assert "75.00 % of 8" in shown

    def test_of_outputs_that_are_no_classes_are_differences(self, tmp_path: Path) -> None:
        path = tmp_path / "run.h5"
        with write_run(path, queries=30, classes=False) as results:
            results.flush(now=True)
            base = load(path).predictions["output"][:, 0]
            base[4].flat[base[4].argmin()] -= 0.5  # from 0; the largest is 1
            results.write_base(base)
        loaded = load(path, outputs=False)
        loaded.predictions["mode"][:] = Mode.AVAILABLE
        told = summary(loaded)
        assert told.all is None
        assert told.difference[0] == 0.5
        assert math.isnan(told.difference[1])
        assert "largest difference from the unsplit model" in text(told)


def test_times_are_percentiles_of_what_was_answered(tmp_path: Path) -> None:
    answers = [served(q, OWN, latency=(q + 1) / 10) for q in range(7)]
    with small(tmp_path / "run.h5", [*answers, served(7, LOST, latency=60.0)]):
        pass
    told = summary(load(tmp_path / "run.h5"))
    np.testing.assert_allclose(told.latency, np.percentile(np.arange(1, 8) / 10, (50, 95, 99)))
    assert told.own == 0.002
    assert math.isclose(told.rate, 7 / 6.7)  # from second 0 to 6 + 0.7


def test_ranks_are_counted_from_the_trace(tmp_path: Path) -> None:
    trace = Trace()
    for query in range(3):
        trace.add(Action.SEND, query, query, rank=1, query=query, nbytes=100)
        trace.add(Action.COMPUTE, query, query + 0.1 * (query + 1), rank=1, query=query)
    trace.add(Action.ARRIVE, 0, 1, rank=1, query=0, nbytes=10)
    trace.add(Action.LATE, 0, 1, rank=1, query=1, nbytes=10)
    trace.add(Action.SEND, 0, 0, rank=2, query=0, nbytes=100)
    trace.add(Action.RESEND, 0, 0, rank=2, query=1, nbytes=100)
    trace.add(Action.SUSPECT, 1, 2, rank=2)
    trace.add(Action.FAIL, 1, 3.25, rank=2)
    trace.add(Action.HEAD, 0, 1, rank=0)
    with small(tmp_path / "run.h5", MIXED) as results:
        results.add_events(trace.drain())
    one, two = summary(load(tmp_path / "run.h5")).ranks
    assert (one.rank, one.host, one.sent, one.arrived, one.late) == (1, "b", 3, 1, 1)
    assert (one.bytes_to, one.bytes_from, one.state) == (300, 20, "alive")
    assert math.isclose(one.compute, 0.2)
    assert (two.sent, two.bytes_to, two.state) == (2, 200, "failed at 3.2 s")
    assert math.isnan(two.compute)


@pytest.mark.parametrize(
    ("actions", "state"),
    [
        ([], "alive"),
        ([Action.SUSPECT], "suspect"),
        ([Action.SUSPECT, Action.RETURN], "alive, suspect 1x"),
        ([Action.SUSPECT, Action.RETURN, Action.SUSPECT, Action.RETURN], "alive, suspect 2x"),
        ([Action.SUSPECT, Action.FAIL], "failed at 1.0 s"),
    ],
)
def test_state_of_a_rank(tmp_path: Path, actions: list[Action], state: str) -> None:
    trace = Trace()
    for time, action in enumerate(actions):
        trace.add(action, time, time, rank=1)
    with small(tmp_path / "run.h5", []) as results:
        results.add_events(trace.drain())
    assert summary(load(tmp_path / "run.h5")).ranks[0].state == state


def test_a_rank_that_failed_lives_again_after_a_resume(tmp_path: Path) -> None:
    path, trace = tmp_path / "run.h5", Trace()
    trace.add(Action.FAIL, 1, 2, rank=1)
    with small(path, MIXED[:3]) as results:
        results.add_events(trace.drain())
        layout = results.layout
    with Results.resume(path, layout, job_text="", hosts=["a", "b"], flush=60.0) as results:
        results.add(served(3, OWN))
    told = summary(load(path))
    assert [line.state for line in told.ranks] == ["alive", "not in the last start"]
    assert "resumed 1x" in told.about


def test_the_table_shows_the_run(run: Loaded) -> None:
    told = summary(run)
    shown = text(told)
    for words in (
        "available",
        "degraded",
        "lost",
        "A_a",
        "A_d",
        "A_o",
        "unsplit model",
        "held out",
    ):
        assert words in shown
    assert f"failed at {told.ranks[DEAD - 1].state.split()[2]} s" in shown
    assert told.ranks[SLOW - 1].late > 100
    assert "9 ranks on pi, Open MPI v5.0.11, seed 7" in shown
    assert "results: " in shown
    assert "run.h5" in shown
    assert told.load is None
    assert not any(words in shown for words in ("open loop", "sojourn", "busy", "refused"))
    assert len(told.ranks) == RANKS - 1


def test_the_table_fits_into_80_columns_and_is_always_the_same(run: Loaded) -> None:
    lines = text(summary(run)).splitlines()
    assert max(map(len, lines)) <= 80
    assert all("…" not in line for line in lines)
    assert text(summary(load(run.path))) == text(summary(run))


def test_of_an_open_loop(tmp_path: Path) -> None:
    answers = [served(query, OWN, answer=query // 4) for query in range(8)]  # 4 to 7 are wrong
    for query in (2, 5, 6):
        turned_away = {"mode": Mode.REFUSED, "output": None, "own": 0.0, "answered": query + 0.0}
        answers[query] = dataclasses.replace(answers[query], **turned_away)
    attrs = {"mpi_library": "MPICH 5", "arrivals": "constant", "rate": 1.0, "queue": 3}
    trace = Trace()
    for query in (0, 1, 3, 4, 7):
        trace.add(Action.COMPUTE, query, query + 0.71, rank=2, query=query, stage=0, unit=1)
    results = small(tmp_path / "run.h5", answers, **LABELS, attrs=attrs)
    results.add_events(trace.drain())
    results.close(finished=True)
    told = summary(load(tmp_path / "run.h5"))
    assert (told.available, told.lost, told.refused, told.pending) == (5, 0, 3, 0)
    assert told.latency == pytest.approx((0.1, 0.1, 0.1)), "not of a refused one"
    assert told.all and (told.all.images, told.all.own, told.all.overall) == (5, 5, 3 / 5)
    its = told.load
    assert its and its.schedule == "constant, rate 1.0, queue 3"
    assert (its.offered, its.answered) == pytest.approx((1, 5 / 7.1))
    assert its.right == pytest.approx(3 / 7.1)
    assert its.busy == pytest.approx((0.01 / 7.1, 0, 0.5))
    shown = text(told)
    for words in ("refused", "37.50 %", "sojourn", "goodput", "leader busy", "50.00 %"):
        assert words in shown
    assert max(map(len, shown.splitlines())) <= 80
    draw(load(tmp_path / "run.h5"), tmp_path / "run.svg")
    assert "3 refused" in (tmp_path / "run.svg").read_text()


def test_a_resumed_open_loop_has_no_pause_in_its_rates(tmp_path: Path) -> None:
    attrs = {"mpi_library": "MPICH 5", "arrivals": "a/[b]x.txt"}
    with small(tmp_path / "run.h5", [served(q, OWN) for q in range(4)], attrs=attrs):
        pass
    layout, how = load(tmp_path / "run.h5").layout, {"hosts": ["a", "b", "c"], "flush": 60.0}
    with Results.resume(tmp_path / "run.h5", layout, job_text="", **how) as results:
        for query in range(4, 8):
            results.add(
                dataclasses.replace(served(query, OWN), submitted=90 + query, answered=91 + query)
            )
    its = summary(load(tmp_path / "run.h5")).load
    assert its and its.schedule == "[b]x.txt, no limit of the queue"
    assert (its.offered, its.answered) == pytest.approx((1, 8 / (3.1 + 4)))
    assert math.isnan(its.right)
    assert its.schedule in text(summary(load(tmp_path / "run.h5")))


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0 B"), (999, "999 B"), (1500, "1.50 kB"), (2.5e9, "2.50 GB")]
)
def test_bytes(run: Loaded, count: int, shown: str) -> None:
    told = dataclasses.replace(summary(run), size=int(count))
    assert f"({shown})" in text(told, width=300)


class TestFigure:
    def test_is_a_picture_of_readme_width(self, run: Loaded, tmp_path: Path) -> None:
        draw(run, tmp_path / "run.png")
        with Image.open(tmp_path / "run.png") as picture:
            assert picture.width == 1800
            colours = {c for _, c in picture.convert("RGB").getcolors(1 << 24) or []}
        for colour in ((0, 114, 178), (213, 94, 0)):  # in time, late
            assert colour in colours

    def test_svg_has_words(self, run: Loaded, tmp_path: Path) -> None:
        draw(run, tmp_path / "run.svg")
        words = (tmp_path / "run.svg").read_text()
        for expected in ("latency of every query", f"rank {DEAD} failed", f"rank {SLOW} suspect"):
            assert expected in words

    def test_of_one_rank_without_trace(self, tmp_path: Path) -> None:
        layout = Layout(2, 1, 1, (3,), ranks=1)
        given: dict[str, Any] = {"job_text": "", "seed": 0, "attrs": {}, "plan": []}
        given |= {"plan_table": "", "hosts": ["a"], "flush": 60.0}
        with Results.create(tmp_path / "run.h5", layout, **given) as results:
            alone = served(0, OWN)
            one = {"arrived": np.ones((1, 1), bool), "seconds": np.zeros((1, 1), np.float32)}
            results.add(dataclasses.replace(alone, **one))
        draw(load(tmp_path / "run.h5"), tmp_path / "run.png")
        assert "1 ranks" not in text(summary(load(tmp_path / "run.h5")))

    def test_of_nothing_is_an_error(self, tmp_path: Path) -> None:
        small(tmp_path / "run.h5", []).close(finished=False)
        with pytest.raises(ResultsError, match="no answer in it yet"):
            draw(load(tmp_path / "run.h5"), tmp_path / "run.png")

    @pytest.mark.parametrize(
        ("name", "message"),
        [("run.xyz", "xyz.* is not supported"), ("no/folder/run.png", "No such file")],
    )
    def test_that_cannot_be_written(
        self, run: Loaded, tmp_path: Path, name: str, message: str
    ) -> None:
        with pytest.raises(ResultsError, match=message):
            draw(run, tmp_path / name)

    def test_of_lost_queries_only(self, tmp_path: Path) -> None:
        small(tmp_path / "run.h5", [served(0, LOST)]).close(finished=False)
        draw(load(tmp_path / "run.h5"), tmp_path / "run.png")
