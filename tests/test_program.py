"""Pieces of networks: stitched they are the network, in any split; parity windows fit them."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpicoded.geometry import Box, Range
from mpicoded.network.graph import Chain, trace
from mpicoded.network.pieces import shard_program
from mpicoded.plan import Stage
from mpicoded.split import SPLITS
from networks import (
    close,
    inception,
    interior,
    layer,
    plan_of,
    pool,
    programs,
    random_network,
    random_request,
    residual,
    run_plan,
)
from units import cut, trim, windows

SEEDS = st.integers(0, 2**32 - 1)
EXACT = 1e-10  # in float64


def images(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64).to(dtype)


@settings(max_examples=320, deadline=None, derandomize=True, database=None)
@given(SEEDS, SEEDS)
def test_stitched_is_unsplit(network: int, cuts: int) -> None:
    model, shape = random_network(network)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        chain = trace(model.to(dtype), shape)
        split, request = random_request(cuts, chain)
        x = images(shape, cuts, dtype)
        with torch.inference_mode():
            true, before = model(x.clone()), x.clone()
            assert close(run_plan(chain, SPLITS[split].plan(request), x), true, tolerance)
        assert torch.equal(x, before), "a program must not overwrite its input"


# What users of other systems stumble over (partitioning.md, R4), each as a network of two blocks.
REAL = {
    "k3 s1 p1": nn.Conv2d(2, 3, 3, padding=1),
    "k7 s2 p3": nn.Conv2d(2, 3, 7, 2, 3),
    "k3 s2 p1": nn.Conv2d(2, 3, 3, 2, 1),
    "k1 s2": nn.Conv2d(2, 3, 1, 2),
    "k5 s1 p2": nn.Conv2d(2, 3, 5, padding=2),
    "k3 d2 p2": nn.Conv2d(2, 3, 3, padding=2, dilation=2),
    "k4 same": nn.Conv2d(2, 3, 4, padding="same"),
    "pool at odd rows": nn.Conv2d(2, 3, 3, padding=1),
    "k2 s1, padded behind": nn.Sequential(
        nn.ConstantPad2d((0, 1, 0, 1), float("-inf")), nn.MaxPool2d(2, stride=1)
    ),
    "padding 5, cropping 2": nn.Sequential(nn.ZeroPad2d((5, 0, 5, 0)), nn.ZeroPad2d(-2)),
    "pixel unshuffle": nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ZeroPad2d((0, 0, 1, 0)), nn.PixelUnshuffle(2)
    ),
}


@pytest.mark.parametrize("k", [1, 2, 3, 5, 7, None], ids=lambda k: f"k={k or 'all'}")
@pytest.mark.parametrize("split", ["height", "width"])
@pytest.mark.parametrize("name", REAL)
def test_real_layers(name: str, split: str, k: int | None) -> None:
    model = nn.Sequential(REAL[name], nn.ReLU(inplace=True), nn.MaxPool2d(2, padding=1)).double()
    chain = trace(model, (2, 29, 30))
    rows, cols = chain.output_shape[1:]
    plan = plan_of(chain, split, k or (rows if split == "height" else cols))
    x = images((2, 29, 30), 1)
    with torch.inference_mode():
        assert close(run_plan(chain, plan, x), model(x.clone()), EXACT)


@pytest.mark.parametrize(
    "first",
    [
        nn.Conv2d(1, 2, 3, padding=5),
        nn.Conv2d(1, 2, 2, padding=(7, 0), dilation=2),
        nn.Conv2d(1, 2, 1, padding=3),
    ],
    ids=["k3 p5", "k2 d2 p7", "k1 p3"],
)
@pytest.mark.parametrize("split", ["height", "width", "tiles"])
def test_units_that_read_nothing_but_padding(first: nn.Conv2d, split: str) -> None:
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(2, 1, 3, padding=1)).double()
    chain = trace(model, (1, 4, 5))
    _, rows, cols = chain.output_shape
    k, tiles = {"height": (rows, None), "width": (cols, None), "tiles": (9, (3, 3))}[split]
    plan = plan_of(chain, split, k, 0, tiles=tiles)
    x = images((1, 4, 5), 2)
    with torch.inference_mode():
        assert close(run_plan(chain, plan, x), model(x), EXACT)


def test_max_pool_of_padding_is_minus_infinity() -> None:
    """One column, kernel taps at columns -1 and 1: torch says -inf, and so do the shards."""
    model = nn.MaxPool2d((1, 2), 1, (0, 1), (1, 2))
    chain = trace(model, (1, 4, 1))
    x = images((1, 4, 1), 3, torch.float32)
    result = run_plan(chain, plan_of(chain, "height", 4), x)
    assert torch.equal(result, model(x)) and bool(result.isinf().all())


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(SEEDS, SEEDS)
def test_coded_windows_have_one_shape(network: int, cuts: int) -> None:
    """The interior program is the same wherever a unit lies: same window, same crops."""
    model, shape = random_network(network)
    chain = trace(model, shape)
    split, request = random_request(cuts, chain)
    for stage in SPLITS[split].plan(request).stages:
        sizes = {(b.rows.size, b.cols.size) for b in stage.windows}
        program = interior(chain, stage)
        assert sizes == {(program.reads.rows.size, program.reads.cols.size)}


def test_interior_program_is_the_unit_far_from_borders() -> None:
    """Where the unclipped window lies inside the map, so does every layer's (no padding at all)."""
    tested = 0
    for seed in range(80):
        model, shape = random_network(seed, (layer, pool, residual, inception), 2, (30, 40))
        chain = trace(model.double(), shape)
        axis = seed % 2
        k = max(1, chain.output_shape[axis + 1] // 2)
        (stage,) = plan_of(chain, ("height", "width")[axis], k).stages
        x = images(shape, seed)
        with torch.inference_mode():
            outputs = _interior_outputs(chain, stage, x)
            for i, program in enumerate(programs(chain, stage)):
                window = stage.windows[i][axis]
                if window.start >= 0 and window.stop <= shape[axis + 1] and k > 1:
                    tested += 1
                    assert close(trim(outputs[i], stage, i), program(cut(x, stage)[i]), EXACT)
    assert tested > 200


def _interior_outputs(chain: Chain, stage: Stage, x: Tensor) -> list[Tensor]:
    program = interior(chain, stage)
    return [program(window) for window in windows(x, stage)]


LINEAR = {
    "k3 p1": nn.Conv2d(2, 3, 3, padding=1, bias=False),
    "k7 s2 p3": nn.Conv2d(2, 3, 7, 2, 3, bias=False),
    "k5 s3 p4": nn.Conv2d(2, 3, 5, 3, 4, bias=False),
    "k4 d2 same": nn.Conv2d(2, 3, 4, padding="same", dilation=2, bias=False),
    "k2, no padding": nn.Conv2d(2, 3, 2, bias=False),
    "depthwise": nn.Conv2d(2, 4, 3, padding=2, groups=2, bias=False),
    "average pool": nn.AvgPool2d(3, 2, 1),
}


@pytest.mark.parametrize("split", ["height", "width", "tiles", "weighted"])
@pytest.mark.parametrize("name", LINEAR)
def test_interior_program_is_exact_for_a_linear_stage(name: str, split: str) -> None:
    """Zero-filled windows serve every unit, borders too: what a linear MDS code needs."""
    model = LINEAR[name].double()
    chain = trace(model, (2, 17, 22))
    more = {"tiles": {"tiles": (2, 3)}, "weighted": {"weights": (1.0, 3.0, 1.5, 0.2, 1.0, 1.0)}}
    (stage,) = plan_of(
        chain, "width" if split == "weighted" else split, 6, 2, **more.get(split, {})
    ).stages
    x = images((2, 17, 22), 4)
    with torch.inference_mode():
        outputs = _interior_outputs(chain, stage, x)
        for i, program in enumerate(programs(chain, stage)):
            assert close(trim(outputs[i], stage, i), program(cut(x, stage)[i]), EXACT)


@pytest.mark.parametrize("network", range(20))
def test_program_pickles_to_the_same_bits(network: int) -> None:
    model, shape = random_network(network)
    chain = trace(model, shape)
    split, request = random_request(network, chain)
    stage = SPLITS[split].plan(request).stages[0]
    x = images(shape, network, torch.float32)
    with torch.inference_mode():
        for program, window in zip(programs(chain, stage), cut(x, stage), strict=True):
            assert torch.equal(pickle.loads(pickle.dumps(program))(window), program(window))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(2, 4, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False)).to(dtype)
    chain = trace(model, (2, 11, 12))
    x = images((2, 11, 12), 5, dtype)
    with torch.inference_mode():
        result = run_plan(chain, plan_of(chain, "width", 4), x)
        assert result.dtype == dtype and close(result, model(x), 5e-3)


def test_flops_are_those_of_what_is_computed() -> None:
    """Two 3x3 convolutions, 6 columns, k = 3: the inner unit computes 4 then 2 columns."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
    chain = trace(model, (1, 5, 6))
    program = shard_program(chain, 0, 1, Box(Range(0, 5), Range(2, 4)))
    assert program.reads == Box(Range(0, 5), Range(0, 6))
    assert program.flops == 2 * 9 * (4 * 5 * 2 + 2 * 5 * 2)


def test_values_are_freed_after_their_last_reader() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = F.max_pool2d(x, 3, 1, 1)
            return F.avg_pool2d(y, 3, 1, 1) + y

    chain = trace(Net(), (1, 6, 6))
    steps = shard_program(chain, 0, len(chain.blocks) - 1, Box(Range(0, 6), Range(0, 3))).steps
    assert [step.last_use for step in steps] == [("x",), (), ("max_pool2d", "avg_pool2d")]
