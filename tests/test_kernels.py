"""Programs made ready for the CPU compute the same, in both layouts and without oneDNN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpicoded.geometry import Box
from mpicoded.network import kernels
from mpicoded.network.graph import Chain, trace, whole_network
from mpicoded.network.kernels import Kernel, Maxima
from mpicoded.network.ops import Conv, MaxPool, Pads
from mpicoded.network.optimize import Optimizer
from mpicoded.network.program import Program, compile_piece
from mpicoded.plan import Plan
from mpicoded.split import SPLITS
from networks import (
    close,
    interior,
    plan_of,
    programs,
    random_network,
    random_request,
)
from units import cut, stitch

SEEDS = st.integers(0, 2**32 - 1)
LAYOUTS = ("channels-last", "blocked", "unsupported")


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every case runs in both layouts, and as on a machine that has neither."""
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, request.param)
        yield request.param


def choose(patch: pytest.MonkeyPatch, layout: str) -> None:
    if layout == "unsupported":
        patch.setattr(kernels, "supported", lambda: False)
    elif not kernels.supported():
        pytest.skip("this build of torch has no oneDNN convolutions")
    patch.setattr(kernels, "channels_last", lambda: layout == "channels-last")


def ready_plan(optimizer: Optimizer, chain: Chain, plan: Plan, x: Tensor) -> Tensor:
    """Run all stages and the head, made ready, in this process."""
    for stage in plan.stages:
        runs = [optimizer.optimize(program) for program in programs(chain, stage)]
        x = stitch([run(window) for run, window in zip(runs, cut(x, stage), strict=True)], stage)
    result: Tensor = optimizer.optimize(chain.head_after(plan.stages[-1].last))(x)
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=120, deadline=None, derandomize=True, database=None)
@given(network=SEEDS, cuts=SEEDS)
def test_ready_is_unsplit(layout: str, network: int, cuts: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        choose(patch, layout)
        model, shape = random_network(network)
        chain = trace(model, shape)
        split, request = random_request(cuts, chain)
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(cuts))
        before, optimizer = x.clone(), Optimizer()
        with torch.inference_mode():
            true = model(x.clone())
            assert close(ready_plan(optimizer, chain, SPLITS[split].plan(request), x), true, 1e-5)
            assert close(optimizer.optimize(whole_network(chain))(x), true, 1e-5)
        assert torch.equal(x, before), "a program must not overwrite its input"


class Block(nn.Module):
    """Two convolutions with batch norm, a shortcut, and all that may stand behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, 1, 1)
        self.plain = nn.BatchNorm2d(8, affine=False)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8 * 5 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        z = self.plain(self.second(y)) + y
        z = self.pool(F.relu(z))
        return self.fc(z.view(z.size(0), -1))


def block() -> tuple[nn.Module, Chain]:
    torch.manual_seed(1)
    model = Block()
    for norm in (model.norm, model.plain):
        norm.running_mean = torch.randn(8)
        norm.running_var = torch.rand(8) + 0.1
    model.norm.weight.data, model.norm.bias.data = torch.randn(8), torch.randn(8)
    return model, trace(model, (3, 19, 24))


def layers(run: Program) -> list[str]:
    return [type(step.op.layer).__name__ for step in run.steps]


def test_what_is_joined(layout: str) -> None:
    model, chain = block()
    stage = plan_of(chain, "height", 3).stages[0]
    plain = programs(chain, stage)[1]
    run = Optimizer().optimize(plain)
    if layout == "unsupported":
        assert layers(run) == ["Conv", "Call", "Call", "Conv", "Call", "Call", "Call", "Maxima"]
    else:  # conv + norm + relu, conv + norm, the sum, its relu, the pool
        assert layers(run) == ["Kernel", "Kernel", "Call", "Call", "Maxima"]
    assert (run.reads, run.writes, run.flops) == (plain.reads, plain.writes, plain.flops)
    x = torch.randn(2, 3, 19, 24)
    with torch.inference_mode():
        window = cut(x, stage)[1]
        assert close(run(window), plain(window), 1e-5)
        assert close(Optimizer().optimize(whole_network(chain))(x), model(x), 1e-5)


def test_values_are_freed_once() -> None:
    _, chain = block()
    run = Optimizer().optimize(programs(chain, plan_of(chain, "height", 3).stages[0])[1])
    freed = [name for step in run.steps for name in step.last_use]
    made = {step.op.name for step in run.steps} | {run.entry}
    assert len(freed) == len(set(freed)) and set(freed) == made - {run.steps[-1].op.name}


def test_what_others_read_too_is_not_joined(layout: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.norm = nn.BatchNorm2d(2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return torch.relu(y) + self.norm(y)

    torch.manual_seed(2)
    model = Two()
    chain = trace(model, (1, 6, 8))
    x = torch.randn(1, 1, 6, 8)
    with torch.inference_mode():
        assert close(ready_plan(Optimizer(), chain, plan_of(chain, "width", 4), x), model(x), 1e-5)


def test_weights_are_packed_once_for_all_programs() -> None:
    if not kernels.supported():
        pytest.skip("this build of torch has no oneDNN convolutions")
    _, chain = block()
    optimizer = Optimizer()
    stage = plan_of(chain, "height", 3).stages[0]
    runs = [optimizer.optimize(p) for p in (*programs(chain, stage), interior(chain, stage))]
    first = [run.steps[0].op.layer for run in runs]
    assert all(layer is first[0] for layer in first)
    (kernel,) = set(first)
    assert isinstance(kernel, Kernel)
    with torch.inference_mode():
        runs[0](cut(torch.randn(1, 3, 19, 24), stage)[0])
    assert kernel._weight.is_mkldnn, "the plain weights are gone"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_run_as_before(dtype: torch.dtype) -> None:
    chain = trace(nn.Conv2d(2, 3, 3).to(dtype), (2, 7, 8))
    run = Optimizer().optimize(programs(chain, plan_of(chain, "width", 2).stages[0])[0])
    assert layers(run) == ["Conv"]


UNEVEN = [Pads(1, 0, 1, 1), Pads(0, 2, 1, 0), Pads(1, 2, 0, 0), Pads(0, 1, 1, 1), Pads(2, 2, 0, 1)]


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("pads", UNEVEN, ids=lambda p: ",".join(map(str, p)))
@pytest.mark.parametrize("images", [1, 3])
def test_uneven_pads(layout: str, pads: Pads, stride: int | tuple[int, int], images: int) -> None:
    conv = Conv(nn.Conv2d(3, 4, 3, stride))
    run = Kernel(conv, None, kernels.RELU) if layout != "unsupported" else None
    x = torch.randn(images, 3, 11, 9)
    with torch.inference_mode():
        if run is not None:
            assert close(
                run.piece(x, pads, None),
                torch.relu(conv.piece(x, pads, None)),
                1e-5,
            )


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1, 1, 2), nn.MaxPool2d((1, 3), 1)],
    ids=str,
)
@pytest.mark.parametrize("pads", [Pads(), Pads(1, 0, 0, 2)], ids=["even", "uneven"])
def test_maxima_are_the_pooling(pool: nn.MaxPool2d, pads: Pads) -> None:
    plain = MaxPool(pool)
    x = torch.randn(1, 16, 32, 33)
    x[0, 3, 4, 5] = float("nan")
    assert x.numel() >= kernels.SMALL_MAP
    for y in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, 3:, 2:-1]):
        right = plain.piece(y, pads, None)
        assert torch.equal(Maxima(plain).piece(y, pads, None).nan_to_num(9), right.nan_to_num(9))
        assert torch.equal(Maxima(plain).whole(y).nan_to_num(9), pool(y).nan_to_num(9))


def test_narrow_vectors_use_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "sse41")
    assert not kernels.channels_last.__wrapped__()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX")
    assert kernels.channels_last.__wrapped__() == wide


def test_a_value_that_others_read_is_not_joined_away(layout: str) -> None:
    """A convolution, its batch norm and its ReLU are one kernel, unless a later stage reads one."""
    parts = (nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    chain = trace(nn.Sequential(*parts).eval(), (2, 9, 9))
    ops, sizes = chain.blocks[0].ops, dict.fromkeys(chain.shapes, (9, 9))
    x = torch.rand(1, 2, 9, 9)
    for also in ops[:2]:
        program = compile_piece(ops, "input_1", sizes, Box.of(9, 9), {also.name: Box.of(3, 9)})
        with torch.inference_mode():
            plain, ready = (p.run({"input_1": x}) for p in (program, Optimizer().optimize(program)))
        assert plain.keys() == ready.keys() == {ops[2].name, also.name}
        assert plain[also.name].shape == (1, 4, 3, 9)
        assert all(close(ready[name], plain[name], 1e-5) for name in plain)
