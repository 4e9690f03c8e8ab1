"""The choice of k: the reference's table of CoCoI's layers, and clusters of a job."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mpicoded import __main__ as program
from mpicoded.clusterfile import read_laws
from mpicoded.cost.redundancy import (
    Law,
    Laws,
    Layer,
    closed_form,
    expected,
    replicated,
    surrogate,
)

LAWS = Path(__file__).parents[1] / "data" / "laws"

# Raspberry Pi 4B, moment fits; and the set of the published simulation
PI = Laws(
    master=Law(1.1415e-9, 1.375e9),
    receive=Law(7.83e-7, 6.644e5),
    compute=Law(1.1415e-9, 1.375e9),
    send=Law(3.318e-7, 1.197e6),
)
SIM = Laws(Law(5e-9, 5e9), Law(1e-7, 1e6), Law(1e-8, 1e9), Law(1e-7, 1e6))
VGG1, VGG3, RES = (64, 224, 64, 224, 3, 1), (256, 56, 256, 56, 3, 1), (64, 56, 128, 28, 3, 2)
ROWS = (  # layer, laws, best k, its seconds, k°, its seconds, uncoded, replication
    pytest.param(VGG1, PI, (7, 8), 8.35, 6, 8.67, 9.84, 11.47, id="vgg 224, Pi"),
    pytest.param(VGG3, PI, (8,), 3.04, 6, 3.24, 3.46, 4.17, id="vgg 56, Pi"),
    pytest.param(RES, PI, (7,), 0.428, 6, 0.435, 0.564, 0.581, id="strided, Pi"),
    pytest.param(VGG1, SIM, (9,), 10.54, 7, 11.10, 10.59, 14.76, id="vgg 224, sim"),
    pytest.param(VGG3, SIM, (9,), 6.33, 8, 6.70, 6.09, 9.99, id="vgg 56, sim"),
)


def layer(row: tuple[int, ...]) -> Layer:
    """The reference's (C, H, C', H', kernel, stride); maps are square and H is not padded."""
    channels, height, filters, rows, kernel, stride = row
    return Layer(channels, height, filters, rows, rows, kernel, stride)


@pytest.mark.parametrize(("row", "laws", "best", "least", "k", "there", "uncoded", "twice"), ROWS)
def test_reference(row, laws, best, least, k, there, uncoded, twice) -> None:
    """Values were printed with three digits, of 40,000 draws."""
    conv = layer(row)
    seconds = expected(conv, laws, 10)
    assert int(np.argmin(seconds[:9])) + 1 in best
    assert seconds[:9].min() == pytest.approx(least, rel=0.005)
    assert closed_form(conv, laws, 10) == k
    assert seconds[k - 1] == pytest.approx(there, rel=0.005)
    assert seconds[9] == pytest.approx(uncoded, rel=0.01)
    assert replicated(conv, laws, 10) == pytest.approx(twice, rel=0.005)


def test_closed_form_is_term_by_term() -> None:
    """L(k) is the mean of every term, with ln(n/(n - k)) for the k-th of n."""
    conv, n, k = layer(VGG3), 10, 4
    terms = (
        (conv.receive(k), PI.receive),
        (conv.compute(k), PI.compute),
        (conv.send(k), PI.send),
    )
    spread = np.log(n / (n - k))
    workers = sum(work * (law.theta + spread / law.mu) for work, law in terms)
    total = workers + conv.master(n, k) * PI.master.mean
    assert surrogate(conv, PI, n, k) == pytest.approx(total)


def test_failures_leave_no_choice_above() -> None:
    """With two dead workers ten parts never come."""
    seconds = expected(layer(RES), PI, 10, failed=2)
    assert np.isinf(seconds[8:]).all() and np.isfinite(seconds[:8]).all()
    healthy = expected(layer(RES), PI, 10)
    assert (seconds[:8] > healthy[:8]).all()


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
JOB = """\
[model]
name = "lenet5"
[input]
data = "digits"
size = [32, 32]
[plan]
split = "width"
stages = ["conv1", "conv2"]
linear = true
cluster = "cluster.toml"
[code]
name = "mds"
k = 4
r = 2
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
    assert "k° of conv1 (CoCoI, closed form): " in rough


def test_choice_by_laws(say) -> None:
    """It is the sum over the stages, with replication beside it."""
    text = say("plan", "job.toml", "--choose-k", "--laws", str(LAWS / "pi.toml"))
    convs = (Layer(1, 36, 6, 32, 32, 5, 1), Layer(6, 16, 16, 12, 12, 5, 1))
    total = sum(expected(conv, PI, 6) for conv in convs)
    assert list(rows(text).values()) == pytest.approx(list(total), abs=1e-4)
    assert "replication, 3 parts twice" in text


def test_files_of_laws() -> None:
    """The two sets of the reference."""
    assert read_laws(LAWS / "pi.toml") == PI
    assert read_laws(LAWS / "sim.toml") == SIM


POOL = ("--set", "plan.linear=false", "--set", 'plan.stages=["pool2"]')


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--set", 'plan.tiles=[2,2]', "--set", 'plan.split="tiles"'], "tiles and weights"),
        (["--laws", "job.toml"], "job.toml: model is not a key; the keys here are master, receive"),
        (["--laws", "wrong.toml"], "[master] nu is not a key; the keys here are theta, mu"),
        (["--laws", str(LAWS / "pi.toml"), *POOL], "--laws is a model of convolutions"),
    ],
)  # fmt: skip
def test_mistakes(say, tmp_path: Path, args: list[str], why: str) -> None:
    """Named in one line."""
    (tmp_path / "wrong.toml").write_text(
        (LAWS / "pi.toml").read_text().replace("mu =", "nu = 1.0, mu =", 1)
    )
    assert why in say("plan", "job.toml", "--choose-k", *args, status=2)


def test_no_cluster_no_laws(say, tmp_path: Path) -> None:
    """What is missing is said, with both ways out."""
    (tmp_path / "job.toml").write_text(JOB.replace('cluster = "cluster.toml"\n', ""))
    text = say("plan", "job.toml", "--choose-k", status=2)
    assert "[plan] cluster is missing" in text and "--laws" in text


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
