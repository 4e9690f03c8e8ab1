"""Every code keeps its contract under every erasure pattern, whatever the shape of its units."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import product
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import units
from mpicoded.codes import CODES, Code, CodeRequest
from mpicoded.codes.erasures import erasures
from mpicoded.codes.learned import Learned, build, owned
from mpicoded.errors import DataError, PlanError
from mpicoded.geometry import Box, Range
from mpicoded.network.graph import Chain, trace
from mpicoded.network.ops import conv_flops
from mpicoded.network.optimize import Optimizer
from mpicoded.network.program import Program
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS, Request

CASES: dict[str, dict[str, Any]] = {
    "width": {"split": "width"},
    "height": {"split": "height"},
    "weighted": {"split": "width", "weights": True},
    "tiles": {"split": "tiles", "tiles": (2, 2)},
    "images": {"split": "batch"},
}
SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (4, 1), (4, 2), (5, 3)]
WITHOUT_PARITY = ("uncoded", "zerofill")
SHAPE = (2, 19, 23)  # of the input; the map after conv2 is 7 x 9
NOWHERE = Box(Range(0, 1), Range(0, 1))
PROGRAM = Program("x", NOWHERE, NOWHERE, (), 0)  # the base model's, which nobody runs


class Net(nn.Module):
    """Two convolutions, a pool and a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(4, 5, 3)
        self.fc = nn.Linear(5 * 7 * 9, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2, 19, 23) -> (B, 3)."""
        x = torch.relu(self.conv2(self.pool1(torch.relu(self.conv1(x)))))
        return self.fc(torch.flatten(x, 1))  # type: ignore[no-any-return]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def chain() -> Chain:
    """The traced network, with fixed weights."""
    torch.manual_seed(3)
    return trace(Net().requires_grad_(False), SHAPE)


def make_plan(chain: Chain, case: str, k: int, r: int) -> Plan:
    """Cut the network in the way ``case`` names."""
    how = CASES[case]
    weights = tuple(1.0 + i for i in range(k)) if how.get("weights") else None
    return SPLITS[how["split"]].plan(
        Request(chain, k, r, tiles=how.get("tiles"), weights=weights, batch=2 * k)
    )


def cases() -> Iterator[Any]:
    """Every code x split x (k, r) that go together."""
    for name, case, (k, r) in product(CODES, CASES, SIZES):
        if (name, case) == ("learned", "images") or (case == "tiles" and k != 4):
            continue
        if name == "mds":  # this stage is not linear: see test_mds.py
            continue
        if name == "parity" and case != "images":
            continue
        r = 0 if name in WITHOUT_PARITY else r
        yield pytest.param(name, case, k, r, id=f"{name}-{case}-{k}+{r}")


@pytest.mark.parametrize(("name", "case", "k", "r"), list(cases()))
@torch.inference_mode()
def test_contract(chain: Chain, name: str, case: str, k: int, r: int) -> None:
    """Units run as workers run them; then every pattern is decoded."""
    plan = make_plan(chain, case, k, r)
    (stage,) = plan.stages
    code = CODES[name](CodeRequest(k, r, stage, chain=chain))
    deployment = Deployment(chain, plan, (code,))
    x = torch.randn(plan.batch, *SHAPE, generator=torch.Generator().manual_seed(5))
    windows = units.windows(x, stage)
    assert not code.systematic or torch.equal(code.encode(windows)[:k], windows)
    assert code.encode(windows).shape == (code.n, *windows.shape[1:])
    inputs = deployment.inputs(0, x, deployment.parity(0, x))
    outputs = [run(u) for run, u in zip(deployment.programs()[0], inputs, strict=True)]
    check_code(code, units.stack(outputs, stage))


def check_code(code: Code, y: Tensor) -> None:
    """Check all 2^n patterns on the unit outputs ``y`` (n, …).

    What did not arrive is poisoned with NaN, so that any use of it shows.
    """
    calls = count_fills(code)
    patterns = erasures(code.n, code.n)
    assert len(patterns) == 2**code.n
    decodable = {arrived.tobytes(): code.decodable(arrived) for arrived in patterns}
    for arrived in patterns:
        poisoned = y.clone()
        poisoned[torch.from_numpy(~arrived)] = torch.nan
        own = code.systematic and bool(arrived[: code.k].all())
        exact = decodable[arrived.tobytes()] if code.name == "replication" else own
        assert code.exact(arrived) == exact
        assert code.complete(arrived) == (exact if code.systematic else arrived.all())
        for unit in np.flatnonzero(~arrived):  # one more arrival never does harm
            more = arrived.copy()
            more[unit] = True
            assert decodable[more.tobytes()] >= decodable[arrived.tobytes()]
        if not decodable[arrived.tobytes()]:
            assert not code.complete(arrived)
        if not code.fillable(arrived):
            assert not decodable[arrived.tobytes()]
            with pytest.raises(ValueError, match="cannot decode"):
                code.decode(poisoned, arrived)
            continue
        calls.clear()
        decoded = code.decode(poisoned, arrived)
        assert len(calls) == (not own)
        check_used(code, y, arrived, decoded)
        assert decoded.shape == (code.k, *y.shape[1:])
        here = torch.from_numpy(arrived[: code.k] & code.systematic)
        assert torch.equal(decoded[here], y[: code.k][here])
        assert torch.isfinite(decoded).all()
        if code.name == "replication":
            assert torch.equal(decoded, y[: code.k])
    check_tolerance(code, decodable)


def check_used(code: Code, y: Tensor, arrived: Any, decoded: Tensor) -> None:
    """What an answer is said to be made from is here, suffices, and nothing else is needed."""
    used = code.used(arrived)
    assert not (used & ~arrived).any()
    assert np.array_equal(used[: code.k], arrived[: code.k]), "all data that is here"
    assert code.systematic or np.array_equal(used, arrived)
    assert torch.equal(code.decode(torch.where(mask(used, y), y, torch.nan), used), decoded)
    if code.exact(arrived):
        assert used.sum() == code.k


def mask(units: Any, y: Tensor) -> Tensor:
    """(n,) -> (n, 1, …)."""
    return torch.from_numpy(units).view(-1, *[1] * (y.dim() - 1))


def check_tolerance(code: Code, decodable: dict[bytes, bool]) -> None:
    """Any r losses are survived; by replication, any r // k."""
    losses = code.r // code.k if code.name == "replication" else code.r
    assert all(decodable[arrived.tobytes()] for arrived in erasures(code.n, losses))


def count_fills(code: Code) -> list[None]:
    """Let every call of ``fill`` leave an entry."""
    calls: list[None] = []
    original = code.fill

    def fill(self: Code, y: Tensor, arrived: Any) -> Tensor:
        calls.append(None)
        assert torch.isfinite(y).all()
        return original(y, arrived)

    code.fill = MethodType(fill, code)  # type: ignore[method-assign]
    return calls


def test_erasures() -> None:
    """The patterns of three units, fewest losses first."""
    assert erasures(3, 2).astype(int).tolist() == [
        [1, 1, 1],
        [0, 1, 1], [1, 0, 1], [1, 1, 0],
        [0, 0, 1], [0, 1, 0], [1, 0, 0],
    ]  # fmt: skip


SHARDS = [(case, k) for case in ("width", "height", "weighted", "tiles") for k in (2, 3, 4)]
SHARDS = [(case, k) for case, k in SHARDS if case != "tiles" or k == 4]


@pytest.mark.parametrize(("case", "k"), SHARDS)
def test_encoder_sees_the_whole_map(chain: Chain, case: str, k: int) -> None:
    """Windows, laid side by side, are the map again; every input that is read is in it."""
    (stage,) = make_plan(chain, case, k, 1).stages
    x = torch.randn(2, *SHAPE)
    whole = fresh(chain, case, k, 1).encoder.whole(units.windows(x, stage))
    rows, cols = whole.shape[2:]
    assert torch.equal(whole, x[:, :, :rows, :cols])
    assert rows >= max(s.reads.rows.stop for s in stage.shards)
    assert cols >= max(s.reads.cols.stop for s in stage.shards)


@pytest.mark.parametrize(("case", "k"), SHARDS)
def test_decoder_lays_and_picks(chain: Chain, case: str, k: int) -> None:
    """Units laid out as a map are stitched shards; picked again, they are the units' own parts."""
    (stage,) = make_plan(chain, case, k, 1).stages
    decoder = fresh(chain, case, k, 1).decoder
    y = torch.randn(k, 2, *stage.output_shape[:1], *stage.unit_output)
    parts = [units.trim(part, stage, i) for i, part in enumerate(y)]
    assert torch.equal(decoder.lay(y), units.stitch(parts, stage))
    assert torch.equal(decoder.pick(decoder.lay(y)), y * owned(stage))


@pytest.mark.parametrize(("case", "k"), SHARDS)
def test_only_holes_are_computed(chain: Chain, case: str, k: int) -> None:
    """A hole is filled as if all of the map had been, whatever is missing around it."""
    code = fresh(chain, case, k, 2)
    mine = owned(code.stage)
    y = torch.randn(k + 2, 3, *code.stage.output_shape[:1], *code.stage.unit_output)
    for arrived in erasures(k + 2, k + 2):
        here = torch.from_numpy(arrived).float()[None]
        came = y * here.T[..., None, None, None]
        missing = torch.from_numpy(~arrived[:k])
        if missing.any():
            all_of_it, holes = code.reconstruct(came, here), code.fill(came, arrived)
            assert torch.allclose((all_of_it * mine)[missing], (holes * mine)[missing], atol=1e-5)
            assert not holes[~missing].any()


def test_holes_cost_their_size(chain: Chain) -> None:
    """What looks around and what does not is paid for by position of a hole."""
    code = fresh(chain, "width", 3, 2)
    one, two = (fill_flops(code, erasures(5, m)[-1][::-1].copy()) for m in (1, 2))
    spread = conv_flops(code.decoder.spread, 7 * 3)
    assert two - spread == pytest.approx(2 * (one - spread), rel=0.01)


def fill_flops(code: Learned, arrived: Any) -> int:
    """FLOPs of filling in what ``arrived`` leaves open."""
    y = torch.zeros(code.n, 1, *code.stage.output_shape[:1], *code.stage.unit_output)
    code.fill(y, arrived)  # what the pattern alone tells is worked out once
    with FlopCounterMode(display=False) as counter:
        code.fill(y, arrived)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(("case", "k"), SHARDS)
def test_parity_unit(chain: Chain, case: str, k: int) -> None:
    """It costs at most half of a data unit, as much of that as it can, and sees every pixel."""
    code = fresh(chain, case, k, 2)
    run = pickle.loads(pickle.dumps(code.worker_model(k, PROGRAM)))
    x = torch.randn(1, *SHAPE).requires_grad_()
    parity = code.parity(units.windows(x, code.stage))[0]
    with FlopCounterMode(display=False) as counter:
        y = run(parity)
    assert y.shape == (1, *code.stage.output_shape[:1], *code.stage.unit_output)
    assert code.unit_flops(k) == counter.get_total_flops()
    half = min(shard.flops for shard in code.stage.shards) // 2
    wider = fresh(chain, case, k, 2, coarse=[code.options["coarse"][0] + 1] * 2)
    assert counter.get_total_flops() <= half < (wider.unit_flops(k) or 0)
    assert torch.allclose(Optimizer().optimize(run)(parity), y, atol=1e-5)
    (seen,) = torch.autograd.grad(parity.sum(), x)
    rows = max(shard.reads.rows.stop for shard in code.stage.shards)
    cols = max(shard.reads.cols.stop for shard in code.stage.shards)
    assert (seen[..., :rows, :cols] != 0).all()


def test_parity_network_as_told(chain: Chain) -> None:
    """Layers before and behind a pool; a map that is too small is stretched."""
    said = {"patch": 1, "fine": [4, 5], "coarse": [6], "hidden": [8]}
    code = fresh(chain, "width", 3, 2, **said)
    widths = [m.out_channels for m in code.nets[0].body if isinstance(m, nn.Conv2d)]
    assert widths == [4, 5, 6]
    assert code.encoder.view.size[1:] == SHAPE[1:]
    small = fresh(chain, "width", 3, 2, patch=8)
    assert small.encoder.view.size[1:] == (3, 3)
    y = small.worker_model(3, PROGRAM)(torch.randn(2, *small.encoder.view.window))
    assert y.shape[2:] == code.stage.unit_output


def test_parity_network_that_halves_its_map(chain: Chain) -> None:
    """Convolutions of a small ResNet; FLOPs are what runs, and all of the view is seen."""
    code = fresh(chain, "width", 3, 2, widths=[4, 6, 6, 6])
    assert code.encoder.view.patch == 1
    net, run = code.nets[0].eval(), code.worker_model(3, PROGRAM)
    window = torch.rand(2, *code.encoder.view.window).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        y = run(window)
    assert y.shape[1:] == (code.stage.output_shape[0], *code.stage.unit_output)
    assert code.unit_flops(3) == counter.get_total_flops() // 2
    assert torch.allclose(net(window), y, atol=1e-5)
    for parameter in net.parameters():
        parameter.data.abs_()  # so that nothing cancels
    (seen,) = torch.autograd.grad(net(window).sum(), window)
    assert (seen.flatten(1)[:, : code.encoder.view.size.total] != 0).all()
    tensors, about = code.networks.state_dict(), code.metadata("tests:Net")
    again = build(CodeRequest(3, 2, code.stage, tensors, about))
    assert again.options["widths"] == (4, 6, 6, 6)
    with pytest.raises(DataError, match="widths = 4 6 6 6 where the job needs 4 6"):
        build(CodeRequest(3, 2, code.stage, tensors, about, {"widths": [4, 6]}))


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"widths": [4, 4, 4]}, "borders would not be seen"),
        ({"widths": [4, 8], "fine": [4]}, r"args\.widths = \[4, 8\] stand in the place"),
        ({"hiden": [3]}, r"args\.hiden.*did you mean 'hidden'"),
        ({"hidden": []}, "at least one hidden layer"),
        ({"patch": -1}, "args.patch = -1"),
        ({"coarse": [0]}, "give positive whole numbers"),
    ],
)
def test_wrong_options(chain: Chain, said: dict[str, Any], says: str) -> None:
    """One line names the option."""
    with pytest.raises(PlanError, match=says):
        fresh(chain, "width", 3, 2, **said)


def test_owned_positions(chain: Chain) -> None:
    """Shares 1:2:3 of 9 columns are 2, 3 and 4; the rest of a unit's 4 columns is not its own."""
    (stage,) = make_plan(chain, "weighted", 3, 1).stages
    assert owned(stage)[:, 0, 0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_patterns_of_a_batch_are_its_own(chain: Chain) -> None:
    """Training decodes every image with another pattern; it is what decode() does for each."""
    code = fresh(chain, "tiles", 4, 2)
    stage = code.stage
    y = torch.randn(6, 3, *stage.output_shape[:1], *stage.unit_output)
    arrived = erasures(6, 2)[[3, 9, 20]]
    here = torch.from_numpy(arrived).float()
    together = code.reconstruct(y * here.T[..., None, None, None], here)
    for b, row in enumerate(arrived):
        one = code.fill(y[:, b : b + 1] * here[b, :, None, None, None, None], row)
        hole = torch.from_numpy(~row[:4])
        both = ((owned(stage) * z)[hole] for z in (together[:, b : b + 1], one))
        assert torch.allclose(*both, atol=1e-5)


def fresh(chain: Chain, case: str, k: int, r: int, seed: int = 0, **args: object) -> Learned:
    """Return an untrained learned code."""
    (stage,) = make_plan(chain, case, k, r).stages
    return build(CodeRequest(k, r, stage, args=args, seed=seed))


def test_seed_makes_the_code(chain: Chain) -> None:
    """Same seed, same fresh code."""
    one, same, other = (
        fresh(chain, "width", 3, 2, seed=seed).encoder.see.weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_weights_round_trip(chain: Chain) -> None:
    """Another size of networks comes from what the file says of itself."""
    code = fresh(chain, "width", 3, 2, hidden=[5, 6], seed=9)
    again = build(
        CodeRequest(3, 2, code.stage, code.networks.state_dict(), code.metadata("tests:Net"))
    )
    assert again.options["hidden"] == (5, 6)
    x = units.windows(torch.randn(2, *SHAPE), code.stage)
    assert torch.equal(code.parity(x), again.parity(x))
    assert not any(p.requires_grad for p in again.networks.parameters())


def test_weights_of_another_code(chain: Chain) -> None:
    """The message holds the file's number and the job's, and the way out."""
    code = fresh(chain, "width", 3, 2)
    (stage,) = make_plan(chain, "width", 2, 2).stages
    request = CodeRequest(2, 2, stage, code.networks.state_dict(), code.metadata("tests:Net"))
    match = "window = 2 19 12 where the job needs 2 19 16.*mpicoded train"
    with pytest.raises(DataError, match=match):
        build(request)


def test_weights_of_another_k(chain: Chain) -> None:
    """Units that are as large can share weights: 9 columns in 3 or 4 are 3 at the most."""
    code = fresh(chain, "width", 3, 2, seed=4)
    (stage,) = make_plan(chain, "width", 4, 2).stages
    assert stage.unit_output == code.stage.unit_output
    again = build(CodeRequest(4, 2, stage, code.networks.state_dict(), code.metadata("tests:Net")))
    assert torch.equal(again.encoder.see.weight, code.encoder.see.weight)


def test_weights_without_metadata(chain: Chain) -> None:
    """Any safetensors file may be named by mistake."""
    code = fresh(chain, "width", 3, 2)
    with pytest.raises(DataError, match="these are no weights of a code"):
        build(CodeRequest(3, 2, code.stage, code.networks.state_dict(), {}))


def test_damaged_weights(chain: Chain) -> None:
    """A tensor of another shape is named with both shapes."""
    code = fresh(chain, "width", 3, 2)
    tensors = dict(code.networks.state_dict())
    tensors["decoder.point.0.bias"] = torch.zeros(9)
    with pytest.raises(DataError, match=r"point.0.bias \(9,\) where the code has \(32,\)"):
        build(CodeRequest(3, 2, code.stage, tensors, code.metadata("tests:Net")))


def test_begin_with_weights_of_another_plan(chain: Chain) -> None:
    """Networks of the same shapes may serve another cut; to be used there they are trained on."""
    said = {"patch": 2, "coarse": [5], "hidden": [8]}
    height, weighted, width = (
        fresh(chain, split, 3, 2, **said) for split in ("height", "weighted", "width")
    )
    tensors, about = height.networks.state_dict(), height.metadata("tests:Net")
    with pytest.raises(DataError, match="unit_output = 5 3 9 where the job needs 5 7 4"):
        weighted.load(tensors, about)
    weighted.begin(tensors, about)
    assert torch.equal(weighted.decoder.look.weight, height.decoder.look.weight)
    assert all(p.requires_grad for p in weighted.networks.parameters())
    with pytest.raises(DataError, match="code = mds where the job needs learned"):
        weighted.begin(tensors, about | {"code": "mds"})
    with pytest.raises(DataError, match=r"see.weight \(8, 8, 1, 1\) where the code has \(6, 8"):
        width.begin(tensors, about)


def test_images_are_refused(chain: Chain) -> None:
    """The learned code fills holes of one map."""
    (stage,) = make_plan(chain, "images", 2, 1).stages
    with pytest.raises(PlanError, match='use split = "width"'):
        build(CodeRequest(2, 1, stage))
