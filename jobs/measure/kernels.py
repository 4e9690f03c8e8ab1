"""What packed weights, fused operations and layouts save: pieces of networks before and after.

    python jobs/measure/kernels.py                               # this CPU as it is
    ONEDNN_MAX_CPU_ISA=SSE41 python jobs/measure/kernels.py      # 128-bit vectors, as a Pi has

Each row runs the program of one unit as it was traced, and made ready by the Optimizer, in turn on
one thread, timed in CPU seconds; the ratio is before / after, median of the rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from mpicoded.models import build
from mpicoded.network.graph import trace, whole_network
from mpicoded.network.kernels import channels_last
from mpicoded.network.optimize import Optimizer
from mpicoded.network.pieces import shard_program
from mpicoded.split import SPLITS, Request

CASES = (  # model, its arguments, input, split, k, tiles, stages, rounds
    ("lenet5", {}, (1, 32, 32), "width", 6, None, ("pool2",), 400),
    ("vgg16-features", {}, (3, 224, 224), "tiles", 8, (4, 2), ("16",), 15),
    ("vgg16-features", {}, (3, 224, 224), "height", 7, None, ("4", "9", "16", "23", "30"), 15),
    ("resnet18", {}, (3, 224, 224), "height", 7, None, ("layer1.1", "layer3.1"), 15),
)


@torch.inference_mode()
def compare(name: str, before: Callable, after: Callable, x: Tensor, rounds: int) -> None:
    """Run both in turn and print medians, the ratio and the largest relative error."""
    true, result = before(x), after(x)
    error = float((true - result).abs().max() / true.abs().max())
    times, ratios = ([], []), []
    for _ in range(rounds):
        began = time.process_time()
        before(x)
        middle = time.process_time()
        after(x)
        end = time.process_time()
        times[0].append(middle - began)
        times[1].append(end - middle)
        ratios.append(times[0][-1] / times[1][-1])
    old, new = (1e3 * median(t) for t in times)
    print(f"{name:44s} {old:9.3f} {new:9.3f} ms  {median(ratios):5.2f}  {error:.0e}", flush=True)


def main() -> None:
    """Print one row for a middle unit of every stage, and one for the whole network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"layout: {'channels-last' if channels_last() else 'blocked'}")
    print(f"{'':44s} {'before':>9s} {'after':>9s}     ratio  error")
    for model, args, shape, split, k, tiles, stages, rounds in CASES:
        chain = trace(build(model, args).requires_grad_(False), shape)
        plan = SPLITS[split].plan(Request(chain, k, 0, stages=stages, tiles=tiles))
        optimizer = Optimizer()
        for stage in plan.stages:
            box = stage.shards[k // 2]
            run = shard_program(chain, stage.first, stage.last, box.writes)
            x = torch.randn(1, stage.input_shape[0], box.reads.rows.size, box.reads.cols.size)
            name = f"{model} {split} {stage.name.replace(' ', '')}"
            compare(name, run, optimizer.optimize(run), x, rounds)
        head = whole_network(chain)
        compare(f"{model} whole", head, optimizer.optimize(head), torch.randn(1, *shape), rounds)


if __name__ == "__main__":
    main()
