"""Berrut's interpolation: against the plain formula, over all patterns, and on real ranks."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from digits import TRAINED
from many_jobs import LiveRanks
from mpicoded import datasets, models
from mpicoded.answer import Mode
from mpicoded.codes import CODES, Code, CodeRequest
from mpicoded.codes.berrut import Berrut
from mpicoded.codes.erasures import erasures
from mpicoded.codes.interpolation import NODES, Nodes
from mpicoded.errors import JobError, PlanError
from mpicoded.job import Job
from mpicoded.network.graph import trace
from mpicoded.plan import Plan
from mpicoded.results import load
from mpicoded.runtime.deployment import Deployment
from mpicoded.split import SPLITS, Request
from test_codes import check_code

ROOT = Path(__file__).parents[1]
SIZES = [(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (3, 1), (4, 2), (4, 3), (5, 3), (8, 1)]
CONVENTIONS = NODES[:2]


def direct(at: float, nodes: list[float]) -> list[float]:
    """The formula of the reference, section 8, with floats and without any care but for x = x_s."""
    for s, node in enumerate(nodes):
        if abs(at - node) < 1e-12:
            return [float(t == s) for t in range(len(nodes))]
    terms = [(-1) ** s / (at - node) for s, node in enumerate(nodes)]
    return [term / sum(terms) for term in terms]


def places(k: int, n: int, q: int) -> tuple[list[float], list[float]]:
    """alpha_j and z_i as the reference has them."""
    alpha = [cos((2 * j + 1) * pi / (2 * k)) for j in range(k)]
    return alpha, [cos(i * pi / q) for i in range(n)]


def weights(code: Berrut, arrived: Any) -> torch.Tensor:
    """What each unit's output counts in each answer, (k, n)."""
    return code.fill(torch.eye(code.n), arrived)


def test_toy_numbers() -> None:
    """k = 2, r = 1, q = 2: a worker at each end and one in the middle."""
    code = Berrut(2, 1, "N-1")
    half = (2**0.5 + 1) / 2  # 1.2071: an end lies beyond both data nodes
    expected = torch.tensor([[half, 1 - half], [0.5, 0.5], [1 - half, half]])
    assert torch.allclose(code.encode(torch.eye(2)), expected)
    root = 2**-0.5
    mean = torch.tensor([[root, 1 - root], [1 - root, root]])
    here = np.array([True, True, False])
    # between 1 and 0, from signs + -: (1/(a-1), -1/a) scaled to sum to 1
    first = torch.tensor([1 / (root - 1), -1 / root])
    assert torch.allclose(weights(code, here)[0, :2], first / first.sum())
    assert torch.allclose(weights(code, here)[0, :2], mean[0], atol=1e-6)


@pytest.mark.parametrize("nodes", CONVENTIONS)
@pytest.mark.parametrize(("k", "r"), SIZES)
def test_every_pattern_is_the_formula(k: int, r: int, nodes: str) -> None:
    code = Berrut(k, r, nodes)
    alpha, z = places(k, code.n, code.n if nodes == "N" else code.n - 1)
    inputs = torch.tensor([direct(at, alpha) for at in z])
    assert torch.allclose(code.encode(torch.eye(k)), inputs, atol=1e-5)
    for arrived in erasures(code.n, code.n - 1):
        here = np.flatnonzero(arrived)
        expected = torch.zeros(k, code.n)
        expected[:, here] = torch.tensor([direct(at, [z[i] for i in here]) for at in alpha])
        assert torch.allclose(weights(code, arrived), expected, atol=1e-5)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize(("k", "r"), SIZES)
def test_equal_images_are_exact(k: int, r: int, nodes: str) -> None:
    """Interpolants run through a constant: whoever is missing, equal inputs give their answer."""
    code = Berrut(k, r, nodes)
    x = torch.full((k, 2, 3), 1.7)
    assert torch.allclose(code.encode(x), x[:1].expand(code.n, 2, 3), atol=1e-5)
    for arrived in erasures(code.n, code.n - 1):
        y = torch.full((code.n, 2, 3), torch.nan)
        y[torch.from_numpy(arrived)] = 1.7
        assert torch.allclose(code.decode(y, arrived), x, atol=1e-4)


@pytest.mark.parametrize(("k", "q"), [(2, 4), (2, 8), (10, 12), (4, 8), (12, 16), (8, 16)])
def test_where_a_worker_has_a_datum_itself(k: int, q: int) -> None:
    """These collide in whole numbers, with floats or not: 0 / 0 in the formula as it stands."""
    code = Berrut(k, q - k)
    assert np.intersect1d(code.nodes.data, code.nodes.workers).size
    inputs = code.encode(torch.eye(k))
    found = 0
    for j, i in product(range(k), range(code.n)):
        if code.nodes.data[j] == code.nodes.workers[i]:
            found += 1
            assert torch.equal(inputs[i], torch.eye(k)[j])
            for arrived in erasures(code.n, 2)[:40]:
                own = weights(code, arrived)[j]
                assert not arrived[i] or torch.equal(own, torch.eye(code.n)[i])
    assert found >= 2


def test_collisions_are_those_of_the_reference() -> None:
    """One exists if 2^(v + 1) divides q, 2^v being the largest power of two in k."""
    for k, q in product(range(1, 40), range(2, 80)):
        if q < k:
            continue
        nodes = Nodes(q * (2 * np.arange(k) + 1), 2 * k * np.arange(q), 2 * k * q)
        v = (k & -k).bit_length() - 1
        collide = bool(np.intersect1d(nodes.data, nodes.workers).size)
        assert collide == (q % 2 ** (v + 1) == 0)
        exact = {Fraction(2 * j + 1, 2 * k) for j in range(k)} & {Fraction(i, q) for i in range(q)}
        assert collide == bool(exact)


@pytest.mark.parametrize(("k", "r"), [(1, 1), (2, 1), (2, 3), (4, 2), (4, 5), (8, 3)])
def test_systematic_nodes_leave_the_data_alone(k: int, r: int) -> None:
    code = Berrut(k, r, "systematic")
    assert len(set(code.nodes.workers.tolist())) == code.n
    assert torch.equal(code.encode(torch.eye(k))[:k], torch.eye(k))
    check_code(code, torch.randn(code.n, 3))


@pytest.mark.parametrize(
    ("r", "args", "said"),
    [
        (1, {"node": "N"}, "did you mean 'nodes'"),
        (1, {"nodes": "M"}, "choose one of N, N-1, systematic"),
        (0, {}, "needs r >= 1, got r = 0"),
        (4, {"nodes": "systematic"}, "k [+] 1 = 3 places"),
    ],
)
def test_bad_options(r: int, args: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        CODES["berrut"](CodeRequest(2, r, digits_plan("batch", 2, max(r, 1)).stages[0], args=args))


def digits_plan(split: str, k: int, r: int) -> Plan:
    """A plan for LeNet-5 on the digits."""
    request = Request(lenet(), k, r, ("pool2",) if split != "batch" else (), batch=k)
    return SPLITS[split].plan(request)


def lenet() -> Any:
    """LeNet-5 with the weights for the digits, traced."""
    model = models.build("lenet5", {})
    models.load_weights(model, ROOT / "data" / "lenet5-digits.safetensors")
    return trace(model.requires_grad_(False), (1, 32, 32))


@pytest.mark.parametrize("split", ["batch", "width"])
def test_a_plan_prices_every_unit_as_coded(split: str) -> None:
    """Whoever runs it: a coded unit costs what a parity unit does, and a buffer has room for it."""
    plan = digits_plan(split, 4, 1)
    code = CODES["berrut"](CodeRequest(4, 1, plan.stages[0]))
    deployment = Deployment(lenet(), plan, (code,))
    coded = deployment.plan
    assert plan.systematic
    assert not coded.systematic
    for cost in (coded.flops, coded.bytes_in, coded.bytes_out):
        assert {cost(0, unit) for unit in range(5)} == {cost(0, 4)}
    shapes = deployment.input_shapes()[0]
    assert len(set(shapes)) == 1
    assert coded.bytes_in(0, 0) == 4 * np.prod(shapes[0])
    assert "all units coded" in str(coded)
    assert "data units  " not in str(coded)
    assert str(coded).count("coded  ") >= 5
    assert "all units coded" not in str(plan)


def accuracy(code: Code, lost: int) -> float:
    """Mean over all patterns with so many units lost, on the digits' test part, in percent."""
    data = datasets.load("digits", "test", size=(32, 32), folder=ROOT)
    x = torch.from_numpy(data.images)
    x = (x.float() / 255 if x.dtype == torch.uint8 else x)[: len(x) // code.k * code.k]
    x = x.reshape(-1, code.k, *x.shape[1:]).transpose(0, 1)  # (k, groups, 1, 32, 32)
    labels = torch.from_numpy(data.labels)[: x.shape[0] * x.shape[1]].reshape(-1, code.k).T
    model = models.build("lenet5", {})
    models.load_weights(model, ROOT / "data" / "lenet5-digits.safetensors")
    with torch.inference_mode():
        y = model(code.encode(x).flatten(0, 1)).reshape(code.n, x.shape[1], -1)
        found = [
            code.decode(y, arrived).argmax(2) == labels
            for arrived in erasures(code.n, lost)
            if (~arrived).sum() == lost
        ]
    return 100 * float(torch.stack(found).float().mean())


def test_accuracy_on_the_digits() -> None:
    """Approximate answers are worth something; with systematic nodes most are exact."""
    lost, whole = accuracy(Berrut(4, 1), 1), accuracy(Berrut(4, 1), 0)
    assert 70 < lost < 95
    assert lost + 5 < whole <= 100
    assert accuracy(Berrut(4, 1, "systematic"), 0) > 98
    assert accuracy(Berrut(4, 1, "systematic"), 1) > 80


JOB = f"""\
seed = 7
{TRAINED}
split = "test"
batch = 4
limit = 96
[plan]
split = "batch"
[code]
name = "berrut"
k = 4
r = 1
[gather]
deadline = 0.5
[runtime]
window = 1
placement = "fixed"
suspect_after = 20.0
[[faults]]
kind = "silence"
rank = 2
start = 0.7
"""


def test_a_silent_worker_on_real_ranks(ranks: LiveRanks, tmp_path: Path) -> None:
    """Every image is an approximate answer, the very one that the code makes of what came."""
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    ended = ranks.run(6, "run", job)
    assert ended.status == 0, ended.output
    results = load(tmp_path / "job.h5")
    arrived = results.queries["arrived"][:, 0].astype(bool)  # (24, 5)
    assert (results.queries["mode"] == Mode.DEGRADED).all()
    assert (results.predictions["mode"] == Mode.DEGRADED).all(), "no image is anybody's own"
    assert not arrived[17:, 1].any()
    assert arrived[17:].sum(1).min() == 4
    assert arrived[:16].all(1).mean() > 0.5, "it waits for all"

    data = datasets.load("digits", "test", size=(32, 32), folder=ROOT)
    plan = digits_plan("batch", 4, 1)
    code = CODES["berrut"](CodeRequest(4, 1, plan.stages[0]))
    deployment = Deployment(lenet(), plan, (code,), Job.read(job) and pixels(job))
    with torch.inference_mode():
        for query in (0, 11, 18, 23):
            x = torch.from_numpy(data.images[4 * query : 4 * query + 4])
            inputs = deployment.inputs(0, x, deployment.parity(0, x))
            run = deployment.ready_programs[0]
            y = torch.stack([run[i](deployment.normalize(u)) for i, u in enumerate(inputs)])
            expected = code.decode(y, arrived[query]).flatten(0, 1)
            output = torch.from_numpy(results.predictions["output"][query])
            assert torch.allclose(output, expected, atol=1e-3)


def pixels(job: Path) -> Any:
    """How the job's pixels become numbers."""
    from mpicoded.deploy import pixels

    return pixels(Job.read(job))


def test_r_0_is_refused(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(JOB)
    with pytest.raises(JobError, match="no redundancy"):
        Job.read(job, ["code.r=0"])
