"""Every kind of input through a whole job: the answers in the results file are the model's own."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from launching import Ended, environment
from many_jobs import LiveRanks, Outcome
from mpicoded.results import Loaded, load

COUNT = 6
LABELS = [0, 0, 1, 1, 2, 2]
Array = npt.NDArray[Any]

NET = """\
import torch
from torch import nn

def net(channels=3, classes=3):
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Linear(512, classes),
    )
"""

JOB = """\
[model]
name = "mynet:net"
args = {{channels = {channels}}}
[input]
data = "{data}"
{more}
[plan]
split = "height"
[code]
k = 2
[results]
file = "../out/{name}.h5"
"""


@dataclass(frozen=True)
class Kind:
    """``expected`` makes of the pixels (6, 3, 16, 16), 0..1, what the model must be given."""

    data: str
    more: str = ""
    expected: Callable[[Array], Array] = lambda x: x
    labels: list[int] | None = None
    channels: int = 3


MEAN = np.array([0.5, 0.4, 0.3])[:, None, None]
KINDS = {
    "npy": Kind("bytes.npy"),
    "npy-floats": Kind("floats.npy", expected=lambda x: x * 9 - 4),
    "npy-grey": Kind("grey.npy", expected=lambda x: x[:, :1], channels=1),
    "npy-as-bytes": Kind("bytes.npy", '[runtime]\nwire = "uint8"'),
    "h5": Kind("all.h5", labels=LABELS),
    "h5-by-name": Kind("all.h5:other", expected=lambda x: x[::-1], labels=LABELS),
    "h5-held-out": Kind("all.h5", 'split = "test"', lambda x: x[4:], LABELS[4:]),
    "pictures": Kind("pictures", labels=LABELS),
    "normalised": Kind(
        "bytes.npy", "mean = [0.5, 0.4, 0.3]\nstd = [0.2]", lambda x: (x - MEAN) / 0.2
    ),
    "limited": Kind(
        "bytes.npy", "limit = 4\nbatch = 2\nrepeat = 2", lambda x: np.concatenate([x[:4], x[:4]])
    ),
}


@pytest.fixture(scope="module")
def pixels() -> Array:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 3, 16, 16), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pixels: Array) -> Path:
    """The images in every form that a job can name, a job for each, and the user's own module."""
    folder = tmp_path_factory.mktemp("inputs")
    jobs = folder / "jobs"
    (folder / "mynet.py").write_text(NET)
    for i, image in enumerate(pixels):
        place = jobs / "pictures" / f"class {LABELS[i]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(place / f"{i}.png")
    np.save(jobs / "bytes.npy", pixels)
    np.save(jobs / "floats.npy", (pixels / 255 * 9 - 4).astype(np.float32))
    np.save(jobs / "grey.npy", pixels[:, 0])
    with h5py.File(jobs / "all.h5", "w") as file:
        file["images"], file["other"], file["labels"] = pixels, pixels[::-1], LABELS
        file["held_out"] = np.arange(COUNT) >= 4
    for name, kind in KINDS.items():
        text = JOB.format(data=kind.data, more=kind.more, channels=kind.channels, name=name)
        (jobs / f"{name}.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path, ranks: LiveRanks) -> dict[str, Outcome]:
    return {name: ranks.run(3, "run", f"jobs/{name}.toml", cwd=folder) for name in KINDS}


def assert_models_own(loaded: Loaded, kind: Kind, pixels: Array, folder: Path) -> None:
    """The outputs in the file are those of the user's network for the images of the job."""
    model = runpy.run_path(str(folder / "mynet.py"))["net"](kind.channels)
    x = torch.from_numpy(kind.expected(pixels / 255).astype(np.float32))  # (images, C, 16, 16)
    with torch.inference_mode():
        y = model(x)  # (images, 3)
    outputs = loaded.predictions["output"].reshape(-1, 3)
    np.testing.assert_allclose(outputs, y, rtol=1e-4, atol=1e-5)
    assert loaded.predictions["class"].ravel().tolist() == y.argmax(1).tolist()
    if kind.labels is None:
        assert "label" not in loaded.labels
    else:
        assert loaded.labels["label"].ravel().tolist() == kind.labels


@pytest.mark.parametrize("name", KINDS)
def test_kind_of_input(ran: dict[str, Outcome], folder: Path, pixels: Array, name: str) -> None:
    outcome = ran[name]
    assert (outcome.status, outcome.others) == (0, ""), outcome.stderr
    loaded = load(folder / "out" / f"{name}.h5")
    assert loaded.finished
    assert_models_own(loaded, KINDS[name], pixels, folder)


def test_own_network_with_the_command_itself(mpirun, folder: Path, pixels: Array) -> None:
    """`package.module:factory` is found in the current folder, the data beside the job file."""
    args = ["-m", "mpicoded", "run", "jobs/pictures.toml", "--set", "results.file=../own.h5"]
    ended: Ended = mpirun(3, args, timeout=60, cwd=folder)
    assert (ended.status, ended.left) == (0, ()), ended.output
    assert_models_own(load(folder / "own.h5"), KINDS["pictures"], pixels, folder)


def test_without_mpirun_the_model_runs_on_one_device(folder: Path, pixels: Array) -> None:
    args = ["run", "jobs/npy.toml", "--set", "results.file=../one.h5"]
    done = subprocess.run(
        [sys.executable, "-m", "mpicoded", *args],
        cwd=folder,
        env=environment("openmpi", {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "there is one rank only: the model runs unsplit on this device" in done.stderr
    assert_models_own(load(folder / "one.h5"), KINDS["npy"], pixels, folder)
