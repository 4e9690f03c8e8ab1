"""The published learned code: sizes as in the papers, channels apart, it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mpicoded.codes import CodeRequest
from mpicoded.codes.erasures import erasures
from mpicoded.codes.kosaian import Kosaian, build, conv_encoder, mlp_encoder
from mpicoded.errors import PlanError
from mpicoded.job import Job
from mpicoded.models import build as build_model
from mpicoded.network.graph import Chain, trace
from mpicoded.network.ops import Normalize
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS, Request
from mpicoded.study import train as training
from mpicoded.study.image_objective import ImageObjective
from mpicoded.study.objectives import Images, Jitter

ROOT = Path(__file__).parent.parent


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chain() -> Chain:
    """LeNet-5 for three channels with fixed weights."""
    torch.manual_seed(3)
    return trace(build_model("lenet5", {"channels": 3}).requires_grad_(False), (3, 32, 32))


def fresh(chain: Chain, k: int, r: int, split: str = "batch", **args: object) -> Kosaian:
    """Return an untrained code."""
    stages = () if split == "batch" else ("pool2",)
    (stage,) = SPLITS[split].plan(Request(chain, k, r, stages=stages, batch=2 * k)).stages
    return build(CodeRequest(k, r, stage, args=args, chain=chain))


@pytest.mark.parametrize(
    ("k", "side", "mlp", "conv", "decoder"),
    [(2, 28, 3_690_288, 73_001, 1_970), (5, 28, 18_444_384, 455_201, 9_260)],
)
def test_sizes_are_the_published_ones(
    chain: Chain, k: int, side: int, mlp: int, conv: int, decoder: int
) -> None:
    """Parameters of the encoders and the decoder (reference, sections 3 and 4)."""
    sizes = [
        sum(p.numel() for p in network.parameters())
        for network in (
            mlp_encoder(k, 1, side, side),
            conv_encoder(k, 1),
            fresh(chain, k, 1, encoder="conv").decoder,
        )
    ]
    assert sizes == [mlp, conv, decoder]


@pytest.mark.parametrize("encoder", ["mlp", "conv"])
def test_a_channel_of_the_parity_sees_that_channel_only(chain: Chain, encoder: str) -> None:
    x = torch.randn(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    red = x.clone()
    red[:, :, 0] += 1
    code = fresh(chain, 2, 2, encoder=encoder)
    with torch.inference_mode():
        changed = (code.parity(red) != code.parity(x)).amax((1, 3, 4))  # (r, C)
        assert changed.tolist() == [[True, False, False]] * 2
        assert code.parity(x).shape == (2, 3, 3, 32, 32)


@pytest.mark.parametrize("split", ["batch", "width"])
def test_shapes_and_holes(chain: Chain, split: str) -> None:
    """Whatever is missing is filled, whatever arrived stays, on images and on shards."""
    code = fresh(chain, 3, 2, split, encoder="conv")
    shape = (10,) if split == "batch" else (16, *code.stage.unit_output)
    y = torch.randn(5, 2, *shape)
    for arrived in erasures(5, 2):
        decoded = code.decode(y, arrived)
        here = torch.from_numpy(arrived[:3])
        assert decoded.shape == (3, 2, *shape)
        assert torch.equal(decoded[here], y[:3][here])


@pytest.mark.parametrize(
    ("args", "message"),
    [({"encoder": "cnn"}, "choose one of mlp, conv"), ({"hidden": 3}, "no such option")],
)
def test_wrong_options(chain: Chain, args: dict[str, object], message: str) -> None:
    """One line that names the option and the way out."""
    with pytest.raises(PlanError, match=message):
        fresh(chain, 2, 1, **args)


def test_a_decoder_too_large_is_refused() -> None:
    """A map early in VGG-16 would need terabytes."""
    chain = trace(build_model("vgg9", {}).requires_grad_(False), (3, 32, 32))
    request = Request(chain, 4, 2, stages=("features.0",), batch=1)
    (stage,) = SPLITS["width"].plan(request).stages
    with pytest.raises(PlanError, match="end the stage later"):
        build(CodeRequest(4, 2, stage, chain=chain))


@pytest.mark.parametrize("encoder", ["mlp", "conv"])
def test_learns_images(encoder: str) -> None:
    """Missing logits come nearer: in 250 steps the loss falls to a half, on a few images."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    chain = trace(net.requires_grad_(False), (1, 8, 8))
    plan = SPLITS["batch"].plan(Request(chain, 2, 1, batch=4))
    code = build(CodeRequest(2, 1, plan.stages[0], args={"encoder": encoder}, chain=chain))
    rows = torch.arange(32)
    pixels = 3 * torch.randn(32, 1, 8, 8)
    images = Images(pixels, rows % 5, rows, rows[:4], Normalize.of((0.0,), (1.0,)))
    objective = ImageObjective(
        Deployment(chain, plan, (code,)), code, images, Jitter(0, 0, 0), loss="mse-base"
    )
    optimizer = torch.optim.Adam(code.networks.parameters(), lr=5e-3)
    losses = []
    for _ in range(250):
        optimizer.zero_grad()
        loss = objective.loss(rows, torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_learns_shards(tmp_path: Path) -> None:
    """In a few short epochs the loss falls to 0.7 of the first's."""
    file = tmp_path / "job.toml"
    file.write_text(
        f"""
        [model]
        name = "lenet5"
        weights = "{ROOT}/data/lenet5-digits.safetensors"
        [input]
        data = "digits"
        size = [32, 32]
        limit = 128
        [plan]
        split = "width"
        stages = ["pool2"]
        [code]
        name = "kosaian"
        k = 2
        r = 1
        args.encoder = "conv"
        [train]
        kind = "code"
        out = "{tmp_path}/w.safetensors"
        epochs = 6
        rate = 1e-2
        batch = 16
        """
    )
    history = training.train(Job.read(file, training=True)).history
    assert history.losses[-1] < 0.7 * history.losses[0]
