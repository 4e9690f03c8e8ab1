"""Setup of workers before the first unit, and its layout in one array.

    array = pack(setup, own)        # the leader, once
    setup = load(array, rank)       # every worker: its own part, programs made ready for its CPU

Setups are pickled by the leader for its own workers, inside one MPI job; no file is ever unpickled.
Weights stand behind the pickle as they are, and a worker's large ones lie over the received array.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpicoded.errors import ModelError
from mpicoded.faults import Fault, Schedule, schedule
from mpicoded.network.graph import Chain, Head
from mpicoded.network.in_parts import InParts
from mpicoded.network.linear import described
from mpicoded.network.ops import Normalize, Op
from mpicoded.network.optimize import Optimizer
from mpicoded.network.program import Program
from mpicoded.plan import Plan
from mpicoded.runtime.message import Buffer

Run = Callable[[Tensor], Tensor]
ALIGNED = 64  # bytes: where a tensor may begin
SMALL_PART = 65536  # bytes


@dataclass(frozen=True)
class Own:
    """The part of one rank alone: the (stage, unit)s that are its own, and its faults."""

    units: tuple[tuple[int, int], ...]
    faults: Schedule


@dataclass(frozen=True)
class Setup:
    """The part of all workers: ``programs[stage][unit]`` runs a unit, on any of them.

    ``inputs[stage][unit]`` is the shape of an input; ``capacity`` is the largest input to come, in
    bytes; outputs travel as ``answers``, pieces of direct segments as ``wire``, which are at most
    ``halo`` bytes large. ``chain`` are the blocks, without model, if other plans may follow; their
    programs are made by the same ``optimizer``. ``parts`` of a (stage, unit) are run instead of its
    program where others wait for the first of them.
    """

    programs: tuple[tuple[Run, ...], ...]
    inputs: tuple[tuple[tuple[int, ...], ...], ...]
    pixels: Normalize | None
    capacity: int
    threads: int | str
    answers: str = "float32"
    wire: str = "float32"
    plan: Plan | None = None
    halo: int = 0
    chain: Chain | None = None
    optimizer: Optimizer | None = None
    parts: Mapping[tuple[int, int], InParts] = field(default_factory=dict)
    own: Own = Own((), schedule((), 0, 0))


def own_parts(
    units: Mapping[int, Iterable[tuple[int, int]]], faults: Sequence[Fault], seed: int
) -> dict[int, Own]:
    """Return each rank's own part, of its (stage, unit)s."""
    return {rank: Own(tuple(own), schedule(faults, rank, seed)) for rank, own in units.items()}


class _Pickler(pickle.Pickler):
    """Pickles tensors as plain arrays: no copy through torch's own archive format."""

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        if obj.is_quantized:
            raise TypeError(f"its numbers are quantised ({obj.dtype})")
        if obj.dtype is torch.bfloat16 or obj.layout is not torch.strided:
            return NotImplemented  # numpy has no such thing
        return torch.from_numpy, (obj.detach().contiguous().numpy(),)


def _pickled(what: Any) -> tuple[io.BytesIO, list[pickle.PickleBuffer]]:
    stream, weights = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(stream, protocol=5, buffer_callback=weights.append).dump(what)
    return stream, weights


def check_packs(programs: Sequence[Sequence[Run]]) -> None:
    """Raise ModelError, with the layer's name, if a program cannot travel to a worker."""
    try:
        _pickled(programs)
    except Exception as error:  # what a layer holds may raise anything
        raise _cannot_travel(programs, error) from error


def _cannot_travel(programs: Sequence[Sequence[Run]], error: Exception) -> ModelError:
    layer, way = "a part of the network", "Give a float layer, take off what is attached to it"
    for op in (op for stage in programs for run in stage for op in _ops(run)):
        try:
            _pickled(op.layer)
        except Exception as own:  # what a layer holds may raise anything
            layer, error = f"layer {described(op).lstrip('_')}", own
            module = getattr(op.layer, "module", getattr(op.layer, "target", None))
            if isinstance(module, nn.Module) and module._forward_hooks | module._forward_pre_hooks:
                layer, way = f"{layer} has a forward hook and", "Put what that does into forward()"
            break
    return ModelError(
        f"{layer} cannot be sent to workers: {' '.join(str(error).split())}. {way}, or "
        "end the stages before it, so that rank 0 runs it ([plan] stages)"
    )


def _ops(run: Run) -> Sequence[Op]:
    if isinstance(run, Program):
        return [step.op for step in run.steps]
    return run.ops if isinstance(run, Head) else ()


def pack(setup: Setup, own: Mapping[int, Own]) -> Buffer:
    """Lay out the setup of all ranks: where everything ends, the pickle, the weights."""
    stream, weights = _pickled((setup, dict(own)))
    parts = [stream.getbuffer(), *(each.raw() for each in weights)]
    starts, end = [], 8 * (len(parts) + 1) * 2
    for part in parts:
        starts.append(-(-end // ALIGNED) * ALIGNED)
        end = starts[-1] + part.nbytes
    array = np.empty(end, np.uint8)
    table = [len(parts), 0, *(n for s, p in zip(starts, parts, strict=True) for n in (s, p.nbytes))]
    array[: 8 * len(table)].view(np.int64)[:] = table
    for start, part in zip(starts, parts, strict=True):
        array[start : start + part.nbytes] = np.frombuffer(part, np.uint8)
    return array


def load(array: Buffer, rank: int) -> Setup:
    """Return a rank's setup, made ready for its CPU, from the array that the leader sent."""
    count = int(array[:8].view(np.int64)[0])
    table = array[16 : 16 * (count + 1)].view(np.int64).reshape(count, 2)
    parts = [array[start : start + size] for start, size in table.tolist()]
    # a bias over the array would keep all of it, when the weights have long been packed
    weights = [part if part.size > SMALL_PART else part.copy() for part in parts[1:]]
    setup, own = pickle.loads(parts[0].data, buffers=[each.data for each in weights])
    assert isinstance(setup, Setup)
    optimizer = Optimizer()
    programs = optimizer.stages(setup.programs)
    kept = None if setup.chain is None else optimizer  # packs weights once for all programs
    first = {node: each.each(optimizer.optimize) for node, each in setup.parts.items()}
    return replace(setup, own=own[rank], programs=programs, optimizer=kept, parts=first)
