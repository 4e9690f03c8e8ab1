"""Every code keeps its contract under every erasure pattern, whatever the shape of its units."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mpicoded import units
from mpicoded.codes import CODES, Code, CodeRequest
from mpicoded.codes.erasures import erasures
from mpicoded.codes.learned import Learned, build, owned
from mpicoded.errors import DataError, PlanError
from mpicoded.network.graph import Chain, trace
from mpicoded.partition import PARTITIONS, Request
from mpicoded.plan import Plan
from mpicoded.runtime.deployment import Deployment

SPLITS: dict[str, dict[str, Any]] = {
    "width": {"split": "width"},
    "height": {"split": "height"},
    "weighted": {"split": "width", "weights": True},
    "tiles": {"split": "tiles", "tiles": (2, 2)},
    "images": {"split": "batch"},
}
SIZES = [(1, 1), (1, 2), (2, 1), (3, 2), (4, 1), (4, 2), (5, 3)]
SHAPE = (2, 19, 23)  # of the input; the map after conv2 is 7 x 9


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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny; a second thread only waits for a core that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def chain() -> Chain:
    """The traced network, with fixed weights."""
    torch.manual_seed(3)
    return trace(Net().requires_grad_(False), SHAPE)


def make_plan(chain: Chain, case: str, k: int, r: int) -> Plan:
    """Cut the network in the way ``case`` names."""
    how = SPLITS[case]
    weights = tuple(1.0 + i for i in range(k)) if how.get("weights") else None
    return PARTITIONS[how["split"]](
        Request(chain, k, r, tiles=how.get("tiles"), weights=weights, batch=2 * k)
    )


def cases() -> Iterator[Any]:
    """Every code x split x (k, r) that go together."""
    for name, case, (k, r) in product(CODES, SPLITS, SIZES):
        if (name, case) == ("learned", "images") or (case == "tiles" and k != 4):
            continue
        r = 0 if name == "uncoded" else r
        yield pytest.param(name, case, k, r, id=f"{name}-{case}-{k}+{r}")


@pytest.mark.parametrize(("name", "case", "k", "r"), list(cases()))
@torch.inference_mode()
def test_contract(chain: Chain, name: str, case: str, k: int, r: int) -> None:
    """Units run as workers run them; then every pattern is decoded."""
    plan = make_plan(chain, case, k, r)
    (stage,) = plan.stages
    code = CODES[name](CodeRequest(k, r, stage))
    deployment = Deployment(chain, plan, (code,))
    x = torch.randn(plan.batch, *SHAPE, generator=torch.Generator().manual_seed(5))
    windows = units.windows(x, stage)
    assert torch.equal(code.encode(windows)[:k], windows)
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
        own = bool(arrived[: code.k].all())
        exact = decodable[arrived.tobytes()] if code.name == "replication" else own
        assert code.complete(arrived) == exact
        for unit in np.flatnonzero(~arrived):  # one more arrival never does harm
            more = arrived.copy()
            more[unit] = True
            assert decodable[more.tobytes()] >= decodable[arrived.tobytes()]
        if not decodable[arrived.tobytes()]:
            assert not code.complete(arrived)
            with pytest.raises(ValueError, match="cannot decode"):
                code.decode(poisoned, arrived)
            continue
        calls.clear()
        decoded = code.decode(poisoned, arrived)
        assert len(calls) == (not own)
        check_used(code, y, arrived, decoded)
        assert decoded.shape == (code.k, *y.shape[1:])
        here = torch.from_numpy(arrived[: code.k])
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
    assert torch.equal(code.decode(torch.where(mask(used, y), y, torch.nan), used), decoded)
    if code.complete(arrived):
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
    """Units laid out as a map are stitched shards; picked again, they are the units."""
    (stage,) = make_plan(chain, case, k, 1).stages
    decoder = fresh(chain, case, k, 1).decoder
    y = torch.randn(k, 2, *stage.output_shape[:1], *stage.unit_output)
    assert torch.equal(decoder.lay(y), units.stitch(list(y), stage))
    assert torch.equal(decoder.pick(decoder.lay(y)), y)


def test_owned_positions(chain: Chain) -> None:
    """Shares 1:2:3 of 9 columns are 2, 3 and 4; the rest of a unit's 4 columns is not its own."""
    (stage,) = make_plan(chain, "weighted", 3, 1).stages
    assert owned(stage)[:, 0, 0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_patterns_of_a_batch_are_its_own(chain: Chain) -> None:
    """Training decodes every image with another pattern; each hole is filled as it is alone."""
    code = fresh(chain, "tiles", 4, 2)
    stage = code.stage
    y = torch.randn(6, 3, *stage.output_shape[:1], *stage.unit_output)
    arrived = erasures(6, 2)[[3, 9, 20]]
    here = torch.from_numpy(arrived).float()
    together = code.decoder(y * here.T[..., None, None, None], here)
    for b, row in enumerate(arrived):
        one = code.fill(y[:, b : b + 1] * here[b, :, None, None, None, None], row)
        gone = ~row[:4]
        assert torch.allclose(together[gone, b : b + 1], one[gone], atol=1e-6)
        assert not one[~gone].any()


def fresh(chain: Chain, case: str, k: int, r: int, **about: str) -> Learned:
    """Return an untrained learned code."""
    (stage,) = make_plan(chain, case, k, r).stages
    return build(CodeRequest(k, r, stage, about=about))


def test_seed_makes_the_code(chain: Chain) -> None:
    """Same seed, same fresh code."""
    one, same, other = (
        fresh(chain, "width", 3, 2, seed=seed).encoder.squeeze.weight for seed in ("1", "1", "2")
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_weights_round_trip(chain: Chain) -> None:
    """Another size of networks comes from what the file says of itself."""
    code = fresh(chain, "width", 3, 2, hidden="5 6", seed="9")
    again = build(
        CodeRequest(3, 2, code.stage, code.networks.state_dict(), code.about("tests:Net"))
    )
    assert again.hidden == (5, 6)
    x = units.windows(torch.randn(2, *SHAPE), code.stage)
    assert torch.equal(code.parity(x), again.parity(x))
    assert not any(p.requires_grad for p in again.networks.parameters())


def test_weights_of_another_code(chain: Chain) -> None:
    """The message holds the file's number and the job's, and the way out."""
    code = fresh(chain, "width", 3, 2)
    (stage,) = make_plan(chain, "width", 4, 2).stages
    request = CodeRequest(4, 2, stage, code.networks.state_dict(), code.about("tests:Net"))
    with pytest.raises(DataError, match=r"k = 3 where the job needs 4.*mpicoded train"):
        build(request)


def test_weights_without_metadata(chain: Chain) -> None:
    """Any safetensors file may be named by mistake."""
    code = fresh(chain, "width", 3, 2)
    with pytest.raises(DataError, match="these are no weights of a learned code"):
        build(CodeRequest(3, 2, code.stage, code.networks.state_dict(), {}))


def test_damaged_weights(chain: Chain) -> None:
    """A tensor of another shape is named with both shapes."""
    code = fresh(chain, "width", 3, 2)
    tensors = dict(code.networks.state_dict())
    tensors["encoder.mix.bias"] = torch.zeros(9)
    with pytest.raises(DataError, match=r"encoder.mix.bias \(9,\) where the code has \(4,\)"):
        build(CodeRequest(3, 2, code.stage, tensors, code.about("tests:Net")))


def test_images_are_refused(chain: Chain) -> None:
    """The learned code fills holes of one map."""
    (stage,) = make_plan(chain, "images", 2, 1).stages
    with pytest.raises(PlanError, match='use split = "width"'):
        build(CodeRequest(2, 1, stage))
