"""Find effects that torch.fx does not see, and those that change the module's output.

    hooks of layers, of the whole model, and those for all modules
    a forward() that one layer got in the place of its class's own, a __call__ of the model's own
    layers that stay in training mode
    context managers (of torch.autocast the tracer knows)

Hooks of containers are mostly traced with what they hold, and those of layers that run as they are
(a dense layer of the head) run with them. All others are lost, which is right as long as they only
look on.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_module

from mpicoded.network.graph import Chain, Head, whole_network
from mpicoded.network.linear import described
from mpicoded.network.ops import Call, Op
from mpicoded.network.optimize import Optimizer

Run = Callable[[nn.Module, Tensor], Tensor]
Differs = Callable[[Any, Any], bool]
HOOKS = {"_forward_pre_hooks": "forward pre-hook", "_forward_hooks": "forward hook"}
REPEATS = 4  # of few numbers the same ones may be drawn again
WAY_OUT = ": put what that does into forward(), as an operation or a layer"
REWRITE = (
    ": torch.fx sees no context manager, and no value (x += y) that is read again under another "
    "name; write x = x + y"
)
GLOBAL_HOOKS = ("_global_forward_pre_hooks", "_global_forward_hooks")


@dataclass(frozen=True)
class Unseen:
    """One thing torch.fx may not see, unless ``traced``; ``without`` takes it away for a while."""

    what: str
    without: Callable[[], AbstractContextManager[None]]
    traced: bool = False


def unseen(chain: Chain) -> list[Unseen]:
    """Return the effects of the chain's model that torch.fx may have lost, outer ones first."""
    model, tracer, found = chain.model, fx.Tracer(), list[Unseen]()
    if any(vars(torch_module)[name] for name in GLOBAL_HOOKS):
        found.append(Unseen("a hook for all modules changes what it gives", without_global_hooks))
    hooked = any(vars(m)[name] for m in model.modules() for name in HOOKS)
    kept = _kept_hooks(chain) if hooked else set()
    for path, module in model.named_modules():
        traced = bool(path) and not tracer.is_leaf_module(module, path)
        found += _unseen_of(module, _layer(chain, path), traced, kept)
    return found


def _unseen_of(module: nn.Module, who: str, traced: bool, kept: set[int]) -> Iterator[Unseen]:
    names = vars(module)
    for name, hook in HOOKS.items():
        if names[name] and id(names[name]) not in kept:
            without = partial(_replaced, names, name, OrderedDict())
            yield Unseen(f"{who} has a {hook} that changes its output", without, traced)
    if module.training and not traced:
        yield Unseen(f"{who} stays in training mode", partial(_replaced, names, "training", False))
    if "forward" in names and not traced:
        what = f"{who} got a forward() of its own in the place of its class's"
        yield Unseen(what, partial(_replaced, names, "forward"))


def loses(things: Sequence[Unseen], chain: Chain, x: Tensor, run: Run, true: Tensor) -> bool:
    """Return True if lost effects change a bit of the model's output."""
    lost = [each for each in things if not each.traced]
    with ExitStack() as stack:
        for each in lost:
            stack.enter_context(each.without())
        return bool(lost) and not same_bits(run(chain.model, x), true)


def same_bits(a: Any, b: Any) -> bool:
    """Return True if two tensors hold the same numbers, NaN included."""
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return False
    return torch.allclose(a.double(), b.double(), rtol=0, atol=0, equal_nan=True)


def has_own_call(model: nn.Module) -> bool:
    """Return True if calling the model does more than torch's own way to forward()."""
    return any(
        getattr(type(model), name) is not getattr(nn.Module, name)
        for name in ("__call__", "_call_impl", "_wrapped_call_impl")
    )


def culprit(chain: Chain, x: Tensor, run: Run, differs: Differs) -> str:
    """Name the effect that torch.fx lost, or else the first layer with another output."""
    true = run(chain.model, x)
    for each in unseen(chain):
        with each.without():
            try:
                y = run(chain.model, x)
                guilty = not same_bits(y, true)
                if each.traced:  # then the operations are those without it
                    guilty = differs(y, true) and not differs(whole_network(chain)(x), y)
            except Exception:  # it cannot do without
                guilty = not each.traced
        if guilty:
            return f"{each.what}{WAY_OUT}"
    if has_own_call(chain.model):
        return f"it has a __call__ of its own{WAY_OUT}"
    return _first_apart(chain, x, run, differs)


def _first_apart(chain: Chain, x: Tensor, run: Run, differs: Differs) -> str:
    """Name the first layer with another output in the module than by itself."""
    whole = whole_network(chain)
    for network in (
        whole,
        Optimizer().optimize(whole),
    ):  # in one, layers are called; both may differ
        outputs, path = _observed(chain, x, run), ""
        try:
            for op, value in steps(network, x):
                path = chain.paths.get(op.name, op.name)
                given = outputs[path].pop(0) if outputs.get(path) else value
                if isinstance(value, Tensor) and differs(value, given):
                    why = _why(chain.model.get_submodule(path))
                    return f"it differs from {_layer(chain, path)} on{why}"
        except Exception:  # torch.fx read what cannot be run
            return f"it differs behind {path}{REWRITE}"
    return f"it differs behind all layers{REWRITE}"


def varying(chain: Chain, x: Tensor, run: Run, differs: Differs) -> str:
    """Name the first operation or layer with another output the second time."""
    whole = whole_network(chain)
    for _ in range(REPEATS):
        for (op, a), (_, b) in zip(steps(whole, x), steps(whole, x), strict=True):
            if isinstance(a, Tensor) and differs(b, a):
                return f"as {described(op)} does"
    first, second = _observed(chain, x, run), _observed(chain, x, run)
    for path, values in first.items():
        again = second.get(path, [])  # it may be drawn which layers run
        if len(again) != len(values) or any(map(differs, again, values)):
            return f"from {_layer(chain, path)} on"
    return "after other images"


def _layer(chain: Chain, path: str) -> str:
    kind = type(chain.model.get_submodule(path)).__name__
    return f"layer {path} ({kind})" if path else kind


def _why(module: nn.Module) -> str:
    if any(vars(module)[name] for name in HOOKS):
        return f", which has hooks{WAY_OUT}"
    return REWRITE


def _observed(chain: Chain, x: Tensor, run: Run) -> dict[str, list[Tensor]]:
    """Return the outputs of every layer while the module runs, call by call."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for path, module in chain.model.named_modules():

            def note(module: nn.Module, x: Any, y: Any, path: str = path) -> None:
                if isinstance(y, Tensor):
                    found.setdefault(path, []).append(y.clone())

            stack.callback(module.register_forward_hook(note).remove)
        run(chain.model, x)
    return found


def steps(head: Head, x: Tensor) -> Iterator[tuple[Op, Any]]:
    """Run the operations one by one on ``x``; yield each one and its value."""
    values: dict[str, Any] = {head.entry: x}
    for op in head.ops:
        values[op.name] = op.whole(*(values[name] for name in op.inputs))
        yield op, values[op.name]


def _kept_hooks(chain: Chain) -> set[int]:
    """Return the hooks that run with the operations of the ready network."""
    ready = Optimizer().optimize(whole_network(chain))
    targets = [op.layer.target for op in ready.ops if isinstance(op.layer, Call)]
    modules = [m for t in targets if isinstance(t, nn.Module) for m in t.modules()]
    return {id(vars(m)[name]) for m in modules for name in HOOKS}


@contextmanager
def without_global_hooks() -> Iterator[None]:
    """Run as a worker does, which has none of the hooks for all modules."""
    with ExitStack() as stack:
        for name in GLOBAL_HOOKS:
            stack.enter_context(_replaced(vars(torch_module), name, OrderedDict()))
        yield


@contextmanager
def _replaced(names: dict[str, Any], name: str, value: Any = None) -> Iterator[None]:
    """Let a name stand for ``value``, or for nothing, for a while."""
    kept = names.pop(name)
    if value is not None:
        names[name] = value
    try:
        yield
    finally:
        names[name] = kept
