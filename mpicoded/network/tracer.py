"""torch.fx with sizes that are known: forward() may loop over them, pad by them and check them.

Every operation runs as it is recorded, for two images and for three. A size that is the same for
both is a number, as it is to forward() itself. What depends on how many images there are stays
an operation of the graph, right for any number; to branch on it, or on values of
tensors, is refused.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

# What a tensor can be asked that depends on no value in it.
QUESTIONS = frozenset((
    "dim", "ndimension", "numel", "nelement", "size", "element_size", "is_floating_point",
    "is_complex",
))  # fmt: skip
CREATORS = (torch.zeros, torch.ones, torch.full, torch.empty, torch.arange)  # torch.zeros(B, 8)
COUNTS = frozenset(("size", "numel", "nelement"))
BRANCHES = "branches on values of tensors, or turns them into numbers"
ASKS = "branches on how many images there are, or needs it as a number (pass x.size(0) on as it is)"
HALVES = "runs under torch.autocast (leave that out)"
ASSIGNS = "assigns to a part of a tensor (item assignment): make a new one, with torch.where say"


class CannotFollow(Exception):
    """A use of a value that no graph can hold."""


class Tracer(fx.Tracer):
    """Records ``root``'s forward() for its first argument; the others keep their defaults.

    ``values`` by name are what two images give, tensors as empty ones on the meta device;
    ``constants`` are the values that do not depend on the input.
    """

    proxy_buffer_attributes = True  # self.mean.expand(x.size(0), …) has to be recorded too

    def __init__(self, probes: Sequence[Tensor]) -> None:
        super().__init__(autowrap_functions=CREATORS)
        self._autowrap_search.append(torch)  # it has no way to say where they are called
        self.probes = probes
        self.values: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}
        self._running = False

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of ``root``."""
        graph = super().trace(root, concrete_args)
        for node in graph.nodes:
            if node.op == "get_attr" and node.name not in self.constants:  # made in forward()
                value = operator.attrgetter(str(node.target))(root)
                self.constants[node.name], self.values[node.name] = value, shape_only(value)
        return graph

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Make the one input."""
        name = next(iter(inspect.signature(self.root.forward).parameters))
        return root_fn, [self.root, self.create_proxy("placeholder", name, (), {})]

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any | None = None,
        proxy_factory_fn: Callable[[fx.Node], fx.Proxy] | None = None,
    ) -> Value:
        """Record an operation and run it."""
        if torch.is_autocast_enabled("cpu"):
            raise CannotFollow(HALVES)
        value = super().create_proxy(
            kind, target, args, kwargs, name, type_expr, lambda node: Value(node, self)
        )
        assert isinstance(value, Value)
        inputs = list[Value]()
        fx.node.map_aggregate(
            (args, kwargs), lambda a: inputs.append(a) if isinstance(a, Value) else None
        )
        value.constant = kind != "placeholder" and all(each.constant for each in inputs)
        value.counts = target in COUNTS or bool(inputs) and all(each.counts for each in inputs)
        runs = range(1 if value.constant else len(self.probes))
        value.runs = [self._run(kind, target, args, kwargs, i) for i in runs]
        self.values[value.node.name] = fx.node.map_aggregate(value.runs[0], shape_only)
        if value.constant:
            self.constants[value.node.name] = value.runs[0]
        return value

    def _run(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: int
    ) -> Any:
        if kind == "placeholder":
            return self.probes[run].clone()

        def held(a: Any) -> Any:
            return a.runs[0 if a.constant else run] if isinstance(a, Value) else a

        own, named = fx.node.map_aggregate((args, kwargs), held)
        self._running = True
        try:
            if kind == "get_attr":
                return operator.attrgetter(target)(self.root)
            if kind == "call_module":
                return self.root.get_submodule(target)(*own, **named)
            if kind == "call_method":
                return getattr(own[0], target)(*own[1:], **named)
            return target(*own, **named)
        finally:
            self._running = False

    def create_arg(self, a: Any) -> Any:
        """Let numbers of numpy, as np.prod(x.shape) gives, be Python's."""
        return super().create_arg(a.item() if isinstance(a, np.generic) else a)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Record a call of a module, unless the module only runs."""
        if self._running:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record a read of a parameter, unless the module only runs."""
        if self._running:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return the truth of a value that is the same for all inputs."""
        assert isinstance(obj, Value)
        return bool(obj.number())


class Value(fx.Proxy):
    """A value of the network; ``runs`` are its values for each number of images (one: for all)."""

    tracer: Tracer
    runs: Sequence[Any] = ()
    constant = counts = False

    @property
    def shape(self) -> Any:
        """Sizes, numbers where they are the same for all images."""
        shapes = [each.shape for each in self.runs]
        if len({len(shape) for shape in shapes}) > 1:
            raise CannotFollow(ASKS)
        return sizes(
            each[0] if len(set(each)) == 1 else self._method("size", i)
            for i, each in enumerate(zip(*shapes, strict=True))
        )

    def __getattr__(self, name: str) -> Any:
        """Return a method, an answer that is known, or a further value."""
        held = [getattr(each, name) for each in self.runs]
        if callable(held[0]):
            return lambda *args, **kwargs: self._ask(name, *args, **kwargs)
        if _same(held):
            return held[0]
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in QUESTIONS or not isinstance(self.runs[0], Tensor):
            return self._method(name, *args, **kwargs)
        if name == "size":
            at = [*args, *kwargs.values()]
            return self.shape[at[0]] if at else self.shape
        answers = [getattr(each, name)() for each in self.runs]
        return answers[0] if _same(answers) else self._method(name)

    def _method(self, name: str, *args: Any, **kwargs: Any) -> Value:
        return self.tracer.create_proxy("call_method", name, (self, *args), kwargs)

    def number(self) -> Any:
        """Return the value, if it is the same for all inputs."""
        if not self.constant:
            raise CannotFollow(ASKS if self.counts else BRANCHES)
        return self.runs[0]

    def __index__(self) -> int:
        return operator.index(self.number())

    def __int__(self) -> int:
        return int(self.number())

    def __float__(self) -> float:
        return float(self.number())

    def __setitem__(self, index: Any, part: Any) -> None:
        raise CannotFollow(ASSIGNS)

    def __len__(self) -> int:
        lengths = {len(each) for each in self.runs}
        if len(lengths) > 1:
            raise CannotFollow(ASKS)
        return lengths.pop()

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])  # type: ignore[index]

    def __eq__(self, other: object) -> Any:
        """Compare; sizes that follow the number of images in the same way are equal."""
        return self._alike(other) or self._compare(operator.eq, other)

    def __ne__(self, other: object) -> Any:
        return False if self._alike(other) else self._compare(operator.ne, other)

    def _alike(self, other: object) -> bool:
        if not isinstance(other, Value) or not (self.counts and other.counts):
            return False
        return self.runs == other.runs

    def _compare(self, how: Callable[[Any, Any], Any], other: object) -> Value:
        return self.tracer.create_proxy("call_function", how, (self, other), {})

    __hash__ = fx.Proxy.__hash__


class Sizes(tuple[Any, ...]):
    """As torch.Size, with a size among them that depends on how many images there are."""

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return sizes(found) if isinstance(index, slice) else found

    def numel(self) -> Any:
        """Return their product."""
        return math.prod(self)


def sizes(found: Any) -> Any:
    """Return sizes as torch does where all are numbers."""
    found = Sizes(found)
    return torch.Size(found) if all(isinstance(each, int) for each in found) else found


def shape_only(value: Any) -> Any:
    """Return an empty tensor on the meta device for a tensor, and anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    dtype = torch.float32 if value.is_quantized else value.dtype
    return torch.empty(value.shape, dtype=dtype, device="meta")


def _same(held: Sequence[Any]) -> bool:
    return not isinstance(held[0], Tensor) and all(each == held[0] for each in held[1:])
