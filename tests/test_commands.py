"""What the verbs `plan` and `data` print, and that they are run once also under mpirun."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from digits import UNTRAINED
from launching import Ended
from mpicoded import __main__ as program

JOB = f"""\
{UNTRAINED}
[plan]
split = "width"
stages = ["pool1", "pool2"]
[code]
name = "replication"
k = 3
r = 1
"""

Say = Callable[..., str]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """``say(*args)`` is what the command prints."""
    (tmp_path / "job.toml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MPICODED_DATA", raising=False)
    monkeypatch.setenv("MPICODED_CACHE", str(tmp_path / "cache"))

    def say(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mpicoded", *args])
        assert program._alone() == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    return say


def test_plan_is_aligned(say: Say) -> None:
    blocks = say("plan", "job.toml", "-n", "6").split("\n\n")
    assert blocks[0] == ("split = width, k = 3 data units, r = 1 parity units, images a query: 1")
    for block, number in zip(blocks[1:3], "12", strict=True):
        title, *table = block.splitlines()
        assert title.startswith(f"stage {number} of 2: conv{number} … pool{number}, ")
        assert len(table) == 1 + 4
        assert len({len(line) for line in table}) == 1
        assert [line.split()[0] for line in table] == ["rank", "1", "2", "3", "4"]
    assert blocks[3].splitlines()[-1] == "spare ranks   5"


def test_plan_for_one_rank_says_that_nothing_is_split(say: Say) -> None:
    note, _, plan = say("plan", "job.toml", "-n", "1").partition("\n\n")
    assert note == "one rank runs the model unsplit; with more of them:"
    assert plan == say("plan", "job.toml")


STEPS = """\
0  cut>1,2,3 enc>4  gather cut>1,2,3 enc>4  gather head
1  <0 run 0.0 >0           <0 run 1.0 >0
2  <0 run 0.1 >0           <0 run 1.1 >0
3  <0 run 0.2 >0           <0 run 1.2 >0
4  <0 run 0.3 >0           <0 run 1.3 >0
"""


def test_plan_shows_its_steps(say: Say) -> None:
    assert say("plan", "job.toml", "--steps") == STEPS
    assert say("plan", "job.toml", "--steps", "-n", "6") == STEPS
    note, _, drawing = say("plan", "job.toml", "--steps", "-n", "1").partition("\n\n")
    assert note.startswith("one rank runs the model unsplit") and drawing == STEPS
    shared = say("plan", "job.toml", "--steps", "-n", "3", "--set", "runtime.sharing=true")
    assert shared.splitlines()[1:] == [
        "1  <0 run 0.0 run 0.3 >0         <0 run 1.0 run 1.3 >0",
        "2  <0 run 0.1 run 0.2 >0         <0 run 1.1 run 1.2 >0",
    ]


CLUSTER = """\
[[device]]
ranks = [0, 1, 2, 3, 4]
flops = 1e6
sends = 1e6
receives = 1e6
"""


def test_plan_with_a_cluster_shows_seconds_that_add_up(say: Say, tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    flags = ("--set", "plan.cluster=cluster.toml")
    text = say("plan", "job.toml", *flags, "-n", "5")
    *_, prediction = text.split("\n\n")
    head, *rows, verdict, bound = prediction.splitlines()
    assert head.split() == [
        "seconds",
        "of",
        "a",
        "query",
        "send",
        "compute",
        "receive",
        "leader",
        "all",
    ]
    assert len({len(line) for line in (head, *rows)}) == 1
    stages = [[float(x) for x in row.split()[2:]] for row in rows[:2]]
    for *parts, total in stages:
        assert sum(parts) == pytest.approx(total, abs=3e-4)
    totals = {row.rsplit(maxsplit=1)[0].strip(): float(row.split()[-1]) for row in rows}
    query, alone = totals["one query"], totals["one device, T_1"]
    assert query == pytest.approx(sum(s[-1] for s in stages) + float(rows[2].split()[-1]), abs=3e-4)
    assert verdict == f"predicted     {alone / query:.2f} times as fast as one device"
    assert bound.startswith("bound ") and "the workers (FLOPs / rate) binds most" in bound
    chosen = say("plan", "job.toml", *flags, "--set", "plan.stages=auto", "-n", "5")
    assert "one device, T_1" in chosen


def test_data_list(say: Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = say("data", "list").splitlines()
    assert lines[0].split() == ["digits", "bundled"]
    assert [line.split()[0] for line in lines[1:]] == ["mnist", "fashion-mnist", "cifar-10"]
    assert all("not here; python -m mpicoded data fetch" in line for line in lines[1:])
    assert len({len(line.split("not here")[0]) for line in lines[1:]}) == 1
    (tmp_path / "sets" / "mnist").mkdir(parents=True)
    (tmp_path / "sets" / "mnist" / "x").touch()
    monkeypatch.setenv("MPICODED_DATA", str(tmp_path / "sets"))
    assert f"in {tmp_path / 'sets' / 'mnist'}" in say("data", "list")


def test_under_mpirun_other_verbs_run_once(mpirun: Callable[..., Ended]) -> None:
    ended = mpirun(3, ["-m", "mpicoded", "data", "list"], timeout=60)
    assert (ended.status, ended.left) == (0, ()), ended.output
    assert ended.stdout.count("digits") == 1
