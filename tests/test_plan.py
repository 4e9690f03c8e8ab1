"""Plans against published numbers and brute force; their checks, and their table."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mpicoded.cluster import Cluster
from mpicoded.errors import ModelError, PlanError
from mpicoded.geometry import Box
from mpicoded.models import build
from mpicoded.network.graph import Chain, trace, whole_network
from mpicoded.plan import Stage
from networks import close, plan_of, run_plan, sized


@pytest.fixture(scope="module")
def lenet() -> Chain:
    return trace(build("lenet5", {}), (1, 32, 32))


def test_aofl_figure_7() -> None:
    """partitioning.md 2.3: two fused blocks (7 and 6 convolutions) in 2 x 4 tiles: 90.7 %."""
    chain = trace(build("vgg16-features", {}), (3, 256, 256))
    convs = [i for i, b in enumerate(chain.blocks) if isinstance(b.ops[0].layer.module, nn.Conv2d)]
    ends = [chain.blocks[i].name for i in (convs[6], convs[-1])]
    plan = plan_of(chain, "tiles", 8, 0, *ends, tiles=(2, 4))
    assert round(100 * plan.redundancy, 1) == 90.7
    with_pool = [chain.blocks[convs[6] + 1].name, ends[1]]
    assert plan_of(chain, "tiles", 8, 0, *with_pool, tiles=(2, 4)).redundancy == pytest.approx(
        plan.redundancy, rel=1e-3
    )


def test_deepthings_messages() -> None:
    """partitioning.md 2.3: the first 16 layers of YOLOv2, 3 x 3 tiles: 13.8 MiB with the frame.

    Inner layers have one channel here: only what enters and what leaves is counted.
    """
    kernels = [3, 0, 3, 0, 3, 1, 3, 0, 3, 1, 3, 0, 3, 1, 3, 1]  # 0: a pool
    layers = [nn.Conv2d(1, 1, k, padding=k // 2) if k else nn.MaxPool2d(2) for k in kernels]
    layers[0], layers[-1] = nn.Conv2d(3, 1, 3, padding=1), nn.Conv2d(1, 256, 1)
    plan = plan_of(trace(nn.Sequential(*layers), (3, 608, 608)), "tiles", 9, tiles=(3, 3))
    assert plan.output_shape == (256, 38, 38)
    tiles = sum(plan.bytes_in(0, i) + plan.bytes_out(0, i) for i in range(9))
    assert round((tiles + 4 * 3 * 608 * 608) / 2**20, 1) == 13.8


def _convs(count: int) -> list[nn.Module]:
    return [nn.Conv2d(1, 1, 3, padding=1) for _ in range(count)]


POOL = nn.MaxPool2d(2)
VGG = {
    "b1": (_convs(2), 224),
    "b2": (_convs(2), 112),
    "b3": (_convs(3), 56),
    "b4": (_convs(3), 28),
    "b5": (_convs(3), 14),
    "b1+b2": ([*_convs(2), POOL, *_convs(2), POOL], 224),
    "all": ([m for n in (2, 2, 3, 3, 3) for m in (*_convs(n), POOL)], 224),
}
# coded-convolution.md section 2: rho_io, rho_c and the bound S of the speed-up.
REDUNDANCY = {
    ("b1", 2): (1.018, 1.004, 1.99),
    ("b1", 8): (1.125, 1.031, 7.72),
    ("b2", 6): (1.179, 1.045, 5.60),
    ("b3", 4): (1.321, 1.107, 3.50),
    ("b4", 6): (2.071, 1.357, 4.00),
    ("b5", 4): (2.286, 1.429, 2.33),
    ("b5", 8): (3.714, 1.976, 3.50),
    ("b1+b2", 4): (1.161, 1.102, 3.52),
    ("b1+b2", 8): (1.375, 1.238, 6.29),
    ("all", 2): (1.80, 1.77, 1.05),
    ("all", 6): (4.53, 4.40, 1.10),
}


@pytest.mark.parametrize(("block", "k"), REDUNDANCY)
def test_redundancy_of_vgg16(block: str, k: int) -> None:
    layers, size = VGG[block]
    (stage,) = plan_of(trace(nn.Sequential(*layers), (1, size, size)), "width", k).stages
    digits = 2 if block == "all" else 3
    io = sum(s.reads.cols.size for s in stage.shards) / size
    bound = stage.whole_flops / max(s.flops for s in stage.shards)
    measured = (round(io, digits), round(1 + stage.redundancy, digits), round(bound, 2))
    assert measured == REDUNDANCY[block, k]


def _reads(outputs: set[tuple[int, int]], conv: nn.Conv2d, size: tuple[int, int]) -> set:
    """Positions of the input map under some tap of the kernel: a rectangle's hull, by sets."""
    return {
        (i, j)
        for a, b in outputs
        for u in range(conv.kernel_size[0])
        for v in range(conv.kernel_size[1])
        if 0 <= (i := a * conv.stride[0] - conv.padding[0] + u) < size[0]
        and 0 <= (j := b * conv.stride[1] - conv.padding[1] + v) < size[1]
    }


def _positions(box: Box) -> set[tuple[int, int]]:
    return {(i, j) for i in range(*box.rows) for j in range(*box.cols)}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("split", "more"), [("height", {}), ("width", {}), ("tiles", {"tiles": (2, 2)})]
)
def test_bytes_and_flops_by_counting(split: str, more: dict, batch: int) -> None:
    first, second = (
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Conv2d(3, 5, (3, 5), (2, 1), (1, 2), bias=False),
    )
    chain = trace(nn.Sequential(first, nn.ReLU(), second), (2, 9, 10))
    plan = plan_of(chain, split, 4, 2, batch=batch, **more)
    (stage,) = plan.stages
    for i, shard in enumerate(stage.shards):
        outputs = _positions(shard.writes)
        middle = _reads(outputs, second, (9, 10))
        inputs = _reads(middle, first, (9, 10))
        assert _positions(shard.reads) == inputs
        assert plan.bytes_in(0, i) == batch * 4 * 2 * len(inputs)
        assert plan.bytes_out(0, i) == batch * 4 * 5 * len(outputs)
        macs = len(outputs) * 5 * 3 * 15 + len(middle) * 3 * 2 * 9
        assert plan.flops(0, i) == batch * 2 * macs
    rows, cols = stage.unit_output
    for i in (4, 5):
        assert plan.bytes_in(0, i, 2) == batch * 2 * 2 * stage.windows[0].area
        assert plan.bytes_out(0, i) == batch * 4 * 5 * rows * cols
        assert plan.flops(0, i) >= max(plan.flops(0, j) for j in range(4))
    whole = 2 * (9 * 10 * 3 * 2 * 9 + 5 * 10 * 5 * 3 * 15)
    assert stage.whole_flops == whole
    assert plan.redundancy == pytest.approx(sum(s.flops for s in stage.shards) / whole - 1)


def test_stage_drawing() -> None:
    """The drawing at the head of plan.py: 6 columns, k = 3, two 3x3 convolutions."""
    chain = trace(nn.Sequential(*_convs(2)), (1, 5, 6))
    (stage,) = plan_of(chain, "width", 3, 1).stages
    assert [s.writes.cols for s in stage.shards] == [(0, 2), (2, 4), (4, 6)]
    assert [s.reads.cols for s in stage.shards] == [(0, 4), (0, 6), (2, 6)]
    assert [w.cols for w in stage.windows] == [(-2, 4), (0, 6), (2, 8)]


def test_windows_of_unequal_shards_start_with_their_shard() -> None:
    (stage,) = plan_of(trace(nn.Conv2d(1, 1, 3, 2, 1), (1, 9, 15)), "width", 3, 1).stages
    assert [s.writes.cols for s in stage.shards] == [(0, 3), (3, 6), (6, 8)]
    assert [w.cols for w in stage.windows] == [(-1, 6), (5, 12), (11, 18)]
    assert {w.rows for w in stage.windows} == {(0, 9)} and stage.unit_output == (5, 3)


def test_stages_and_head(lenet: Chain) -> None:
    plan = plan_of(lenet, "height", 3, 1, "pool1", "pool2")
    assert [(s.name, s.first, s.last) for s in plan.stages] == [
        ("conv1 … pool1", 0, 1), ("conv2 … pool2", 2, 3),
    ]  # fmt: skip
    assert plan.stages[0].output_shape == plan.stages[1].input_shape == (6, 16, 16)
    assert plan.head_flops == 2 * (576 * 120 + 120 * 84 + 84 * 10)
    early = plan_of(lenet, "height", 3, 1, "pool1")
    assert early.head_flops == plan.head_flops + 2 * 12 * 12 * 16 * 6 * 25
    assert list(plan.units()) == [(s, i) for s in (0, 1) for i in range(4)]
    x = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        assert close(run_plan(lenet, early, x), whole_network(lenet)(x), 1e-5)


REQUESTS: dict[str, tuple[dict, type[Exception], str]] = {
    "k too large": (
        {"split": "width", "k": 7, "stages": ("pool2",)}, PlanError,
        r"cannot cut the width, 6 long, into k = 7 shards: use k from 1 to 6.*earlier block.*tiles",
    ),
    "no tiles": ({"split": "tiles", "k": 4}, PlanError, r"tiles = not given .* columns = k = 4"),
    "wrong tiles": (
        {"split": "tiles", "k": 4, "tiles": (2, 3)}, PlanError, r"tiles = \[2, 3\] must be"
    ),
    "weights, wrong number": (
        {"split": "width", "k": 2, "weights": (1.0,)}, PlanError, r"weights = \[1.0\]: give k = 2",
    ),
    "weights for tiles": (
        {"split": "tiles", "k": 4, "tiles": (2, 2), "weights": (1.0,) * 4}, PlanError, "strips only"
    ),
    "stages out of order": (
        {"split": "width", "k": 2, "stages": ("pool2", "pool1")}, PlanError, r"order, conv1"
    ),
    "unknown stage": (
        {"split": "width", "k": 2, "stages": ("pool9",)}, ModelError, r"no block 'pool9'.*pool2"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUESTS)
def test_requests_that_cannot_be_met(case: str, lenet: Chain) -> None:
    more, kind, text = REQUESTS[case]
    more = dict(more)
    with pytest.raises(kind, match=text):
        plan_of(lenet, more.pop("split"), more.pop("k"), 0, *more.pop("stages", ()), **more)


def test_branches_at_different_strides_have_no_common_window() -> None:
    """Stride 2 and a 4-wide kernel give 4 columns of 7 both; only data units can be cut from it."""

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fast, self.wide = nn.Conv2d(1, 1, 1, 2), nn.Conv2d(1, 1, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fast(x) + self.wide(x)

    model = Uneven().eval()
    chain = trace(model, (1, 7, 7))
    x = torch.rand(1, 1, 7, 7)
    with torch.inference_mode():
        assert close(run_plan(chain, plan_of(chain, "width", 3), x), model(x), 1e-5)
    with pytest.raises(PlanError, match=r"different strides.* for r = 1 parity units: end the"):
        plan_of(chain, "width", 3, 1)


def test_check_workers(lenet: Chain) -> None:
    plan = plan_of(lenet, "width", 6, 2)
    for ranks in (9, 12, 1):
        plan.check(Cluster.local(ranks), sharing=False)
    plan.check(Cluster.local(2), sharing=True)
    text = r"6 \+ 2 = 8 units need 8 workers, there are 7: start 9 ranks.*sharing = true"
    with pytest.raises(PlanError, match=text):
        plan.check(Cluster.local(8), sharing=False)


def test_check_batch(lenet: Chain) -> None:
    plan_of(lenet, "batch", 3, 1, batch=6).check(Cluster.local(5), sharing=False)
    plan = plan_of(lenet, "batch", 3, 1, batch=4)
    with pytest.raises(PlanError, match=r"batch = 4 images.* k = 3 units.* multiple of 3"):
        plan.check(Cluster.local(5), sharing=False)


def test_home(lenet: Chain) -> None:
    plan = plan_of(lenet, "width", 3, 1)
    assert [plan.home(i, Cluster.local(6)) for i in range(4)] == [1, 2, 3, 4]
    assert [plan.home(i, Cluster.local(3)) for i in range(4)] == [1, 2, 2, 1]


def test_batch_split_counts_whole_images(lenet: Chain) -> None:
    plan = plan_of(lenet, "batch", 2, 1, batch=4)
    macs = 32 * 32 * 6 * 25 + 12 * 12 * 16 * 6 * 25 + 576 * 120 + 120 * 84 + 84 * 10
    assert [plan.flops(0, i) for i in range(3)] == [2 * 2 * macs] * 3
    assert plan.stages[0].whole_flops == 4 * 2 * macs and plan.redundancy == 0 == plan.head_flops
    assert [plan.bytes_in(0, i) for i in range(3)] == [2 * 4 * 1024] * 3
    assert [plan.bytes_out(0, i) for i in range(3)] == [2 * 4 * 10] * 3


TABLE = """\
split = tiles, k = 4 data units, r = 1 parity units, images a query: 2

stage 1 of 1: 0 … 2, 2 x 6 x 8 -> 4 x 3 x 4
rank      unit  rows written  columns  rows read  columns  MFLOP  kB in  kB out
   1         0           0:2      0:2        0:5      0:5  0.005    0.4     0.1
   2         1           0:2      2:4        0:5      3:8  0.005    0.4     0.1
   3         2           2:3      0:2        3:6      0:5  0.002    0.2     0.1
   4         3           2:3      2:4        3:6      3:8  0.002    0.2     0.1
   5  4 parity       2 coded  2 coded    6 coded  6 coded  0.005    0.6     0.1

data units    0.014 MFLOP a query, 0.0 % redundancy
parity units  0.005 MFLOP a query
head          0.000 MFLOP a query, on rank 0
messages      1.9 kB out and 0.5 kB back a query, in float32
spare ranks   6, 7"""


def test_table() -> None:
    model = nn.Sequential(sized(2, 4, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    plan = plan_of(trace(model, (2, 6, 8)), "tiles", 4, 1, tiles=(2, 2), batch=2)
    assert plan.table(Cluster.local(8)) == TABLE
    assert str(plan) == TABLE.replace("\nspare ranks   6, 7", "")


def test_table_of_images_on_one_rank(lenet: Chain) -> None:
    lines = plan_of(lenet, "batch", 2, batch=4).table(Cluster.local(1)).splitlines()
    assert lines[4].split()[:5] == ["0", "0", "images", "0:2", "all"]
    assert not any("parity units " in line for line in lines[1:])


def test_redundancy_of_an_empty_stage() -> None:
    (stage,) = plan_of(trace(nn.Sequential(nn.MaxPool2d(2)), (1, 8, 8)), "width", 2).stages
    assert isinstance(stage, Stage) and stage.redundancy == 0.0
