"""Every model in every split for k = 2 … 8 units at its full size: stitched against unsplit.

    python jobs/measure/exact.py [--models yolov2 resnet50 …] [--ranks 2 3 …] [--kinds batch …]

A line each: blocks, share of the FLOPs in them, then the largest relative error of a plan and its
redundancy. "linear" are the linear stages, "each" is a stage a block, "neighbours" the same with
halos from rank to rank, and without any of these it is one stage, as by default. The status is 1 if
an error is above 1e-5, or a plan is refused.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from exactness import KINDS, build_lively, deployed, error, share
from mpicoded.errors import PlanError
from mpicoded.network.graph import trace

MODELS = {
    "lenet5": (1, 32, 32),
    "resnet20": (3, 32, 32),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16"), (3, 224, 224)),
    **dict.fromkeys(("resnet18", "resnet34", "resnet50", "mobilenet-v2"), (3, 224, 224)),
    "inception-v3": (3, 299, 299),
    "tiny-yolov2": (3, 416, 416),
    "yolov2": (3, 416, 416),
}
MOST = 1e-5


@torch.inference_mode()
def main() -> int:
    """Print the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=list(range(2, 9)))
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    given = parser.parse_args()
    wrong = 0
    for name in given.models:
        net, x = build_lively(name, {}, 0), torch.randn(max(given.ranks), *MODELS[name])
        chain, true = trace(net, MODELS[name]), torch.cat([net(image[None]) for image in x])
        print(f"{name}: {len(chain.blocks)} blocks, {share(chain):.1%} of the FLOPs; {chain.limit}")
        for kind in given.kinds:
            for k in given.ranks:
                images = k if kind == "batch" else 1
                line = f"{name:13} {kind:18} k {k}"
                try:
                    deployment = deployed(chain, kind, k)
                except PlanError as refused:
                    wrong += 1
                    print(f"{line}  refused: {refused}", flush=True)
                    continue
                apart = error(deployment, x[:images], true[:images])
                wrong += not apart <= MOST
                redundancy = 1 + deployment.plan.redundancy
                print(f"{line}  error {apart:.1e}  redundancy {redundancy:.2f}", flush=True)
    print(f"{wrong} above {MOST} or refused")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
