"""What 16 and 8 bits on the wire cost in accuracy, and save in bytes.

    python jobs/measure/answers.py

Every map travels through real messages, but no MPI: LeNet-5 on all digits of the quickstart job
(6 strips), and VGG-16 with random weights in 7 strips and 5 stages.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mpicoded.codes import CODES, CodeRequest
from mpicoded.deploy import deploy, images
from mpicoded.job import Job
from mpicoded.models import build
from mpicoded.network.graph import trace
from mpicoded.runtime.deployment import Deployment
from mpicoded.runtime.message import HEADER, TRAVEL, Kind, Pool, pack, unpack
from mpicoded.split import SPLITS, Request

QUICKSTART = Path(__file__).parents[1] / "quickstart.toml"
PAIRS = (("float32", "float32"), ("float16", "float16"), ("float32", "int8"), ("int8", "int8"))


class Traveller:
    """Sends tensors through messages and counts their bytes."""

    def __init__(self) -> None:
        self.pool, self.bytes = Pool(), 0

    def send(self, x: Tensor, name: str) -> Tensor:
        """Return what arrives, as the receiver computes with it."""
        buffer = pack(self.pool, Kind.UNIT, x, TRAVEL[name], (0.0, 0.0, 0.0), {})
        self.bytes += buffer.size - HEADER
        return unpack(buffer, buffer.size, 0).tensor().float()

    @torch.inference_mode()
    def answer(self, deployment: Deployment, x: Tensor, wire: str, answers: str) -> Tensor:
        """Run all stages on (1, C, H, W); return what the head makes of the last map."""
        x = deployment.normalize(x)
        for s, stage in enumerate(deployment.plan.stages):
            runs = deployment.ready_programs[s]
            arrived = [self.send(unit, wire) for unit in SPLITS[stage.split].cut(x, stage)]
            outputs = [run(u) for run, u in zip(runs, arrived, strict=False)]
            x = SPLITS[stage.split].stitch([self.send(y, answers) for y in outputs], stage)
        head = deployment.ready_head
        result: Tensor = x if head is None else head(x)
        return result


def digits() -> None:
    """Print accuracy and agreement with the unsplit model, for every digit."""
    job = Job.read(QUICKSTART)
    data = images(job, "all")
    deployment = deploy(job, tuple(data.images.shape[1:]))
    pixels = torch.from_numpy(data.images)
    alone = torch.cat([deployment.run_unsplit(x[None]) for x in pixels])
    labels = torch.from_numpy(data.labels)
    print(f"LeNet-5, {len(pixels)} digits: unsplit {_share(alone.argmax(1) == labels)}")
    for wire, answers in PAIRS:
        traveller = Traveller()
        y = torch.cat([traveller.answer(deployment, x[None], wire, answers) for x in pixels])
        same = y.argmax(1) == alone.argmax(1)
        print(
            f"  wire {wire}, answers {answers}: accuracy {_share(y.argmax(1) == labels)}, other "
            f"predictions {int((~same).sum())}, error {_error(y, alone)}, "
            f"{traveller.bytes / len(pixels) / 1e3:.1f} kB a query"
        )


def _share(right: Tensor) -> str:
    return f"{100 * float(right.double().mean()):.2f} %"


def _error(y: Tensor, true: Tensor) -> str:
    return f"{float((y - true).norm() / true.norm()):.1e}"


def vgg() -> None:
    """Print the relative error of the last map, of random images."""
    torch.manual_seed(0)
    chain = trace(build("vgg16-features", {}).requires_grad_(False), (3, 224, 224))
    stages = ("4", "9", "16", "23", "30")
    plan = SPLITS["height"].plan(Request(chain, 7, 0, stages=stages))
    codes = tuple(CODES["uncoded"](CodeRequest(7, 0, stage)) for stage in plan.stages)
    deployment = Deployment(chain, plan, codes)
    x = torch.rand(1, 3, 224, 224)
    true = deployment.run_unsplit(x)
    print("VGG-16 features, random weights, 5 stages of 7 strips: relative error of the last map")
    for wire, answers in PAIRS:
        traveller = Traveller()
        y = traveller.answer(deployment, x, wire, answers)
        print(
            f"  wire {wire}, answers {answers}: {_error(y, true)}, "
            f"{traveller.bytes / 1e6:.2f} MB a query"
        )


if __name__ == "__main__":
    digits()
    vgg()
