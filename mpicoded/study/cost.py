"""Measure the cost of a code: numbers trained, FLOPs and seconds, over all its stages."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mpicoded.codes import Code, Trainable
from mpicoded.codes.erasures import erasures
from mpicoded.runtime.deployment import Deployment
from mpicoded.study.evaluation import Cost
from mpicoded.study.forward_cache import ForwardCache

ROUNDS, WARM_UP = 200, 20  # of a timing
ENOUGH = 2.0  # seconds of timing, if not all rounds
CODERS = ("encoder", "decoder")  # networks on the leader; all others run on workers


def encoder(deployment: Deployment, x: Tensor) -> Cost:
    """Return the cost of encoding one query ``x`` (B, C, H, W)."""
    maps = [before for before, _ in ForwardCache(deployment, x).whole()]

    def encode() -> None:
        for segment, before in zip(deployment.plan.segments, maps, strict=True):
            deployment.parity(segment.start, before)

    return _cost(sum(_parameters(code, "encoder") for code in deployment.codes), encode)


def decoder(deployment: Deployment, x: Tensor) -> Cost:
    """Return the cost of decoding it with as many data units missing as the code is made for."""
    codes = deployment.segment_codes
    arrived = max(
        (a for a in erasures(codes[0].n, codes[0].r) if codes[0].decodable(a)),
        key=lambda a: int((~a[: codes[0].k]).sum()),
    )
    outputs = [y for _, y in ForwardCache(deployment, x).whole()]

    def decode() -> None:
        for code, y in zip(codes, outputs, strict=True):
            code.decode(y, arrived)

    return _cost(sum(_parameters(code, "decoder") for code in codes), decode)


def unit_flops(deployment: Deployment) -> int:
    """Count the FLOPs of the largest data unit for a query."""
    plan = deployment.plan
    return sum(max(plan.flops(s, unit) for unit in range(plan.k)) for s in range(len(plan.stages)))


def coded_flops(deployment: Deployment) -> int:
    """Count the FLOPs of the largest coded unit for a query, as it runs; 0 if there is none."""
    total = 0
    stages = zip(deployment.codes, deployment.programs(), deployment.input_shapes(), strict=True)
    for code, programs, shapes in stages:  # plain programs: packed kernels are not counted
        coded = [unit for unit in range(code.n) if code.copy_of(unit) is None]
        counts = (_flops(partial(programs[unit], torch.zeros(shapes[unit]))) for unit in coded)
        total += max(counts, default=0)
    return total


def coded_parameters(code: Code) -> int:
    """Count the numbers trained for coded units: parity models."""
    if not isinstance(code, Trainable):
        return 0
    others = (part for name, part in code.networks.items() if name not in CODERS)
    return sum(p.numel() for part in others for p in part.parameters())


def _parameters(code: Code, part: str) -> int:
    network = getattr(code, part, None)
    return sum(p.numel() for p in network.parameters()) if isinstance(network, nn.Module) else 0


def _flops(action: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())


def _cost(parameters: int, action: Callable[[], object]) -> Cost:
    flops = _flops(action)
    seconds: list[float] = []
    while len(seconds) < WARM_UP + ROUNDS and (sum(seconds) < ENOUGH or len(seconds) <= WARM_UP):
        began = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - began)
    low, median, high = np.quantile(seconds[WARM_UP:], (0.25, 0.5, 0.75)).tolist()
    return Cost(parameters, flops, (low, median, high))
