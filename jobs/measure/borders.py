"""Accuracy of a coded segment whose units go on without a dead neighbour, with or without borders.

    MPICODED_DATA=… python jobs/measure/borders.py [--images 10000] [--fill zeros edge] [--code k4]

VGG-9 / CIFAR-10, every pattern of 1 and 2 dead data units, from the first convolution on. "exact":
units compute the halos that do not come; "zeros", "edge": these are zero, or their own last row or
column again. The parity units fill in the dead ones; weights are those of overlapping shards.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mpicoded import deploy
from mpicoded.geometry import Box
from mpicoded.job import Job
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS

ROOT = Path(__file__).resolve().parents[2]
CHUNK = 250


def bordered(x: Tensor, known: Tensor, box: Box, own: Box, fill: str) -> Tensor:
    """Cut ``box`` out of a map of which only ``known`` positions are there; fill in the others."""
    rows, cols = torch.arange(*box.rows), torch.arange(*box.cols)
    here = known[rows][:, cols]
    if fill == "edge":
        near = [i.clamp(r.start, r.stop - 1) for i, r in zip((rows, cols), own, strict=True)]
        other = x[:, :, near[0]][:, :, :, near[1]]
    else:
        other = torch.zeros(())
    return torch.where(here, x[:, :, rows][:, :, :, cols], other)


def predict(
    d: Deployment, x: Tensor, parity: list[Tensor], dead: tuple[int, ...], fill: str
) -> Tensor:
    """Return the classes of images (B, C, H, W) when these units are dead."""
    plan, outputs = d.plan, list[Tensor]()
    known = torch.ones(x.shape[2:], dtype=torch.bool)
    before = None
    for s, stage in enumerate(plan.stages):
        outputs = []
        for unit, shard in enumerate(stage.shards):
            own = shard.reads if before is None else before.shards[unit].writes
            piece = bordered(x, known, shard.reads, own, fill)
            outputs.append(d.ready_programs[s][unit](piece.contiguous()))
        x, before = SPLITS[stage.split].stitch(outputs, stage), stage
        known = torch.ones(x.shape[2:], dtype=torch.bool)
        for unit in dead if fill != "exact" else ():
            rows, cols = stage.shards[unit].writes
            known[rows.start : rows.stop, cols.start : cols.stop] = False
    last, code = plan.stages[-1], d.codes[-1]
    y = SPLITS[last.split].stack([*outputs, *parity], last)
    arrived = np.array([unit not in dead for unit in range(code.n)])
    result = SPLITS[last.split].stitch(list(code.decode(y, arrived)), last)
    head = d.ready_head
    assert head is not None
    classes: Tensor = head(result).argmax(1)
    return classes


@torch.inference_mode()
def main() -> None:
    """Print the drop by the number of dead units, mean and worst pattern, for each way."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--fill", nargs="+", default=["exact", "zeros", "edge"])
    parser.add_argument("--code", default="k6", choices=("k4", "k6"))
    given = parser.parse_args()
    name = "train-cifar-code-k6" if given.code == "k6" else "train-cifar-code"
    weights = f"../data/learned-cifar-{given.code}r2.safetensors"
    sets = (f"code.weights={weights}", "plan.exchange=neighbours", "plan.stages=[]")
    job = Job.read(ROOT / "jobs" / f"{name}.toml", sets)
    data = deploy.images(job, "test", given.images)
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    d = deploy.deploy(job, tuple(images.shape[1:]), images[:1])
    k = d.plan.k
    patterns = [(), *((i,) for i in range(k)), *combinations(range(k), 2)]
    right = {(fill, dead): 0 for fill in given.fill for dead in patterns}
    for part in torch.split(torch.arange(len(images)), CHUNK):
        x = d.normalize(images[part])
        coded = d.parity(0, x)
        assert coded is not None
        programs = d.ready_programs[-1][k:]
        parity = [run(p) for run, p in zip(programs, coded, strict=True)]
        for fill, dead in right:
            found = predict(d, x, parity, dead, fill)
            right[fill, dead] += int((found == labels[part]).sum())
        tell(given.code, right, int(part[-1]) + 1)


def tell(code: str, right: dict[tuple[str, tuple[int, ...]], int], images: int) -> None:
    """Print mean and worst drop so far."""
    print(f"{code}, {images} images")
    for fill in dict.fromkeys(fill for fill, _ in right):
        for count in (1, 2):
            drops = [
                100 * (right[fill, ()] - n) / images
                for (how, dead), n in right.items()
                if how == fill and len(dead) == count
            ]
            mean, worst = sum(drops) / len(drops), max(drops)
            print(f"{fill:6s} {count} dead: drop {mean:6.2f}, worst {worst:6.2f}", flush=True)


if __name__ == "__main__":
    main()
