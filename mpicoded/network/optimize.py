"""Optimize programs for the CPU that runs them: join their operations into Kernels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn

from mpicoded.network.graph import Head
from mpicoded.network.kernels import IDENTITY, RELU, Activation, Kernel, Maxima, packs
from mpicoded.network.ops import Call, Conv, MaxPool, Op, Ref, batch_norm
from mpicoded.network.program import Program, Step

LARGEST_POOL = 3  # taps on an axis; more maxima than that are slower than one pooling
T = TypeVar("T")
RELUS: tuple[Any, ...] = (torch.relu, F.relu, "relu")


class Optimizer:
    """Makes one Kernel a convolution; all programs share it."""

    def __init__(self) -> None:
        self._kernels: dict[tuple[int, int, Activation], Kernel] = {}
        self._kept: list[Any] = []  # modules in use: no other may take their id

    def stages(self, programs: Sequence[Sequence[T]]) -> tuple[tuple[T, ...], ...]:
        """Optimize the programs of all stages and units."""
        return tuple(tuple(self.optimize(run) for run in stage) for stage in programs)

    def optimize(self, run: T) -> T:
        """Return a Program or a Head that computes the same, faster; anything else as it is."""
        result: Any = run
        if isinstance(run, Program):
            result = self._program(run)
        elif isinstance(run, Head):
            result = self._head(run)
        return cast(T, result)

    def _program(self, program: Program) -> Program:
        ops = [step.op for step in program.steps]
        whole = [not any(step.crops) for step in program.steps]
        groups = _groups(ops, (program.exit, *program.also_writes), whole)
        steps = tuple(self._step([program.steps[i] for i in group]) for group in groups)
        return replace(program, steps=steps)

    def _step(self, steps: Sequence[Step]) -> Step:
        inner = {step.op.name for step in steps[:-1]}
        last_use = tuple(name for step in steps for name in step.last_use if name not in inner)
        return replace(steps[0], op=self._op([step.op for step in steps]), last_use=last_use)

    def _head(self, head: Head) -> Head:
        groups = _groups(head.ops, (head.exit,), [True] * len(head.ops))
        ops = tuple(self._op([head.ops[i] for i in group]) for group in groups)
        return Head(head.entry, ops, head.exit)

    def _op(self, ops: Sequence[Op]) -> Op:
        """Return one operation for the group: the first one's inputs, the last one's name."""
        first, layer = ops[0], ops[0].layer
        if isinstance(layer, Conv) and packs(layer):
            return Op(ops[-1].name, first.inputs, self._kernel(ops))
        small = all(window.kernel <= LARGEST_POOL for window in first.windows or ())
        if isinstance(layer, MaxPool) and small and not layer.module.ceil_mode:
            return replace(first, layer=Maxima(layer))
        if isinstance(layer, Call) and layer.target == "view":  # a map may be channels-last
            return replace(first, layer=replace(layer, target="reshape"))
        return first

    def _kernel(self, ops: Sequence[Op]) -> Kernel:
        conv = ops[0].layer
        assert isinstance(conv, Conv)
        norm = next((n for op in ops if (n := batch_norm(op)) is not None), None)
        activation = next((a for op in ops if (a := _activation(op)) is not None), IDENTITY)
        key = (id(conv.module), id(norm), activation)
        if key not in self._kernels:
            self._kernels[key] = Kernel(conv, norm, activation)
            self._kept += [conv.module, norm]
        return self._kernels[key]


def _groups(ops: Sequence[Op], exits: Sequence[str], whole: Sequence[bool]) -> list[list[int]]:
    """Join to each convolution the batch norm and the activation that alone read it, whole.

    ``exits`` are read from outside. ``whole[i]`` says that operation i reads all of its inputs,
    without any crop.
    """
    readers = Counter([*exits, *(name for op in ops for name in op.inputs)])
    groups: list[list[int]] = []
    makers: dict[str, list[int]] = {}  # of each value, the group that computes it
    for i, op in enumerate(ops):
        group = makers.get(op.inputs[0]) if len(op.inputs) == 1 and whole[i] else None
        if group and readers[op.inputs[0]] == 1 and _joins(op, [ops[j] for j in group]):
            group.append(i)
        else:
            group = [i]
            groups.append(group)
        makers[op.name] = group
    return groups


def _joins(op: Op, group: Sequence[Op]) -> bool:
    conv = group[0].layer
    if not isinstance(conv, Conv) or not packs(conv):
        return False
    if batch_norm(op) is not None:
        return len(group) == 1
    return _activation(op) is not None and _activation(group[-1]) is None


def _activation(op: Op) -> Activation | None:
    """Return the activation of an operation, if oneDNN has it."""
    call = op.layer
    if not isinstance(call, Call) or call.args[:1] != (Ref(0),) or call.kwargs.get("inplace"):
        return None
    target, more = call.target, call.args[1:]
    if isinstance(target, nn.LeakyReLU):
        return Activation("leaky_relu", (target.negative_slope,))
    if isinstance(target, nn.Hardtanh):  # ReLU6 is one, from 0 to 6
        return Activation("hardtanh", (target.min_val, target.max_val))
    if target is F.leaky_relu:
        return Activation("leaky_relu", (call.kwargs.get("negative_slope", *more[:1] or (0.01,)),))
    if more:
        return None
    if target is F.relu6:
        return Activation("hardtanh", (0.0, 6.0))
    return RELU if isinstance(target, nn.ReLU) or target in RELUS else None
