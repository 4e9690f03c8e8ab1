"""The choice of k by simulation, and of stages, on a job's cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from digits import UNTRAINED
from mpicoded import __main__ as program

CLUSTER = """\
[[device]]
ranks = [0, 1, 2, 3, 4, 5, 6]
flops = 1e8
values = 1e8
pack = 1e8
unpack = 1e8
sends = 1e6
receives = 1e6
"""
JOB = f"""\
{UNTRAINED}
[plan]
split = "width"
stages = ["conv1", "conv2"]
linear = true
cluster = "cluster.toml"
[code]
name = "mds"
k = 4
r = 2
[gather]
deadline = 0.0
"""


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``say(*args)`` runs a verb and returns what it prints."""
    (tmp_path / "job.toml").write_text(JOB)
    (tmp_path / "cluster.toml").write_text(CLUSTER)
    monkeypatch.chdir(tmp_path)

    def say(*args: str, status: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["mpicoded", *args])
        assert program._alone() == status
        printed = capsys.readouterr()
        return printed.err if status else printed.out

    return say


def rows(text: str) -> dict[int, float]:
    """Seconds by k."""
    found = [line.split() for line in text.splitlines()]
    return {int(row[0]): float(row[2]) for row in found if len(row) > 2 and row[0].isdigit()}


def test_choice_on_a_cluster(say) -> None:
    """The more the workers straggle, the more redundancy pays."""
    calm, rough = (say("plan", "job.toml", "--choose-k", "--straggling", s) for s in ("0", "4"))
    assert list(rows(calm)) == [1, 2, 3, 4, 5, 6] == list(rows(rough))
    gains = [rows(text)[6] / min(rows(text).values()) for text in (calm, rough)]
    assert gains[1] > 1.1 * gains[0] > 1
    assert rows(rough)[6] > 1.5 * rows(calm)[6]


def test_mistakes(say, tmp_path: Path) -> None:
    """Named in one line, with the way out."""
    tiles = ("--set", "plan.tiles=[2,2]", "--set", 'plan.split="tiles"')
    assert "tiles and weights" in say("plan", "job.toml", "--choose-k", *tiles, status=2)
    (tmp_path / "job.toml").write_text(JOB.replace('cluster = "cluster.toml"\n', ""))
    text = say("plan", "job.toml", "--choose-k", status=2)
    assert "[plan] cluster is missing" in text and "mpicoded profile" in text


def test_stages_that_are_worth_it(say) -> None:
    """stages = "auto" leaves a convolution to the leader where workers are no faster."""
    text = say("plan", "job.toml", "--set", "plan.stages=auto")
    assert text.count("\nstage ") >= 1
    slow = CLUSTER.replace("receives = 1e6", "receives = 1e3").replace("sends = 1e6", "sends = 1e3")
    Path("cluster.toml").write_text(slow)
    assert say("plan", "job.toml", "--set", "plan.stages=auto").count("\nstage ") == 1


def test_auto_leaves_out_what_cannot_be_cut(say) -> None:
    """conv2 gives 12 columns; alone, it is refused."""
    more = ("--set", "plan.stages=auto", "--set", "code.k=13")
    assert "stage 1 of 1: conv1" in say("plan", "job.toml", *more)
    assert "k = 33" in say("plan", "job.toml", *more, "--set", "code.k=33", status=2)


@pytest.mark.parametrize("split", ["width", "channels"])
def test_prediction(say, split: str) -> None:
    """What the leader runs between stages is priced; shares of filters too."""
    both = say("plan", "job.toml", "--set", f"plan.split={split}")
    one = say("plan", "job.toml", "--set", f"plan.split={split}", "--set", 'plan.stages=["conv2"]')

    def seconds(text: str, what: str) -> float:
        return float(next(x for x in text.splitlines() if x.strip().startswith(what)).split()[-1])

    conv1 = 2 * 6 * 32 * 32 * 25 / 1e8
    gap = seconds(one, "blocks on rank 0") - seconds(both, "blocks on rank 0")
    assert gap == pytest.approx(conv1, abs=2e-4)
    assert seconds(one, "one device") == seconds(both, "one device")
