"""Every model of the package, in units of every split: stitched, they are the unsplit model."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from exactness import KINDS, build_lively, deployed, error, share
from mpicoded.network.graph import Chain, trace

# name, args, input (C, H, W), blocks, share of FLOPs in them
MODELS = {
    "lenet5": ({}, (1, 32, 32), 4, 0.80),
    "vgg13": ({"size": 32, "hidden": 16}, (3, 64, 48), 15, 0.99),
    "resnet34": ({}, (3, 64, 64), 18, 0.99),
    "resnet50": ({"stem": "cifar", "classes": 10}, (3, 32, 32), 17, 0.99),
    "inception-v3": ({"aux": False, "transform_input": True}, (3, 107, 107), 18, 0.99),
    "mobilenet-v2": ({"width": 0.5}, (3, 96, 64), 32, 0.85),
    "yolov2": ({}, (3, 96, 96), 27, 1.0),
    "tiny-yolov2": ({}, (3, 96, 128), 15, 1.0),
}
RANKS = {kind: (2 + i % 7, 2 + (3 * i + 4) % 7)[: 1 + i % 2] for i, kind in enumerate(KINDS)}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Chain, Tensor, Tensor]:
    """Return a model that was read, images and its own answers."""
    args, shape, blocks, least = MODELS[request.param]
    net, images = build_lively(request.param, args, 5), torch.arange(1, 1 + max(RANKS["batch"]))
    x = torch.randn(len(images), *shape) * images[:, None, None, None]
    with torch.inference_mode():
        chain, true = trace(net, shape), net(x)
    assert float((true[0] - true[1]).abs().max() / true.abs().max()) > 0.1, "only a bias"
    assert (len(chain.blocks), share(chain) >= least) == (blocks, True)
    return chain, x, true


@pytest.mark.parametrize(("kind", "k"), [(kind, k) for kind in KINDS for k in RANKS[kind]])
def test_stitched_is_unsplit(model: tuple[Chain, Tensor, Tensor], kind: str, k: int) -> None:
    chain, x, true = model
    images = k if kind == "batch" else 1
    assert error(deployed(chain, kind, k), x[:images], true[:images]) <= 1e-5
