"""CoEdge: rows of neighbours that exchange halos, by a relaxed integer program (ToN 2020).

    min  sum_l tau_l    or    min  sum_i sum_l (p_i a_li r_i + q_i b_li)
    s.t. tau_l >= a_li r_i + b_li,   sum_i r_i = H,   sum_l tau_l <= limit,   r_i >= least or = 0

r_i are the rows of the input that device i has, in every layer the same share; a_li seconds for a
row of them, b_li those of its halo's transfer and what does not depend on rows; p_i and q_i the
power of computing and of the radio. Rows are whole numbers, which is NP-hard: the relaxation is a
linear program, solved again without the device that is furthest below ``least``, then rounded.

Of the full paper only a summary was at hand. Edges between layers are chosen as in
:mod:`mpicoded.planners.edges`, where the paper exchanges halos at all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

import numpy as np

from mpicoded.cost.model import MESSAGE
from mpicoded.cost.table import Floats
from mpicoded.errors import PlanError
from mpicoded.geometry import split_weighted
from mpicoded.plan import Plan
from mpicoded.planners.base import Problem
from mpicoded.planners.choices import Choices
from mpicoded.planners.edges import Strips

FOREVER = 1e9  # s


class Watts(NamedTuple):
    """Power (devices,) of computing and of the radio."""

    compute: Floats
    radio: Floats


class Supersteps(NamedTuple):
    """Seconds (layers, devices): of a row of the input, and of a halo besides."""

    row: Floats
    halo: Floats

    def latency(self, rows: Sequence[float]) -> float:
        """Seconds of all layers, one after the other, on the devices that have rows."""
        own = np.array(rows) > 0
        return float((self.row * np.array(rows) + self.halo)[:, own].max(1).sum())

    def energy(self, rows: Sequence[float], watts: Watts) -> float:
        """Joules of all layers, on the devices that have rows."""
        own = np.array(rows) > 0
        joules = watts.compute * self.row * np.array(rows) + watts.radio * self.halo
        return float(joules[:, own].sum())


def coedge(problem: Problem) -> Plan:
    """Return strips by the linear program, and the cheapest edge of every boundary."""
    order, layers = problem.order[: _rows(problem)], problem.layers
    if len(order) < 2:
        return problem.plan(())
    devices = [problem.cluster.devices[rank] for rank in order]
    watts = Watts(*(np.array([getattr(d, key) for d in devices]) for key in ("watts", "radio")))
    energy = problem.objective == "energy"
    if energy and not watts.compute.any():
        raise PlanError(
            'objective = "energy" needs the power of the ranks, and the cluster file gives no '
            "watts: add watts (computing) and radio (its link at work) to every [[device]]"
        )
    height = problem.chain.input_shape[1]
    rows = solve(
        supersteps(problem, order),
        height,
        # a row of the smallest map that has one for each
        least=height / min(n for _, last in layers if (n := problem.rows(last)) >= len(order)),
        watts=watts if energy else None,
        limit=problem.latency_limit if energy else inf,
    )
    kept = [i for i, own in enumerate(rows) if own]
    strips = Strips(problem, [order[i] for i in kept], [rows[i] for i in kept])
    return strips.plan(strips.edges())


def _rows(problem: Problem) -> int:
    """Return the rows of the first layer's map, of which every device needs one."""
    return problem.rows(problem.layers[0][1]) if problem.layers else 0


def supersteps(problem: Problem, ranks: Sequence[int]) -> Supersteps:
    """Return what rows and halos cost each rank, a layer after the other."""
    choices, model, links = Choices(problem), problem.model, problem.cluster.links
    height, devices = problem.chain.input_shape[1], problem.cluster.devices
    rates = np.array([min(links[p].sends, links[p].receives) for p in ranks])
    moved = np.array([1 / devices[p].pack + 1 / devices[p].unpack for p in ranks])
    delay = np.array([2 * links[p].latency for p in ranks])
    row, halo = list[Floats](), list[Floats]()
    for number, (first, last) in enumerate(problem.layers):
        slope, fixed, taken, borders = choices.linear(first, last, ranks)
        each = model.formats.maps / rates + moved  # seconds of a value
        row.append(slope * problem.rows(last) / height)
        if number:
            halo.append(fixed + borders * each + 2 * (delay + MESSAGE / rates))
        else:  # the leader sends all of its input
            row[0] = row[0] + taken / height * (model.formats.images / rates + moved)
            halo.append(fixed + delay + MESSAGE / rates)
    return Supersteps(np.array(row), np.array(halo))


def solve(
    steps: Supersteps, height: int, least: float, watts: Watts | None = None, limit: float = inf
) -> list[int]:
    """Return whole rows of every device, with the least sum of latencies, or of energy.

    Raises
    ------
    PlanError
        If no share of the rows takes ``limit`` seconds or less.
    """
    devices, found, fastest = range(steps.row.shape[1]), list[tuple[float, list[int]]](), inf

    def whole(shares: Sequence[float]) -> list[int]:
        parts = iter(split_weighted(height, [max(share, 1e-9) for share in shares]))
        return [next(parts).size if i in kept else 0 for i in devices]

    kept = list(devices)
    while kept:  # at most |D| sets of devices
        free = _relaxed(steps, kept, height, 0.0, watts, limit) or _relaxed(steps, kept, height)
        assert free is not None, "the last has a solution"
        if len(kept) <= height:
            fastest = min(fastest, steps.latency(whole(_relaxed(steps, kept, height) or free)))
            few = min(least, height / len(kept))
            if (shares := _relaxed(steps, kept, height, few, watts, limit)) is not None:
                rows = whole(shares)
                value = steps.latency(rows) if watts is None else steps.energy(rows, watts)
                found.append((value, rows))
        del kept[min(range(len(kept)), key=free.__getitem__)]
    if not found:
        raise PlanError(
            f"latency_limit = {limit:g} s, and rows on {len(devices)} devices take {fastest:.3g} s "
            "at the least: raise it to that, or leave it out"
        )
    return min(found)[1]


def _relaxed(
    steps: Supersteps,
    kept: Sequence[int],
    height: int,
    least: float = 0.0,
    watts: Watts | None = None,
    limit: float = inf,
) -> list[float] | None:
    """Solve the linear program for some devices: real rows of each, None if it has no solution."""
    from scipy.optimize import linprog  # a third of a second, which only this planner should take

    row, halo = (each[:, list(kept)] for each in steps)
    layers, devices = row.shape
    above = np.zeros((layers, devices, devices + layers))  # a_li r_i - tau_l <= -b_li
    above[:, range(devices), range(devices)] = row
    above[range(layers), :, devices + np.arange(layers)] = -1
    taus = np.repeat([0.0, 1.0], [devices, layers])  # sum of tau_l
    cost = taus
    if watts is not None:
        cost = np.concatenate([watts.compute[list(kept)] * row.sum(0), np.zeros(layers)])
    found = linprog(
        cost,
        np.vstack([above.reshape(-1, devices + layers), taus]),
        np.append(-halo.ravel(), min(limit, FOREVER)),
        1 - taus[None],
        [height],
        bounds=[(least, None)] * devices + [(0, None)] * layers,
    )
    return None if found.x is None else [float(x) for x in found.x[:devices]]
