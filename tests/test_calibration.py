"""What answers are worth is counted right, on images never trained on, and kept with the code."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mpicoded import __main__ as program
from mpicoded.codes import Code
from mpicoded.codes.replication import Replication
from mpicoded.codes.uncoded import Uncoded
from mpicoded.codes.zerofill import ZeroFill
from mpicoded.deploy import deploy, images, read_weights
from mpicoded.errors import DataError, JobError, MpicodedError, PlanError
from mpicoded.expected_accuracy import AccuracyTable, read_about, read_table, word
from mpicoded.job import Job
from mpicoded.study import train as training
from mpicoded.study.calibrate import calibrate, held_back, patterns
from mpicoded.study.checkpoint import write_weights
from mpicoded.study.setup import training_images

ROOT = Path(__file__).parents[1]
CODE = ROOT / "data/learned-digits-k6r2.safetensors"
TRAIN, SERVE = ROOT / "jobs/train-code-digits.toml", ROOT / "jobs/quickstart.toml"
IMAGES = 1437  # of the digits that are trained on, or held back


def job(*sets: str, file: Path = SERVE) -> Job:
    return Job.read(file, sets)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A copy of the digits' code, without a table."""
    file = tmp_path / "code.safetensors"
    file.write_bytes(CODE.read_bytes())
    return file


# ---- which images


@pytest.mark.parametrize("share", [0.1, 0.03])
@pytest.mark.parametrize("seed", [7, 8])
def test_the_images_are_those_that_training_held_back(share: float, seed: int) -> None:
    sets = (f"train.validation={share}", f"seed={seed}", "train.batch=32")
    trains = Job.read(TRAIN, sets, training=True)
    assert trains.train is not None
    own = training_images(trains, trains.train, torch.device("cpu")).held_back
    about = {"seed": str(seed), "held_back": f"{len(own)} of {IMAGES}", "data": "digits"}
    assert torch.equal(held_back(about, job("seed=3"), IMAGES, None), own)
    assert torch.equal(held_back({}, job(f"seed={seed}"), IMAGES, len(own)), own)


@pytest.mark.parametrize(
    ("about", "told", "says"),
    [
        pytest.param({}, None, "not say how many of the 1437 .*--held-back", id="unknown"),
        pytest.param({"held_back": "6 of 60"}, None, "6 of 60 .* the job has 1437", id="others"),
        pytest.param({}, 1437, "1437 of 1437", id="all"),
        pytest.param({"data": "mnist"}, 9, "trained on 'mnist', and the job has 'dig", id="data"),
    ],
)
def test_images_that_are_not_known_are_told(
    about: dict[str, str], told: int | None, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        held_back(about, job(), IMAGES, told)


def test_a_base_model_of_another_seed_leaves_what_neither_saw(
    weights: Path, tmp_path: Path
) -> None:
    """Of 144 and 144 images about 14 are in both."""
    tensors, about = read_weights(ROOT / "data/lenet5-digits.safetensors")
    base = tmp_path / "base.safetensors"
    write_weights(base, tensors, about | {"seed": "8"})
    sets = (f'code.weights="{weights}"', f'model.weights="{base}"')
    quality = calibrate(job(*sets), 144).table
    assert 5 <= quality.images <= 30
    write_weights(base, tensors, about | {"seed": "8", "held_back": f"1 of {IMAGES}"})
    with pytest.raises(DataError, match="none of the 1437 .* with the same seed"):
        calibrate(job(*sets), 144)


# ---- which sets of units


@pytest.mark.parametrize(
    ("code", "count"),
    [
        pytest.param(ZeroFill(5, 0), 2**5 - 1, id="any unit"),
        pytest.param(Uncoded(5, 0), 1, id="all of them"),
        pytest.param(Replication(3, 3), 3**3, id="one of two, three times"),
        pytest.param(Replication(6, 6), 3**6, id="twelve units"),
    ],
)
def test_every_set_that_makes_an_answer_is_measured(code: Code, count: int) -> None:
    found = [word(arrived) for arrived in patterns(code, 0)]
    assert len(found) == len(set(found)) == count
    assert found[0] == "1" * code.n


def test_of_more_than_twelve_units_a_sample_is() -> None:
    code = ZeroFill(14, 0)
    found = [word(arrived) for arrived in patterns(code, 0)]
    assert found == [word(arrived) for arrived in patterns(code, 0)]
    assert found != [word(arrived) for arrived in patterns(code, 1)]
    kinds = Counter(text.count("0") for text in found)
    assert kinds == {lost: min(comb(14, lost), 32) for lost in range(14)}


# ---- what is counted


def test_counts_are_those_of_a_run_of_its_own(weights: Path) -> None:
    """A few sets again: units, decoder and head, image by image."""
    done = calibrate(job(f'code.weights="{weights}"'), 144)
    quality = done.table
    assert (quality.images, len(quality.counts), quality.sampled) == (144, 2**8 - 1, False)
    served = job(f'code.weights="{weights}"')
    deployment = deploy(served, (1, 32, 32))
    (code,), data = deployment.codes, images(served, "train")
    rows = held_back({}, served, IMAGES, 144)
    x = deployment.normalize(torch.from_numpy(data.images)[rows])
    labels = torch.from_numpy(data.labels)[rows]
    alone = deployment.run_unsplit(x).argmax(1)
    assert quality.base == int((alone == labels).sum())
    for text in ("11111111", "01111111", "10110110", "00000011", "00010000"):
        arrived = np.array([bit == "1" for bit in text])
        answers = torch.cat([_answer(deployment, each[None], arrived) for each in x])
        right, same = int((answers == labels).sum()), int((answers == alone).sum())
        assert quality.counts[text] == (right, same), text
        assert code.accuracy(arrived) == right / 144
    assert quality.counts["1" * 8] == quality.counts["11111100"] == (quality.base, 144)


def _answer(deployment: object, x: torch.Tensor, arrived: np.ndarray) -> torch.Tensor:
    import units
    from mpicoded.runtime.deployment import Deployment

    assert isinstance(deployment, Deployment)
    (stage,), (code,) = deployment.plan.stages, deployment.codes
    with torch.inference_mode():
        inputs = deployment.inputs(0, x, deployment.parity(0, x))
        outputs = [run(u) for run, u in zip(deployment.ready_programs[0], inputs, strict=True)]
        filled = code.decode(units.stack(outputs, stage), arrived)
        own = [units.trim(y, stage, i) for i, y in enumerate(filled)]
        head = deployment.ready_head
        assert head is not None
        return head(units.stitch(own, stage)).argmax(1)


def test_units_that_are_images(tmp_path: Path) -> None:
    """Two of four images arrive as they are; a query's answers are all of its images."""
    file = tmp_path / "copies.json"
    sets = ('code.name="replication"', "code.k=2", "code.r=1", 'plan.split="batch"')
    sets = (*sets, "plan.stages=[]", "input.batch=4", f'code.quality="{file}"')
    text = SERVE.read_text().replace('weights = "../data/learned-digits-k6r2.safetensors"', "")
    (tmp_path / "job.toml").write_text(text.replace("../data", str(ROOT / "data")))
    quality = calibrate(job(*sets, file=tmp_path / "job.toml"), 144).table
    assert set(quality.counts) == {"111", "110", "011"}, "the copy is of unit 0"
    assert set(quality.counts.values()) == {(quality.base, 144)}, "an exact code loses nothing"


# ---- where it is kept


def test_the_weights_stay_as_they_were(weights: Path) -> None:
    before, about = load_file(weights), read_about(weights)
    done = calibrate(job(f'code.weights="{weights}"'), 144)
    assert done.file == weights
    after = load_file(weights)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    now = read_about(weights)
    assert AccuracyTable.parse(now.pop("quality")) == done.table
    assert now == about


def test_an_old_or_broken_table_is_replaced(weights: Path) -> None:
    served = job(f'code.weights="{weights}"')
    first = calibrate(served, 144).table
    tensors, about = read_weights(weights)
    write_weights(weights, tensors, about | {"quality": "{"})
    with pytest.raises(DataError, match="cannot be read"):
        deploy(served, (1, 32, 32))
    assert calibrate(served, 144).table == first
    assert deploy(served, (1, 32, 32)).codes[0].expected == first


def test_of_a_training_job_it_is_the_code_that_it_trained(tmp_path: Path) -> None:
    """Weights say how many images were held back; new weights have no table."""
    out = tmp_path / "new.safetensors"
    sets = (f'train.out="{out}"', "train.epochs=1", "input.limit=256", "train.batch=32")
    trains = Job.read(TRAIN, sets, training=True)
    training.train(trains)
    assert read_about(out)["held_back"] == "26 of 256"
    done = calibrate(Job.read(TRAIN, sets), 26)  # the base model does not say
    assert (done.file, done.table.images) == (out, 26)
    assert "quality" in read_about(out)
    training.train(trains)
    assert "quality" not in read_about(out)


def test_a_code_without_weights_has_a_file_of_its_own(tmp_path: Path) -> None:
    text = SERVE.read_text().replace('weights = "../data/learned-digits-k6r2.safetensors"', "")
    file = tmp_path / "job.toml"
    file.write_text(text.replace("../data", str(ROOT / "data")))
    copies = ('code.name="replication"', "code.r=6")
    with pytest.raises(JobError, match=r"'replication' has no weights .*quality = "):
        calibrate(job(*copies, file=file), 144)
    kept = (*copies, 'code.quality="tables/copies.json"')
    with pytest.raises(DataError, match=r"copies.json: No such file .*mpicoded calibrate"):
        deploy(job(*kept, file=file), (1, 32, 32))
    done = calibrate(job(*kept, file=file), 144)
    assert done.file == tmp_path / "tables/copies.json"
    assert read_table(job(*kept, file=file)) == done.table
    aimed = deploy(job(*kept, "gather.min_accuracy=0.9", file=file), (1, 32, 32))
    assert aimed.codes[0].expected == done.table
    with pytest.raises(DataError, match="r = 6 where the job needs 12"):
        deploy(job(*kept, "code.r=12", file=file), (1, 32, 32))


CASES: dict[str, tuple[tuple[str, ...], type[MpicodedError], str]] = {
    "stages": (('plan.stages=["pool1", "pool2"]',), PlanError, "has 2 stages: .*name one block"),
    "two homes": (('code.quality="x.json"',), JobError, "goes with no weights, and weights = "),
    "no table": (('code.quality="x.txt"',), JobError, r"'x.txt' is no quality table: .* in .json"),
    "batch": (("input.batch=200",), DataError, "do not make one query of 200"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_told(weights: Path, name: str) -> None:
    sets, kind, says = CASES[name]
    with pytest.raises(kind, match=says):
        calibrate(job(f'code.weights="{weights}"', *sets), 144)


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``say(status, *args)`` is what the command prints."""

    def say(status: int, *args: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["mpicoded", *map(str, args)])
        monkeypatch.setenv("COLUMNS", "100")
        ended = 0
        try:
            ended = program._alone()
        except SystemExit as end:
            ended = int(end.code or 0)
        printed = capsys.readouterr()
        assert ended == status, printed
        return printed.out + printed.err

    return say


def test_the_verb_shows_what_is_expected(weights: Path, say: Callable[..., str]) -> None:
    words = ("calibrate", SERVE, "--set", f'code.weights="{weights}"')
    assert "--held-back" in say(2, *words)
    shown = say(0, *words, "--held-back", "144")
    assert "144 images held back" in shown
    assert f"written: {weights}" in shown.replace("\n", "")
    assert "standard error" in shown
