"""Classes of outputs: the largest, the right side of a border, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from many_jobs import LiveRanks
from mpicoded.classes import border, check_scores, classes
from mpicoded.errors import DataError, ModelError
from mpicoded.job import Job
from mpicoded.network.graph import Chain, trace
from mpicoded.results import load
from mpicoded.study.evaluate import evaluate
from mpicoded.study.train import train
from outcomes import intact

nan, inf = np.nan, np.inf


def test_the_largest_and_none_of_what_is_not_finite() -> None:
    scores = [[0.0, 2.0, 1.0], [3.0, 2.0, nan], [inf, 0.0, 0.0], [0.0, 0.0, -inf], [-1.0, -2, -3]]
    assert classes(scores).tolist() == [1, -1, -1, -1, 0]
    assert classes(torch.tensor(scores)[None]).tolist() == [[1, -1, -1, -1, 0]]


def test_one_output_is_above_the_border_or_not() -> None:
    scores = [[0.4], [0.6], [-1.0], [nan], [inf]]
    assert classes(scores, above=0.5).tolist() == [0, 1, 0, -1, -1]
    assert classes(scores, above=0.0).tolist() == [1, 1, 0, -1, -1]


class Net(nn.Module):
    """A dense layer of ``outputs`` numbers, and what comes behind."""

    def __init__(self, end: Callable[[Tensor], Tensor], outputs: int = 1) -> None:
        super().__init__()
        self.conv, self.fc, self.end = nn.Conv2d(1, 2, 3), nn.Linear(72, outputs), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.fc(self.conv(x).flatten(1)))


def traced(end: Callable[[Tensor], Tensor], outputs: int = 1) -> Chain:
    return trace(Net(end, outputs), (1, 8, 8))


ENDS: dict[str, tuple[Callable[[Tensor], Tensor], float | None]] = {
    "dense": (lambda x: x, 0.0),
    "dense, viewed": (lambda x: x.squeeze(1).unsqueeze(1).reshape(-1, 1), 0.0),
    "module": (nn.Sigmoid(), 0.5),
    "function": (torch.sigmoid, 0.5),
    "method": (lambda x: x.sigmoid().view(-1, 1), 0.5),
    "of torch.nn.functional": (lambda x: F.dropout(F.sigmoid(x), training=False), 0.5),
    "tanh": (torch.tanh, None),
    "softmax of one": (lambda x: x.softmax(1), None),
    "arithmetic": (lambda x: 2 * torch.sigmoid(x) - 1, None),
    "relu": (F.relu, None),
}


@pytest.mark.parametrize("case", ENDS)
def test_the_end_of_the_network_says_where_one_output_parts(case: str) -> None:
    end, expected = ENDS[case]
    assert border(traced(end), [0, 1, 1]) == expected


def test_a_map_averaged_parts_as_its_positions_do() -> None:
    layers = [nn.Conv2d(1, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    assert border(trace(nn.Sequential(*layers), (1, 8, 8)), [0, 1]) == 0.0
    layers.insert(1, nn.Sigmoid())
    assert border(trace(nn.Sequential(*layers), (1, 8, 8)), [0, 1]) == 0.5


def test_only_labels_0_and_1_are_classes_of_one_output() -> None:
    chain = traced(torch.sigmoid)
    assert border(chain, [0, 1, 2]) is None and border(chain, None) is None
    assert border(traced(torch.sigmoid, outputs=2), [0, 1]) is None  # the largest, as of more


WITHOUT: dict[str, tuple[Chain, list[int], str]] = {
    "labels": (traced(torch.sigmoid), [0, 4], "one number an image, and labels are 0 to 4"),
    "end": (traced(torch.tanh), [0, 1], "neither in a sigmoid nor in a dense layer"),
    "axis": (traced(lambda x: x.squeeze(1)), [0, 1], r"without an axis of scores: .*\(B, 1\)"),
    "map": (trace(nn.Conv2d(1, 2, 3), (1, 8, 8)), [0, 1], r"gives \(2, 6, 6\) numbers an image"),
}


@pytest.mark.parametrize("case", WITHOUT)
def test_why_there_is_no_accuracy(case: str) -> None:
    chain, labels, text = WITHOUT[case]
    with pytest.raises(DataError, match=f"no accuracy can be measured: .*{text}"):
        check_scores(chain, labels)


BRIGHT = """\
import torch
from torch import nn

def net(end="Sigmoid"):  # is the picture bright?
    conv = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        conv.weight.fill_(20.0), conv.bias.fill_(-10.0)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), getattr(nn, end)())

class Odd(nn.Module):  # two scores, and NaN of what is dark
    def __init__(self):
        super().__init__()
        self.net = net("Identity")
    def forward(self, x):
        y = self.net(x)
        return torch.cat((0 * torch.log(y), y), 1)
"""
JOB = """\
[model]
name = "bright:net"
[input]
data = "pictures"
[plan]
split = "height"
[code]
k = 2
[results]
file = "run.h5"
"""


def test_a_run_of_two_classes_with_one_output(ranks: LiveRanks, tmp_path: Path) -> None:
    (tmp_path / "bright.py").write_text(BRIGHT)
    (tmp_path / "job.toml").write_text(JOB)
    for name, value in (("a_dark", 30), ("b_bright", 220)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            picture = Image.fromarray(np.full((8, 8), value + i, np.uint8))
            picture.save(tmp_path / "pictures" / name / f"{i}.png")
    ended = ranks.run(3, "run", "job.toml", cwd=tmp_path)
    assert ended.status == 0, ended.output
    predictions = load(tmp_path / "run.h5").predictions
    for name in ("class", "base_class"):
        assert predictions[name].ravel().tolist() == [0, 0, 0, 1, 1, 1]
    assert "100.00 % of 6" in ended.stdout
    tanh = ("--set", 'model.args={end="Tanh"}')
    ended = ranks.run(3, "run", "job.toml", "--overwrite", *tanh, cwd=tmp_path)
    assert ended.status == 0, ended.output
    assert "class" not in load(tmp_path / "run.h5").predictions
    assert "no accuracy: the model gives one number an image" in ended.stdout
    assert "A_o" not in ended.stdout


def test_measured_accuracies_are_right_or_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bright.py").write_text(BRIGHT)
    pixels = np.repeat(np.array([30, 220] * 10, np.uint8), 64).reshape(20, 8, 8)
    with h5py.File(tmp_path / "pictures.h5", "w") as file:
        file["images"], file["labels"] = pixels, np.array([0, 1] * 10)
        file["held_out"] = np.ones(20, bool)
    (tmp_path / "job.toml").write_text(JOB.replace('"pictures"', '"pictures.h5"'))
    monkeypatch.syspath_prepend(tmp_path)
    found = evaluate(Job.read(tmp_path / "job.toml"))
    assert (found.images, found.available, intact(found)) == (20, 1.0, True)
    with pytest.raises(DataError, match="neither in a sigmoid nor"):
        evaluate(Job.read(tmp_path / "job.toml", ['model.args={end="Tanh"}']))
    odd = evaluate(Job.read(tmp_path / "job.toml", ["model.name=bright:Odd"]))
    assert odd.available == 0.5  # the ten that are bright
    assert all(row.recovery <= 0.5 for row in odd.rows)  # no class is no agreement
    train_on = '[train]\nkind = "code"\nout = "x.safetensors"\nbatch = 2\nloss = "kl-base"\n'
    (tmp_path / "train.toml").write_text((tmp_path / "job.toml").read_text() + train_on)
    sets = ["code.name=learned", "code.r=1", "input.split=all"]
    with h5py.File(tmp_path / "pictures.h5", "r+") as file:
        file["held_out"][:] = False
    with pytest.raises(ModelError, match='softmax is always 1.*set loss = "mse-base"'):
        train(Job.read(tmp_path / "train.toml", sets))
