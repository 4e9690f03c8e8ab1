"""Evaluations: every pattern counted right, for shards and for images, and beside baselines."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from PIL import Image
from rich.console import Console

import units
from digits import TRAINED
from mpicoded import __main__ as program
from mpicoded.codes.erasures import erasures
from mpicoded.deploy import deploy, images
from mpicoded.errors import JobError, ResultsError
from mpicoded.job import Job
from mpicoded.study import evaluate as evaluating
from mpicoded.study.evaluate import SHUFFLE, evaluate
from mpicoded.study.evaluation import (
    EVALUATION,
    Evaluation,
    Outcome,
    Row,
    read_evaluation,
    write_evaluation,
)
from mpicoded.study.report.evaluation import draw_evaluation, in_order, render_evaluation
from mpicoded.study.score import NORMAL, overall
from outcomes import drops, intact, recovery

ROOT = Path(__file__).parent.parent
CODE = ROOT / "jobs/train-code-digits.toml"
WEIGHTS = ROOT / "data/learned-digits-k6r2.safetensors"
BASE = ROOT / "data/lenet5-digits.safetensors"
IMAGES = f"""\
{TRAINED}
batch = 4
[plan]
split = "batch"
[code]
name = "replication"
k = 2
r = 1
"""


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """The committed weights on the held-out digits."""
    return evaluate(Job.read(CODE, [f'code.weights="{WEIGHTS}"']))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only 60 test images."""
    monkeypatch.setattr(evaluating, "images", lambda job, split: images(job, split, 60))


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """A job whose units are images."""
    (tmp_path / "groups.toml").write_text(IMAGES)
    return tmp_path / "groups.toml"


def text(found: Evaluation) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(render_evaluation(found))
    return out.getvalue()


def rows(found: Evaluation, scheme: str) -> dict[tuple[int, int], Row]:
    return {(row.data, row.parity): row for row in found.rows if row.scheme == scheme}


def test_committed_base(evaluation: Evaluation) -> None:
    """At least 98 % of the 360 held-out digits."""
    assert evaluation.queries == 360
    assert evaluation.available >= 0.98


def test_committed_code_without_loss(evaluation: Evaluation) -> None:
    """With every data unit here nothing changes."""
    assert intact(evaluation)


@pytest.mark.parametrize(("missing", "patterns", "drop"), [(1, 18, 0.5), (2, 15, 1.0)])
def test_committed_code(evaluation: Evaluation, missing: int, patterns: int, drop: float) -> None:
    """The mean drop over all patterns is within what is asked, and below zero-fill's."""
    lost = drops(evaluation, "learned", missing)
    assert len(lost) == patterns
    assert lost.mean() <= drop
    assert lost.mean() < drops(evaluation, "zero-fill", missing).mean()
    assert lost.mean() < drops(evaluation, "mean", missing).mean()
    assert recovery(evaluation, "learned", missing) > 0.99


def test_committed_code_is_cheap(evaluation: Evaluation) -> None:
    """Encoder and decoder together cost at most one data unit."""
    (code,) = evaluation.candidates
    assert 0 < code.encoder.flops + code.decoder.flops <= code.unit_flops
    assert code.encoder.parameters + code.decoder.parameters + code.coded_parameters < 20_000
    assert code.coded_flops <= code.unit_flops  # a parity unit costs no more than a data unit


def test_evaluation_by_hand(evaluation: Evaluation) -> None:
    """One pattern, recomputed on the whole map: zero the columns that are missing."""
    job = Job.read(CODE, [f'code.weights="{WEIGHTS}"'])
    deployment = deploy(job, (1, 32, 32))
    data = images(job, "test")
    with torch.inference_mode():
        x = torch.from_numpy(data.images)
        outputs = [
            run(u)
            for run, u in zip(
                deployment.programs()[0][:6],
                units.cut(x / 255, deployment.plan.stages[0]),
                strict=True,
            )
        ]
        feature_map = units.stitch(outputs, deployment.plan.stages[0])
        feature_map[..., [1, 4]] = 0
        assert deployment.head is not None
        right = deployment.head(feature_map).argmax(1).numpy() == data.labels
    (outcome,) = (
        o for o in evaluation.outcomes
        if o.scheme == "zero-fill" and np.flatnonzero(~o.arrived).tolist() == [1, 4]
    )  # fmt: skip
    assert outcome.accuracy == pytest.approx(right.mean(), abs=1 / 360)


OTHERS = {
    "uncoded": ('code.name="uncoded"', "code.r=0"),
    "replication": ('code.name="replication"', "code.k=3", "code.r=3"),
    "two stages": (
        'code.name="replication"', "code.k=2", "code.r=2", 'plan.stages=["pool1", "pool2"]',
    ),
    "images": (
        'code.name="replication"', "code.k=2", "code.r=2", "plan.stages=[]", 'plan.split="batch"',
        "input.batch=4",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_exact_codes_lose_nothing(changes: tuple[str, ...]) -> None:
    """Whatever replication can decode is the unsplit model's own answer."""
    result = evaluate(Job.read(CODE, changes))
    assert intact(result)
    exact = [o for o in result.outcomes if o.scheme == "replication"]
    assert bool(exact) == ('code.name="replication"' in changes)
    assert all(o.recovery == 1 and o.accuracy == result.available for o in exact)


def test_tables(evaluation: Evaluation) -> None:
    """A row for every scheme and number of missing units, one for each part of the code."""
    said = text(evaluation)
    assert sum("learned" in line for line in said.splitlines()) == 3 + 1 + 3 + 1
    assert sum("zero-fill" in line for line in said.splitlines()) == 2 + 1
    assert "A_a = 99.44 % of 360 test images, 360 queries" in said
    assert "bits the same as uncoded, predictions the same as unsplit" in said


def test_rows_keep_parity_apart(evaluation: Evaluation) -> None:
    """Losses of data alone come first, then those that hit parity too; a baseline has none."""
    own = rows(evaluation, "learned")
    assert {key: row.patterns for key, row in own.items()} == {(1, 0): 6, (1, 1): 12, (2, 0): 15}
    assert rows(evaluation, "zero-fill").keys() == {(1, 0), (2, 0)}
    keys = list(dict.fromkeys((row.data, row.parity) for row in in_order(evaluation)))
    assert keys == [(1, 0), (2, 0), (1, 1)]


def test_interval_by_hand(evaluation: Evaluation) -> None:
    """Of zero-fill with one column missing: from the differences image by image."""
    job = Job.read(CODE, [f'code.weights="{WEIGHTS}"'])
    deployment, data = deploy(job, (1, 32, 32)), images(job, "test")
    stage, head = deployment.plan.stages[0], deployment.head
    assert head is not None
    labels = torch.from_numpy(data.labels)
    with torch.inference_mode():
        x = deployment.normalize(torch.from_numpy(data.images))
        outputs = [
            run(u) for run, u in zip(deployment.programs()[0][:6], units.cut(x, stage), strict=True)
        ]
        whole = units.stitch(outputs, stage)
        base = (head(whole).argmax(1) == labels).float()
        lost = []
        for column in range(6):
            hole = whole.clone()
            hole[..., column] = 0
            lost.append(base - (head(hole).argmax(1) == labels).float())
    each = 100 * torch.stack(lost).mean(0).numpy()  # of every image, mean over the patterns
    row = rows(evaluation, "zero-fill")[1, 0]
    assert row.drop == pytest.approx(each.mean(), abs=1e-6)
    assert row.interval == pytest.approx(NORMAL * each.std(ddof=1) / np.sqrt(360), rel=1e-6)
    assert row.worst == pytest.approx(100 * max(float(x.mean()) for x in lost), abs=1e-6)


def test_copies_fill_what_they_have(evaluation: Evaluation) -> None:
    """Two copies, of units 0 and 1: exact where these are missing, zero for the others."""
    zero = {tuple(o.arrived): o for o in evaluation.outcomes if o.scheme == "zero-fill"}
    for outcome in evaluation.outcomes:
        if outcome.scheme != "replication, else zero":
            continue
        arrived = outcome.arrived[:6].copy()
        arrived[:2] |= outcome.arrived[6:]
        if arrived.all():
            assert outcome.recovery == 1
        else:
            assert outcome.accuracy == zero[tuple(arrived)].accuracy


def test_beyond_what_the_code_is_made_for(few: None) -> None:
    """A network that knows what is here fills in three lost ones as well, if less well."""
    job = Job.read(CODE, [f'code.weights="{WEIGHTS}"'])
    found = evaluate(job, lost=3)
    own = rows(found, "learned")
    assert {(3, 0), (2, 1), (1, 2)} < own.keys()
    assert own[3, 0].patterns == own[3, 0].possible == 20


def test_units_that_are_images(groups: Path) -> None:
    """A_d is over what is missing: replication has a copy of image 0 only."""
    job = Job.read(groups)
    found = evaluate(job)
    assert (found.images, found.queries, found.by_images) == (360, 90, True)
    data = images(job, "test")
    order = torch.randperm(360, generator=torch.Generator().manual_seed(SHUFFLE))
    parts = torch.split(order, 360)  # one chunk: its first half is unit 0 of all groups
    deployment = deploy(job, (1, 32, 32))
    alone = deployment.run_unsplit(torch.from_numpy(data.images)).argmax(1).numpy()
    first, second = (np.concatenate([p.chunk(2)[i].numpy() for p in parts]) for i in (0, 1))
    own = rows(found, "replication")[1, 0]
    assert (own.patterns, own.possible) == (1, 2)
    assert own.recovery == 1
    assert own.accuracy == pytest.approx((alone[first] == data.labels[first]).mean())
    zeros = {tuple(o.arrived): o for o in found.outcomes if o.scheme == "zero-fill"}
    for pattern, missing in (((False, True), first), ((True, False), second)):
        outcome = zeros[pattern]
        assert outcome.accuracy == pytest.approx((data.labels[missing] == 0).mean())  # class 0
        right = alone == data.labels
        right[missing] = data.labels[missing] == 0
        assert outcome.group == pytest.approx(right.mean())


def test_code_that_is_not_systematic(groups: Path, few: None) -> None:
    """All its outputs are filled in, with nothing missing too, and baselines stand beside."""
    found = evaluate(Job.read(groups, ["code.name=berrut", "code.k=4"]))
    own = rows(found, "berrut")
    assert own.keys() == {(0, 0), (1, 0)}
    assert own[1, 0].patterns == 5  # any of the five units
    assert all(row.accuracy == row.group for row in own.values())
    assert own[0, 0].accuracy > own[1, 0].accuracy > rows(found, "zero-fill")[1, 0].accuracy
    assert not found.candidates[0].systematic
    assert "berrut is not systematic" in text(found)
    whole = next(o for o in found.overall if o.scheme == "berrut" and o.f == 0)
    assert whole.answers == pytest.approx(own[0, 0].group)
    assert whole.units == pytest.approx(own[0, 0].group)


def test_several_jobs_are_one_table(groups: Path, few: None) -> None:
    """Codes are named, share their baselines where the cut is the same, and their queries."""
    jobs = [Job.read(groups), Job.read(groups, ["code.k=4"]), Job.read(groups, ["code.r=2"])]
    found = evaluate(*jobs)
    schemes = list(dict.fromkeys(row.scheme for row in found.rows))
    assert schemes == [
        "replication k=2 r=1", "replication k=4 r=1", "replication k=2 r=2",
        "zero-fill k=2 batch", "mean k=2 batch", "replication, else zero k=2 batch r=1",
        "replication, else zero k=2 batch r=2", "zero-fill k=4 batch", "mean k=4 batch",
        "replication, else zero k=4 batch",
    ]  # fmt: skip
    alone = evaluate(jobs[1])
    both = rows(found, "replication k=4 r=1"), rows(alone, "replication")
    assert both[0][1, 0].accuracy == both[1][1, 0].accuracy
    assert len(found.candidates) == 3
    same = evaluate(jobs[0], jobs[0])
    assert [c.scheme for c in same.candidates] == [
        "replication (groups) 1",
        "replication (groups) 2",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("input.size=[28, 28]", r"\[input\] size = \(32, 32\) and groups.toml has \(28, 28\)"),
        ("input.batch=8", r"\[input\] batch = 4 and groups.toml has 8: codes are compared on the"),
        ('model.name="base-mlp"', r"\[model\] name = lenet5 and groups.toml has base-mlp"),
        ("model.args={classes=4}", r"\[model\] args = {} and groups.toml has {'classes': 4}"),
    ],
)
def test_jobs_that_differ(groups: Path, change: str, message: str) -> None:
    """Other networks or other queries are not compared."""
    with pytest.raises(JobError, match=message):
        evaluate(Job.read(groups), Job.read(groups, [change]))


def fake(k: int, r: int, by_images: bool) -> Any:
    """A scheme of which A_o needs no network."""

    def missing(arrived: Any) -> Any:
        data = ~arrived[:k]
        return data if by_images else np.array([data.any()])

    return SimpleNamespace(
        name="x", k=k, r=r, scenario=r, systematic=True, by_images=by_images,
        outputs_missing=missing,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("k", "r", "rho"), [(2, 1, 0.810), (4, 1, 0.656), (5, 1, 0.590), (4, 2, 0.919)]
)
def test_overall_is_the_references(k: int, r: int, rho: float) -> None:
    """Both forms of section 2, whose table of rho (f = 0.1) is that of these k and r."""
    best, degraded, f = 0.95, 0.7, 0.1
    outcomes = []
    for arrived in erasures(k + r, r):
        data, parity = int((~arrived[:k]).sum()), int((~arrived[k:]).sum())
        if data:
            outcomes.append(Outcome("x", arrived, data, parity, degraded, 0.0, 1.0, 1.0))
    keys = {(o.data, o.parity) for o in outcomes}
    found = tuple(Row("x", *key, 1, 1, degraded, 0.0, 0.0, 0.0, 1.0, 1.0) for key in keys)
    result = overall(fake(k, r, True), best, found, tuple(outcomes), f)
    assert result.answers == pytest.approx((1 - f) * best + f * degraded)
    assert result.units == pytest.approx((1 - f) * best + f * rho * degraded, abs=1e-4)
    shards = overall(fake(k, r, False), best, found, tuple(outcomes), f)
    assert shards.answers == result.answers
    lost = sum(f**o.lost * (1 - f) ** (k + r - o.lost) for o in outcomes)
    assert shards.units == pytest.approx((1 - f) ** k * best + lost * degraded)


def test_file_comes_back(evaluation: Evaluation, tmp_path: Path) -> None:
    """All numbers of an evaluation stand in its file, which others can read too."""
    path = tmp_path / "e.h5"
    write_evaluation(path, evaluation, {"job": "text"})
    found = read_evaluation(path)
    assert found.attrs["job"] == "text"
    back = found.evaluation
    for one, other in zip(evaluation.outcomes, back.outcomes, strict=True):
        assert one.arrived.tolist() == other.arrived.tolist()
        assert vars(one) | {"arrived": 0} == vars(other) | {"arrived": 0}
    names = ("rows", "overall", "candidates", "available", "queries", "images", "by_images")
    assert all(getattr(evaluation, name) == getattr(back, name) for name in names)
    assert text(back) == text(evaluation)
    for group in {variable.path.split("/")[0] for variable in EVALUATION.variables}:
        with xarray.open_dataset(path, engine="h5netcdf", group=group) as dataset:
            assert all("long_name" in v.attrs for v in dataset.data_vars.values())


def test_picture(evaluation: Evaluation, tmp_path: Path) -> None:
    """It is drawn, and says when it cannot be."""
    draw_evaluation(evaluation, tmp_path / "e.png")
    assert Image.open(tmp_path / "e.png").size[0] == 1800
    many = SimpleNamespace(outcomes=(1,), candidates=range(7))
    with pytest.raises(ResultsError, match="7 codes are too many for one picture"):
        draw_evaluation(many, tmp_path / "e.png")  # type: ignore[arg-type]


def test_verbs(
    groups: Path, few: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``evaluate --out`` and then ``report --figure``: the same tables, and a picture."""

    def say(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["mpicoded", *args])
        assert program._alone() == 0
        return capsys.readouterr().out

    monkeypatch.chdir(groups.parent)
    said = say("evaluate", "groups.toml", "--out", "e.h5", "--f", "0.2")
    assert "answers 20 %" in said
    again = say("report", "e.h5", "--figure", "e.png")
    assert said.split("written: ")[0] == again.split("drawn: ")[0]
    assert (groups.parent / "e.png").is_file()
    attrs = read_evaluation(Path("e.h5")).attrs
    assert "replication" in attrs["job"]
    assert attrs["command"].startswith("mpicoded evaluate groups.toml --out e.h5")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["evaluate"], "Missing argument 'JOB...'"),
        (["evaluate", "groups.toml", "--f", "2"], "--f 2: is a share, from 0 to 1"),
        (["evaluate", "groups.toml", "--lost", "0"], "--lost 0: is a number of units, from 1"),
        (["evaluate", "groups.toml", "--out", "x.txt"], "x.txt: is no results file: let it end in"),
        (["evaluate", "groups.toml", "--out", "no/x.h5"], "no is no folder; name a file in a"),
        (["evaluate", "groups.toml", "none.toml"], "none.toml: there is no such job file"),
        (["evaluate", "groups.toml", "--set", "input.batch=1000"], "do not make one query of 1000"),
        (["report", "e.h5", "--query", "1", "--figure", "x.png"], "--query is about a run, and e"),
        (["report", "e.h5", "e.h5"], "codes are compared by one evaluation of all of them"),
        (["report", "e.h5", "t.training.h5"], "report them one kind at a time"),
        (["report", "t.training.h5", "--trace", "x.json"], "--trace is about a run"),
    ],
)
def test_bad_input(
    args: list[str],
    says: str,
    groups: Path,
    evaluation: Evaluation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One clear line, status 2, and nothing is written."""
    from mpicoded.study.history import History, write_history

    monkeypatch.chdir(groups.parent)
    write_evaluation(Path("e.h5"), evaluation, {})
    write_history(Path("t.training.h5"), History([1.0], [1.0], [1.0], [1.0]), {})
    before = sorted(groups.parent.iterdir())
    monkeypatch.setattr(sys, "argv", ["mpicoded", *args])
    assert program._alone() == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert sorted(groups.parent.iterdir()) == before
