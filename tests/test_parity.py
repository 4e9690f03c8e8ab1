"""Parity models: what is mixed is told apart, what is missing is found, what is trained fits."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpicoded.codes import CodeRequest
from mpicoded.codes.encoders import EXACT, Addition, Concatenation, Packing, grid, levels, weights
from mpicoded.codes.erasures import erasures
from mpicoded.codes.parity import Parity, build
from mpicoded.codes.parity_models import Design, Student, widest
from mpicoded.deploy import deploy
from mpicoded.errors import DataError, PlanError
from mpicoded.job import Job
from mpicoded.models import build as build_model
from mpicoded.network.graph import Chain, trace, whole_network
from mpicoded.network.ops import Normalize
from mpicoded.network.pieces import whole_flops
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS, Request
from mpicoded.study import train as training
from mpicoded.study.image_objective import ImageObjective
from mpicoded.study.objectives import Images, Jitter

ROOT = Path(__file__).parent.parent
JOB = ROOT / "jobs/train-digits-parity.toml"
OURS = {"encoder": "packing", "decoder": "positions", "network": "student"}
COLLAGE = {**OURS, "encoder": "concatenation"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chain() -> Chain:
    """LeNet-5 with fixed weights."""
    torch.manual_seed(3)
    return trace(build_model("lenet5", {}).requires_grad_(False), (1, 32, 32))


def fresh(chain: Chain, k: int, r: int, split: str = "batch", **args: Any) -> Parity:
    """Return an untrained code."""
    (stage,) = SPLITS[split].plan(Request(chain, k, r, batch=2 * k)).stages
    return build(CodeRequest(k, r, stage, args=args, chain=chain))


def deployed(chain: Chain, code: Parity) -> Deployment:
    """Return the code in place."""
    request = Request(chain, code.k, code.r, batch=2 * code.k)
    return Deployment(chain, SPLITS["batch"].plan(request), (code,))


# ---- mixing


def test_sums() -> None:
    """The first parity is the plain sum; the second weighs the images differently."""
    x = torch.arange(8.0).reshape(2, 1, 1, 2, 2)
    parity = Addition(2, 2, (1, 2, 2))(x)
    assert parity[0].flatten().tolist() == [4, 6, 8, 10]
    assert parity[1].flatten().tolist() == [4, 5.5, 7, 8.5]  # half of the first, all of the second


@pytest.mark.parametrize("k", range(1, 9))
def test_every_part_of_the_weights_can_be_inverted(k: int) -> None:
    """Whatever is lost, as many parities as losses tell it."""
    c = weights(k, 3).double().numpy()
    for m in range(1, min(3, k) + 1):
        for rows in combinations(range(3), m):
            for cols in combinations(range(k), m):
                assert abs(np.linalg.det(c[np.ix_(rows, cols)])) > 1e-6


def test_collage() -> None:
    """Images 1 to 4, each a quarter as large, stand in reading order."""
    x = torch.arange(1.0, 5.0).reshape(4, 1, 1, 1, 1).expand(4, 1, 1, 4, 4)
    parity = Concatenation(4, 1, (1, 4, 4))(x)[0, 0, 0]
    assert parity.int().tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    x = torch.arange(16.0).reshape(1, 1, 1, 4, 4).expand(2, 1, 1, 4, 4)
    halves = Concatenation(2, 1, (1, 4, 4))(x)[0, 0, 0]
    assert halves[0].tolist() == [0.5, 2.5, 0.5, 2.5]  # means of two columns


def test_grids() -> None:
    """Rows and columns for 2, 3, 4, 5, 8 and 9 images."""
    assert [grid(k) for k in (2, 3, 4, 5, 8, 9)] == [(1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (3, 3)]


@pytest.mark.parametrize("k", range(1, 25))
def test_digits_are_read_as_written(k: int) -> None:
    """Every level of every image comes out again, with no error at all."""
    mixing = Packing(k, 1, (1, 50, 40))
    top = mixing.levels - 1
    mixing.low.zero_()
    mixing.high.fill_(float(top))
    x = torch.randint(0, mixing.levels, (k, 1, 1, 50, 40)).float()
    x[..., 0] = top
    x[..., 1] = 0
    x[:, ..., 2] = torch.where(torch.arange(k) % 2 == 0, float(top), 0.0)[:, None, None, None]
    parity = mixing(x)
    assert parity.max() <= EXACT
    assert torch.equal(mixing.views()(parity[0]), x.flatten(0, 1))


@pytest.mark.parametrize(("k", "most"), [(2, 4096), (3, 256), (4, 64), (8, 8)])
def test_levels(k: int, most: int) -> None:
    """As many as a float32 number can hold k of."""
    assert levels(k) == most


@pytest.mark.parametrize("k", [2, 3])
def test_two_or_three_images_of_bytes_lose_nothing(k: int) -> None:
    """Rounded back to bytes the views are the images, whatever the mean and deviation."""
    pixels = Normalize.of((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
    bytes_ = torch.randint(0, 256, (k, 1, 3, 64, 64), dtype=torch.uint8)
    bytes_[..., 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    x = pixels(bytes_.flatten(0, 1))
    mixing = Packing(k, 1, (3, 64, 64))
    mixing.see(x)
    seen = mixing.views()(mixing(x.unflatten(0, (k, 1)))[0])
    back = torch.round((seen - pixels.shift) / pixels.scale)
    assert torch.equal(back, bytes_.flatten(0, 1).float())


# ---- decoding


@pytest.mark.parametrize(("k", "r"), [(1, 1), (2, 1), (4, 1), (3, 2), (4, 3)])
def test_subtraction_finds_what_is_missing(chain: Chain, k: int, r: int) -> None:
    """With perfect parity networks every decodable pattern is solved, one row a pattern too."""
    code = fresh(chain, k, r)
    data = torch.randn(k, 5, 10, generator=torch.Generator().manual_seed(1))
    y = torch.cat((data, torch.tensordot(weights(k, r), data, 1)))
    patterns = erasures(k + r, r)
    for arrived in patterns:
        assert torch.allclose(code.decode(y, arrived), data, atol=2e-4)
    here = torch.from_numpy(patterns).float()
    together = code.reconstruct(
        y[:, :1].expand(-1, len(here), -1) * here.T[..., None], here
    )  # a pattern of its own for every group
    assert torch.allclose(together, data[:, :1].expand_as(together), atol=2e-4)


@pytest.mark.parametrize("args", [OURS, COLLAGE])
def test_positions_fill_any_hole(chain: Chain, args: dict[str, Any]) -> None:
    """One parity is enough for all; of two the mean is taken."""
    code = fresh(chain, 3, 2, **args)
    y = torch.zeros(5, 2, 30)
    y[:3, :, :10] = torch.randn(3, 2, 10)
    y[3:] = torch.randn(2, 2, 30)
    only = np.array([False, False, False, True, False])
    assert code.fillable(only)
    filled = code.decode(y, only)
    assert torch.equal(filled[..., :10], y[3].unflatten(1, (3, 10)).transpose(0, 1))
    both = np.array([True, False, True, True, True])
    mean = (y[3] + y[4]) / 2
    assert torch.allclose(code.decode(y, both)[1, :, :10], mean[:, 10:20])
    assert torch.equal(code.decode(y, both)[0], y[0])
    assert not code.fillable(np.array([True, True, False, False, False]))


def test_views_are_answered_one_by_one(chain: Chain) -> None:
    """What a worker gives is the student's logits of every image, in order, for a batch."""
    code = fresh(chain, 3, 1, **OURS)
    x = torch.rand(6, 1, 32, 32, generator=torch.Generator().manual_seed(2))
    code.prepare(x)
    code.networks.eval()
    there = deployed(chain, code)
    student = code.models[0].student
    with torch.inference_mode():
        (coded,) = there.parity(0, x)  # type: ignore[misc]
        sent = pickle.loads(pickle.dumps(there.programs()[0][3]))
        for run in (sent, there.ready_programs[0][3]):
            y = run(coded)
            each = student(x).unflatten(0, (3, 2)).transpose(0, 1).flatten(1)
            assert torch.allclose(y, each, atol=1e-4)


@pytest.mark.parametrize(
    "args",
    [{}, {"network": "student"}, OURS, COLLAGE, OURS | {"widths": [4, 8], "hidden": 7}],
)
def test_parity_unit_costs_no_more_than_a_data_unit(chain: Chain, args: dict[str, Any]) -> None:
    """Counted in the layers that the worker runs."""
    code = fresh(chain, 2, 1, **args)
    base = whole_flops(chain, whole_network(chain).ops)
    model = code.models[0]
    if "network" not in args:
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for p in build_model("lenet5", {}).parameters()
        )
        return
    student = model if isinstance(model, Student) else model.student
    shape = code.encoder.view if code.positions else (1, 32, 32)
    traced = trace(student, shape)
    flops = whole_flops(traced, whole_network(traced).ops)
    assert flops * (2 if code.positions else 1) == code.unit_flops(2) <= base


def test_widest_student_within_the_limit() -> None:
    """One wider would cost too much."""
    design = widest((3, 32, 32), 10, Design(()), 10_000_000)
    first = design.widths[0]
    more = replace(design, widths=tuple(w // first * (first + 1) for w in design.widths))
    assert design.flops((3, 32, 32), 10) <= 10_000_000 < more.flops((3, 32, 32), 10)


def test_fresh_copy_is_no_copy_of_the_weights(chain: Chain) -> None:
    """The parity model starts at random, and the base model stays as it is."""
    before = [p.clone() for op in whole_network(chain).ops for p in _parameters(op)]
    code = fresh(chain, 2, 1)
    assert all(p.requires_grad for p in code.networks.parameters())
    after = [p for op in whole_network(chain).ops for p in _parameters(op)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(
        torch.equal(a, b) for a, b in zip(before[::2], code.networks.parameters(), strict=False)
    )


def _parameters(op: Any) -> Iterator[Tensor]:
    held = getattr(op.layer, "module", getattr(op.layer, "target", None))
    return held.parameters() if isinstance(held, nn.Module) else iter(())


# ---- what is wrong


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"encodr": "packing"}, "did you mean 'encoder'"),
        ({"encoder": "packin"}, "did you mean 'packing'"),
        ({"encoder": 3}, "give a text"),
        ({**OURS, "widths": [0]}, "positive whole numbers"),
        ({**OURS, "widths": [64, 128]}, "MFLOP.*a data unit 1.16"),
        ({**OURS, "stem": [4, 1]}, "odd kernel"),
        ({**OURS, "encoder": "addition"}, 'set args.encoder = "packing"'),
        ({**OURS, "network": "base"}, 'set args.network = "student"'),
    ],
)
def test_wrong_options(chain: Chain, args: dict[str, Any], message: str) -> None:
    """One line that names the option and the way out."""
    with pytest.raises(PlanError, match=message) as error:
        fresh(chain, 2, 1, **args)
    assert "\n" not in str(error.value)


def test_shards_are_refused(chain: Chain) -> None:
    """Parity models classify images."""
    with pytest.raises(PlanError, match='split = "batch"'):
        fresh(chain, 2, 1, "width")


# ---- training


def short(out: Path, *more: str) -> Job:
    """Return the committed job, much shorter."""
    given = ("input.limit=512", "train.batch=32", "train.epochs=5", "train.shift=0.0")
    return Job.read(JOB, [*given, f'train.out="{out}"', *more], training=True)


def test_learns(tmp_path: Path) -> None:
    """In five short epochs the loss falls to 0.6 of the first's."""
    out = tmp_path / "w.safetensors"
    history = training.train(short(out)).history
    assert history.losses[-1] < 0.6 * history.losses[0]


@pytest.mark.parametrize(
    "args",
    [{}, {"encoder": "concatenation"}, {"network": "student"}, COLLAGE],
    ids=["addition", "concatenation", "student", "collage"],
)
def test_every_kind_learns(chain: Chain, args: dict[str, Any]) -> None:
    """In forty steps the published loss falls to a half, on the same few images."""
    torch.manual_seed(1)
    code = fresh(chain, 2, 1, **args)
    objective, rows = make_objective(chain, code, 32), torch.arange(32)
    optimizer = torch.optim.Adam(code.networks.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = objective.loss(rows, torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_weights_come_back(tmp_path: Path) -> None:
    """A file fits its job and groups of another size, and is refused by another network."""
    out = tmp_path / "w.safetensors"
    job = short(out, "train.epochs=1")
    training.train(job)
    sets = [f'code.weights="{out}"', "input.batch=2"]
    (code,) = deploy(Job.read(JOB, sets), (1, 32, 32)).codes
    assert isinstance(code, Parity) and code.options["widths"] == (8, 20, 40)
    assert not any(p.requires_grad for p in code.networks.parameters())
    assert float(code.encoder.high.max()) == 1.0  # what was seen of the images
    with pytest.raises(DataError, match="widths = 8 20 40 where the job needs 8 20"):
        deploy(Job.read(JOB, [*sets, "code.args.widths=[8, 20]"]), (1, 32, 32))
    with pytest.raises(PlanError, match='set parity = "float32"'):
        deploy(Job.read(JOB, [*sets, 'runtime.wire="float16"']), (1, 32, 32))
    with pytest.raises(PlanError, match="lower the widths"):
        deploy(Job.read(JOB, [*sets, "code.k=3", "input.batch=3"]), (1, 32, 32))


def test_lesson_asks_for_what_is_missing(chain: Chain) -> None:
    """With r = 1 the published loss: of any missing logits it is the parity network's error."""
    code = fresh(chain, 2, 1)
    objective, rows = make_objective(chain, code, 20), torch.arange(20)
    pixels = objective.images.pixels
    assert objective.patterns.int().tolist() == [[0, 1, 1], [1, 0, 1]]
    with torch.no_grad():
        told = objective.loss(rows[:8], torch.Generator()).item()
        parity = code.models[0](pixels[:4] + pixels[4:8])
        wanted = whole_network(chain)(pixels[:8])
    error = torch.square(parity - wanted[:4] - wanted[4:]).sum(1).mean().item()
    assert told == pytest.approx(error, rel=1e-4)


def make_objective(chain: Chain, code: Parity, count: int) -> ImageObjective:
    """Return the published objective on random images."""
    pixels = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(4))
    rows = torch.arange(count)
    images = Images(pixels, rows % 10, rows, rows[-4:], Normalize.of((0.0,), (1.0,)))
    return ImageObjective(deployed(chain, code), code, images, Jitter(0, 0, 0), loss="mse-base")
