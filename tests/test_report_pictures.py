"""Pictures of one query, of faults, of tails, and of several runs; and what the verb asks for."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mpicoded.answer import Mode
from mpicoded.commands import main
from mpicoded.errors import ResultsError
from mpicoded.results import Loaded, load
from mpicoded.study.report.compare import LINES, compare, draw_comparison, render_comparison
from mpicoded.study.report.fault_intervals import FaultInterval, fault_intervals
from mpicoded.study.report.figure import draw
from mpicoded.study.report.labels import labels
from mpicoded.study.report.style import has_long_tail, share_at
from mpicoded.study.report.timeline import draw_query
from mpicoded.trace import Action, Trace
from test_report import LABELS, served, small
from test_report_breakdown import TRACE, TWO, loaded, random_run

JOB = '[model]\nname = "lenet5"\n[code]\nname = "learned"\nk = 6\nr = 2\n'
BARE = '[model]\nname = "lenet5"\n'


def words(path: Path) -> str:
    """Return what an .svg says."""
    return path.read_text()


def with_events(run: Loaded, *events: tuple[Action, float, float, int]) -> Loaded:
    trace = Trace()
    for action, start, stop, rank in events:
        trace.add(action, start, stop, rank=rank)
    return dataclasses.replace(run, events=np.concatenate([run.events, trace.drain()]))


class TestQuery:
    def test_names_rows_kinds_and_ends(self, tmp_path: Path) -> None:
        draw_query(loaded(tmp_path / "run.h5"), 0, tmp_path / "q.svg")
        shown = words(tmp_path / "q.svg")
        for expected in ("leader", "rank 1", "rank 2", "encode", "send", "wait", "decode", "head",
                         "wire out", "queue", "compute", "wire back", "ended the stage",
                         "answer", "2,000 ms from submission to answer"):  # fmt: skip
            assert expected in shown

    def test_says_what_was_late_and_what_never_came(self, tmp_path: Path) -> None:
        late = [e for e in TRACE if e[0] is not Action.ARRIVE or e[3]["rank"] == 1]
        run = loaded(tmp_path / "run.h5", late, arrived=[True, False])
        draw_query(run, 0, tmp_path / "q.svg")
        assert "no answer" in words(tmp_path / "q.svg")
        late.append((Action.LATE, 1.0, 1.99, TWO))
        draw_query(loaded(tmp_path / "late.h5", late), 0, tmp_path / "q.svg")
        assert "late" in words(tmp_path / "q.svg")

    def test_shows_the_faults_of_its_time(self, tmp_path: Path) -> None:
        run = with_events(loaded(tmp_path / "run.h5"), (Action.FREEZE, 1.0, 1.5, 2))
        draw_query(run, 0, tmp_path / "q.svg")
        assert "freeze" in words(tmp_path / "q.svg")
        before = with_events(loaded(tmp_path / "old.h5"), (Action.FREEZE, -2.0, -1.0, 2))
        draw_query(before, 0, tmp_path / "q.svg")
        assert "freeze" not in words(tmp_path / "q.svg")

    def test_is_sharp_at_readme_width_for_any_run(self, tmp_path: Path) -> None:
        run = random_run(tmp_path / "run.h5", seed=3)
        for query in (0, 7, 29):
            draw_query(run, query, tmp_path / "q.png")
            with Image.open(tmp_path / "q.png") as picture:
                assert picture.width == 1800
                colours = {c for _, c in picture.convert("RGB").getcolors(1 << 24) or []}
            assert (0, 114, 178) in colours  # computation

    def test_that_is_not_there_is_an_error(self, tmp_path: Path) -> None:
        small(tmp_path / "run.h5", [served(0, Mode.AVAILABLE)]).close(finished=False)
        run = load(tmp_path / "run.h5")
        whys = {8: "no query 8; give one from 0 to 7", -1: "no query -1"}
        whys |= {1: "query 1 has no answer yet", 0: "no trace of query 0"}
        for query, why in whys.items():
            with pytest.raises(ResultsError, match=why):
                draw_query(run, query, tmp_path / "q.png")


class TestFaults:
    def test_begin_and_end_are_one_episode(self, tmp_path: Path) -> None:
        run = with_events(
            loaded(tmp_path / "run.h5"),
            (Action.SLOW, 0.1, 0.1, 1),
            (Action.SLOW, 0.1, 0.6, 1),
            (Action.FREEZE, 0.5, 0.5, 2),  # told before it froze
            (Action.FREEZE, 0.52, 0.8, 2),
            (Action.DELAY, 0.9, 1.0, 1),
            (Action.DELAY, 1.1, 1.2, 1),
            (Action.CPU, 1.5, 1.5, 1),  # no end: until the run's
            (Action.CRASH, 1.7, 1.7, 2),
            (Action.LINK, 0.2, 0.3, 1),  # told only when it was over
        )
        assert fault_intervals(run) == [
            FaultInterval(Action.SLOW, 1, 0.1, 0.6),
            FaultInterval(Action.LINK, 1, 0.2, 0.3),
            FaultInterval(Action.FREEZE, 2, 0.5, 0.8),
            FaultInterval(Action.DELAY, 1, 0.9, 1.0),
            FaultInterval(Action.DELAY, 1, 1.1, 1.2),
            FaultInterval(Action.CPU, 1, 1.5, 2.0),
            FaultInterval(Action.CRASH, 2, 1.7, 1.7),
        ]

    def test_are_named_on_the_picture_of_the_run(self, tmp_path: Path) -> None:
        run = with_events(
            loaded(tmp_path / "run.h5"), (Action.RATE, 0.1, 0.6, 1), (Action.CRASH, 1.7, 1.7, 2)
        )
        draw(run, tmp_path / "run.svg")
        shown = words(tmp_path / "run.svg")
        assert "link rate" in shown
        assert "crash" in shown


class TestTail:
    def test_nines_are_equally_far_apart(self) -> None:
        shares = np.array([0, 0.9, 0.99, 0.999])
        np.testing.assert_allclose(share_at(shares, tail=True), [0, 1, 2, 3])
        np.testing.assert_array_equal(share_at(shares, tail=False), shares)

    def test_is_long_if_p99_is_far_from_the_median(self) -> None:
        assert not has_long_tail(np.ones(200))
        assert has_long_tail(np.r_[np.ones(190), np.full(10, 9.0)])
        assert not has_long_tail(np.r_[np.ones(10), np.full(10, 9.0)])  # too few to tell

    def test_is_drawn_up_to_its_nines(self, tmp_path: Path) -> None:
        answers = [served(q, Mode.AVAILABLE, latency=0.1 if q % 50 else 5) for q in range(1000)]
        small(tmp_path / "run.h5", answers, queries=1000).close(finished=True)
        draw(load(tmp_path / "run.h5"), tmp_path / "run.svg")
        assert "99.9%" in words(tmp_path / "run.svg")


class TestComparison:
    def runs(self, folder: Path) -> list[Loaded]:
        """Return a quick run, a slow one of the same scheme, and one without code."""
        for name, latency, job in (("a", 0.1, JOB), ("b", 0.2, JOB), ("c", 0.4, BARE)):
            answers = [served(q, Mode.AVAILABLE, latency=latency) for q in range(7)]
            answers.append(served(7, Mode.LOST))
            small(folder / f"{name}.h5", answers, **LABELS, job_text=job).close(finished=True)
        return [load(folder / f"{name}.h5") for name in "abc"]

    def test_has_one_line_a_run(self, tmp_path: Path) -> None:
        told = compare(self.runs(tmp_path))
        assert [run.name for run in told] == ["learned k=6 r=2 (a)", "learned k=6 r=2 (b)",
                                              "uncoded k=1"]  # fmt: skip
        assert [run.ratio for run in told] == pytest.approx([1, 2, 4])
        assert [run.summary.lost for run in told] == [1, 1, 1]
        assert told[0].mean == pytest.approx(0.1)
        assert told[0].accuracy == 1.0  # of the held-out ones: 0 to 3 are right
        out = io.StringIO()
        Console(file=out, width=120).print(render_comparison(told))
        assert "2.000" in out.getvalue()
        assert "100.00 %" in out.getvalue()

    def test_takes_names(self, tmp_path: Path) -> None:
        runs = self.runs(tmp_path)
        assert [run.name for run in compare(runs, ["x", "y", "z"])] == ["x", "y", "z"]
        with pytest.raises(ResultsError, match="2 labels for 3 results files"):
            compare(runs, ["x", "y"])

    def test_is_drawn_with_its_names(self, tmp_path: Path) -> None:
        draw_comparison(compare(self.runs(tmp_path), ["quick", "slow", "bare"]), tmp_path / "c.svg")
        shown = words(tmp_path / "c.svg")
        for expected in ("quick", "slow", "p50 200 ms, 2.00x", "p50 400 ms, 4.00x", "p95"):
            assert expected in shown

    def test_of_nothing_or_too_many_is_an_error(self, tmp_path: Path) -> None:
        small(tmp_path / "none.h5", []).close(finished=False)
        one, empty = compare([self.runs(tmp_path)[0], load(tmp_path / "none.h5")])
        with pytest.raises(ResultsError, match=r"none\.h5: there is no answer"):
            draw_comparison([one, empty], tmp_path / "c.png")
        with pytest.raises(ResultsError, match="29 runs are too many"):
            draw_comparison([one] * (len(LINES) + 1), tmp_path / "c.png")


@pytest.mark.parametrize(
    ("text", "ranks", "name"),
    [
        (JOB, 9, "learned k=6 r=2"),
        (JOB + "\n# --set code.k=4\n# --set code.name=replication", 9, "replication k=4 r=2"),
        (JOB + '\n# --set code.name="uncoded"\n# --set code.r=0', 9, "uncoded k=6"),
        (JOB + "\n# --set faults.0.rank=3", 9, "learned k=6 r=2"),
        (JOB, 1, "one device"),
        (BARE, 9, "uncoded k=1"),
        ("not a job", 9, "unnamed scheme"),
    ],
)
def test_a_scheme_is_what_the_job_and_its_overrides_say(
    tmp_path: Path, text: str, ranks: int, name: str
) -> None:
    run = loaded(tmp_path / "run.h5", job_text=text)
    layout = dataclasses.replace(run.layout, ranks=ranks)
    assert str(labels(dataclasses.replace(run, layout=layout))) == name


class TestVerb:
    @pytest.fixture
    def say(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Callable[..., tuple[int, str]]:
        """Return a function that runs the verb and returns its status and all that it printed."""

        def say(*words: object) -> tuple[int, str]:
            monkeypatch.setattr("sys.argv", ["mpicoded", "report", *map(str, words)])
            status = main()
            return status, "".join(capsys.readouterr())

        return say

    def test_takes_a_run_apart_draws_a_query_and_writes_its_trace(
        self, tmp_path: Path, say: Callable[..., tuple[int, str]]
    ) -> None:
        loaded(tmp_path / "run.h5")
        picture, trace = tmp_path / "q.png", tmp_path / "run.json"
        status, shown = say(
            tmp_path / "run.h5", "--breakdown", "--figure", picture, "--query", 0, "--trace", trace
        )
        assert status == 0
        assert "queue at the worker" in shown
        assert f"drawn: {picture}" in shown
        assert f"written: {trace}" in shown
        assert picture.stat().st_size > 1000
        assert json.loads(trace.read_text())["traceEvents"]

    def test_compares_several(self, tmp_path: Path, say: Callable[..., tuple[int, str]]) -> None:
        runs = TestComparison().runs(tmp_path)
        names = [word for name in ("x", "y", "z") for word in ("--label", name)]
        paths = [run.path for run in runs]
        status, shown = say(*paths, *names, "--figure", tmp_path / "c.png")
        assert status == 0
        assert "ratio" in shown
        assert (tmp_path / "c.png").stat().st_size > 1000

    @pytest.mark.parametrize(
        ("words", "why"),
        [
            (["a", "--query", 0], "--query 0 is about a picture: give --figure out.png too"),
            (["a", "b", "--breakdown"], "--breakdown is about one run, and 2 files are given"),
            (["a", "b", "--trace", "t.json"], "--trace is about one run, and 2 files are given"),
            (["a", "b", "--figure", "q.png", "--query", 1], "--query is about one run"),
            (["a", "--label", "x"], "--label names runs of a comparison, and one file is given"),
            (["a", "none", "--label", "x"], "there is no such results file"),
        ],
    )
    def test_says_what_does_not_go_together(
        self,
        tmp_path: Path,
        say: Callable[..., tuple[int, str]],
        words: list[object],
        why: str,
    ) -> None:
        loaded(tmp_path / "a.h5")
        loaded(tmp_path / "b.h5")
        paths = [tmp_path / f"{w}.h5" if w in ("a", "b", "none") else w for w in words]
        status, shown = say(*paths)
        assert status == 2
        assert why in shown
        assert shown.startswith("error:")
        assert len(shown.splitlines()) == 1
