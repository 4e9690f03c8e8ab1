"""A network as torch.fx reads it, cleaned of what does nothing, and what its values look like."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mpicoded.errors import ModelError

BATCH = 2  # images in the probe; one alone would hide what depends on their number
NOTHING_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
DROPOUTS: frozenset[Any] = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout))
PARTS: frozenset[Any] = frozenset(("chunk", "split", torch.chunk, torch.split))


@dataclass(frozen=True)
class Recording:
    """Operations in order; ``values`` by name, tensors as empty ones on the meta device.

    ``constants`` are the values that do not depend on the input: parameters, buffers and what is
    computed from them.
    """

    nodes: tuple[fx.Node, ...]
    values: dict[str, Any]
    constants: dict[str, Any]
    entry: str
    exit: str


def record(model: nn.Module, input_shape: tuple[int, ...]) -> Recording:
    """Run ``model``, in eval mode, and its torch.fx graph on random images of ``input_shape``.

    Raises
    ------
    ModelError
        If torch.fx cannot follow the model, it does not take this input, or it does not take and
        return one tensor.
    """
    graph = _read(model)
    entry, exit_ = _ends(model, graph)
    probe = _probe(model, input_shape)
    recorder = _Recorder(model, graph=graph)
    try:
        with torch.no_grad():
            output = model(probe.clone())
            recorder.run(probe.clone())
    except Exception as error:  # whatever the model raises
        text = str(error).split("\n\nWhile executing")[0]
        raise ModelError(
            f"{type(model).__name__} does not take {BATCH} images of shape {input_shape} "
            f"(C, H, W): {text}. Resize them (size in [input]), or give the model other args"
        ) from error
    if not isinstance(output, Tensor):
        raise _not_one_tensor(model, f"a {type(output).__name__}")
    _simplify(model, graph, recorder.values)
    entry, exit_ = _ends(model, graph)
    known = recorder.constants
    ends = ("placeholder", "output")
    nodes = tuple(n for n in graph.nodes if n.op not in ends and n.name not in known)
    return Recording(nodes, recorder.values, known, entry, exit_)


class _Recorder(fx.Interpreter):
    """Runs the graph once and keeps the constants, and the shape of every value."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, graph=graph)
        self.values: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one operation; keep what its value looks like."""
        value = super().run_node(n)
        self.values[n.name] = fx.node.map_aggregate(value, _shape_only)
        inputs = [source.name for source in n.all_input_nodes]
        if n.op not in ("placeholder", "output") and all(i in self.constants for i in inputs):
            self.constants[n.name] = value
        return value


def _shape_only(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def _read(model: nn.Module) -> fx.Graph:
    try:
        return fx.Tracer().trace(model)
    except Exception as error:  # torch.fx raises many kinds
        raise ModelError(
            f"torch.fx cannot follow {type(model).__name__}: {error}. Its forward() must not "
            "branch on values of tensors; give a factory that returns the part that can be traced"
        ) from error


def _probe(model: nn.Module, input_shape: tuple[int, ...]) -> Tensor:
    floats = (p for p in model.parameters() if p.is_floating_point())
    like = next(floats, torch.empty(0))
    random = torch.randn(BATCH, *input_shape, generator=torch.Generator().manual_seed(0))
    return random.to(like)


def _ends(model: nn.Module, graph: fx.Graph) -> tuple[str, str]:
    entries = [node.name for node in graph.nodes if node.op == "placeholder"]
    if len(entries) != 1:
        raise ModelError(
            f"{type(model).__name__} takes {len(entries)} inputs ({', '.join(entries)}); it must "
            "take one: give a factory that wraps it so"
        )
    (result,) = next(node for node in graph.nodes if node.op == "output").args
    if not isinstance(result, fx.Node):
        raise _not_one_tensor(model, f"a {type(result).__name__.removeprefix('immutable_')}")
    return entries[0], result.name


def _not_one_tensor(model: nn.Module, what: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} returns {what}; it must return one tensor: give a factory that "
        "wraps it so"
    )


def _simplify(model: nn.Module, graph: fx.Graph, values: dict[str, Any]) -> None:
    """Let only those values stay that somebody reads, each under one name."""
    for node in list(graph.nodes):
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if _does_nothing(node, module):
            node.replace_all_uses_with(node.all_input_nodes[0])
        elif works_in_place(node, module):
            _rename_later(graph, node)
        else:
            _fold(graph, node, values)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _does_nothing(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether it gives back what it takes; a functional dropout may be active in eval mode."""
    off = node.target in DROPOUTS and node.kwargs.get("training") is False
    return off or isinstance(module, NOTHING_MODULES)


def works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the operation overwrites its first input: relu_(), inplace=True."""
    name = str(getattr(node.target, "__name__", node.target))
    called = node.op == "call_method" or getattr(node.target, "__module__", "") != "_operator"
    named = module is None and called and name.endswith("_")  # operator.and_ is none
    return bool(named or node.kwargs.get("inplace", False) or getattr(module, "inplace", False))


def _rename_later(graph: fx.Graph, node: fx.Node) -> None:
    """Whoever reads the overwritten value later reads the result."""
    nodes = list(graph.nodes)
    later = set(nodes[nodes.index(node) + 1 :])
    node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _fold(graph: fx.Graph, node: fx.Node, values: dict[str, Any]) -> None:
    """Replace what is known for every input of this shape: sizes, parts of the channels."""
    asked = _asked_size(node, values)
    value = values.get(node.name)
    if asked == 0:
        _ask_reader(graph, node, values)
    elif asked or (isinstance(value, int) and not node.all_input_nodes):
        for user in list(node.users):
            user.args = fx.map_arg(user.args, lambda n: value if n is node else n)
            user.kwargs = fx.map_arg(user.kwargs, lambda n: value if n is node else n)
    elif _is_part_of_channels(node):
        _narrow(graph, node, values)


def _asked_size(node: fx.Node, values: dict[str, Any]) -> int | None:
    """Return i of x.size(i), x.shape[i] and x.shape[i:], counted from the front; else None."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        source, index = node.args
    elif node.target is operator.getitem and _is_shape(node.args[0]):
        assert isinstance(node.args[0], fx.Node)
        source, index = node.args[0].args[0], node.args[1]
    else:
        return None
    start = index.start if isinstance(index, slice) else index
    if not isinstance(start, int) or not isinstance(source, fx.Node):
        return None
    value = values[source.name]
    position = start % value.dim() if isinstance(value, Tensor) else 0
    return None if isinstance(index, slice) and position == 0 else position


def _is_shape(node: Any) -> bool:
    """x.shape, or x.size()."""
    if not isinstance(node, fx.Node):
        return False
    attribute = node.target is getattr and node.args[1] == "shape"
    return attribute or (node.target == "size" and len(node.args) == 1)


def _ask_reader(graph: fx.Graph, node: fx.Node, values: dict[str, Any]) -> None:
    """Let each reader of a batch size ask its own tensor, so that nothing is alive in between."""
    for user in list(node.users):
        source = user.args[0] if user.args else None
        if not isinstance(source, fx.Node) or source is node:
            continue
        own = values[source.name]
        if isinstance(own, Tensor) and own.dim() and own.shape[0] == BATCH:
            with graph.inserting_before(user):
                size = graph.call_method("size", (source, 0))
            values[size.name] = BATCH
            user.replace_input_with(node, size)


def _is_part_of_channels(node: fx.Node) -> bool:
    """chunk(x, n, 1)[i], x.split(n, dim=1)[i]."""
    source = node.args[0] if node.target is operator.getitem else None
    if not isinstance(source, fx.Node) or not isinstance(node.args[1], int):
        return False
    if source.target not in PARTS or len(source.all_input_nodes) != 1:
        return False
    dim = source.kwargs.get("dim", source.args[2] if len(source.args) > 2 else 0)
    return dim in (1, -3)


def _narrow(graph: fx.Graph, node: fx.Node, values: dict[str, Any]) -> None:
    """Turn one part of the channels into a value of its own."""
    source, index = node.args
    assert isinstance(source, fx.Node) and isinstance(index, int)
    widths = [part.shape[1] for part in values[source.name]]
    index %= len(widths)
    with graph.inserting_before(node):
        args = (source.all_input_nodes[0], 1, sum(widths[:index]), widths[index])
        part = graph.call_method("narrow", args)
    part.meta = dict(node.meta)
    values[part.name] = values[node.name]
    node.replace_all_uses_with(part)
