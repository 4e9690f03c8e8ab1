"""From an nn.Module to a chain of blocks that can be cut, and the head that cannot.

    chain = trace(model, (1, 32, 32))
    chain.blocks      # single-entry, single-exit parts: conv+BN+ReLU, a pool, a residual block
    chain.head        # the rest, from the first operation that mixes all positions

The network is read by torch.fx. A block ends wherever one value alone is alive; residual and
inception blocks therefore stay whole.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mpicoded.errors import ModelError
from mpicoded.ops import AvgPool, Call, Conv, MaxPool, Op, Ref

Shape = tuple[int, ...]

POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
    nn.LogSigmoid, nn.Threshold, nn.BatchNorm2d,
)  # fmt: skip
POINTWISE_FUNCTIONS: frozenset[Any] = frozenset((
    torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.abs, torch.exp, torch.sqrt,
    torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg,
    operator.iadd, operator.isub, operator.imul,
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.sigmoid, F.tanh, F.softplus,
    F.hardtanh, F.hardsigmoid, F.hardswish, F.batch_norm,
))  # fmt: skip
POINTWISE_METHODS = frozenset((
    "relu", "relu_", "sigmoid", "tanh", "clamp", "abs", "exp", "sqrt", "neg", "contiguous",
    "add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_",
))  # fmt: skip
CHANNEL_FUNCTIONS: frozenset[Any] = frozenset((torch.cat, torch.concat, torch.softmax, F.softmax))
NOTHING_MODULES = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode
INPLACE_FUNCTIONS: frozenset[Any] = frozenset((operator.iadd, operator.isub, operator.imul))


@dataclass(frozen=True)
class Block:
    """A single-entry single-exit part of the network: reads value ``entry``, ends in ``exit``."""

    name: str
    entry: str
    ops: tuple[Op, ...]

    @property
    def exit(self) -> str:
        """Name of the value that the block computes."""
        return self.ops[-1].name


@dataclass(frozen=True)
class Head:
    """The part of the network behind the last block; it runs whole, on one rank."""

    entry: str
    ops: tuple[Op, ...]
    exit: str

    def __call__(self, x: Tensor) -> Any:
        """Run it on the whole map (B, C, H, W) that the last stage gives."""
        values: dict[str, Any] = {self.entry: x}
        for op in self.ops:
            values[op.name] = op.whole(*(values[name] for name in op.inputs))
        return values[self.exit]


@dataclass(frozen=True)
class Chain:
    """A traced network: blocks in order, then the head; shapes of all values, without batch."""

    blocks: tuple[Block, ...]
    head: Head
    input_shape: Shape  # (C, H, W)
    output_shape: Shape
    shapes: dict[str, Shape]
    limit: str  # why the head begins where it does

    def index(self, name: str) -> int:
        """Return the position of the block ``name``.

        Raises
        ------
        ModelError
            If there is no such block among those that can be cut.
        """
        names = [block.name for block in self.blocks]
        if name in names:
            return names.index(name)
        raise ModelError(
            f"there is no block {name!r} that can be cut; the blocks are {', '.join(names) or '–'}"
            f" ({self.limit})"
        )

    def head_after(self, last: int) -> Head:
        """Return the head when the stages end with block ``last`` (-1: no block at all)."""
        entry = self.blocks[last].exit if last >= 0 else self.blocks[0].entry
        rest = tuple(op for block in self.blocks[last + 1 :] for op in block.ops)
        return Head(entry, rest + self.head.ops, self.head.exit)


def trace(model: nn.Module, input_shape: Shape) -> Chain:
    """Read ``model``, in eval mode, for one input of ``input_shape`` (C, H, W).

    Raises
    ------
    ModelError
        If torch.fx cannot follow the model, it does not take this input, or it does not end in
        one tensor.
    """
    model.eval()
    graph = _read_graph(model)
    _simplify(model, graph)
    values = _run(model, graph, input_shape)
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    entry, exit_ = _ends(graph)
    inputs = {node.name: _inputs(node) for node in nodes}
    ops = {node.name: _op(model, node, values) for node in nodes}
    pieces, rest, limit = _pieces(nodes, ops, entry, exit_, inputs, values)
    blocks = _blocks(pieces, entry, {n.name: _path(n) for n in nodes})
    shapes = {k: tuple(v.shape[1:]) for k, v in values.items() if isinstance(v, Tensor)}
    head_entry = blocks[-1].exit if blocks else entry
    head = Head(head_entry, tuple(ops[node.name][0] for node in rest), exit_)
    if not isinstance(values[exit_], Tensor):
        raise ModelError("the model must return one tensor; give a factory that wraps it so")
    return Chain(blocks, head, input_shape, shapes[exit_], shapes, limit)


def whole_network(chain: Chain) -> Head:
    """Return the network as one piece, for a single device or for units that are images."""
    entry = chain.blocks[0].entry if chain.blocks else chain.head.entry
    ops = tuple(op for block in chain.blocks for op in block.ops)
    return Head(entry, ops + chain.head.ops, chain.head.exit)


def _read_graph(model: nn.Module) -> fx.Graph:
    try:
        graph = fx.Tracer().trace(model)
    except Exception as error:  # torch.fx raises many kinds
        raise ModelError(
            f"torch.fx cannot follow {type(model).__name__}: {error}. Its forward() must not "
            "branch on values of tensors; give a factory that returns the part that can be traced"
        ) from error
    return graph


def _simplify(model: nn.Module, graph: fx.Graph) -> None:
    """Remove what does nothing in eval mode, give in-place results one name, drop dead code."""
    for node in list(graph.nodes):
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, NOTHING_MODULES) or node.target in (F.dropout, F.dropout2d):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif _in_place(node, module) and isinstance(node.args[0], fx.Node):
            after = set(list(graph.nodes)[list(graph.nodes).index(node) + 1 :])
            node.args[0].replace_all_uses_with(node, delete_user_cb=after.__contains__)
        elif _is_batch_size(node):
            _ask_reader(graph, node)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _is_batch_size(node: fx.Node) -> bool:
    """x.size(0), or x.shape[0]."""
    if node.op == "call_method" and node.target == "size":
        return node.args[1:] == (0,)
    source = node.args[0] if node.target is operator.getitem else None
    if not isinstance(source, fx.Node) or node.args[1] != 0:
        return False
    return source.target is getattr and source.args[1] == "shape"


def _ask_reader(graph: fx.Graph, node: fx.Node) -> None:
    """Let each reader of a batch size ask its own tensor, so that nothing is alive in between."""
    for user in list(node.users):
        source = user.args[0] if user.args else None
        if isinstance(source, fx.Node) and source is not node:
            with graph.inserting_before(user):
                size = graph.call_method("size", (source, 0))
            user.replace_input_with(node, size)


def _in_place(node: fx.Node, module: nn.Module | None) -> bool:
    method = node.op == "call_method" and str(node.target).endswith("_")
    function = node.target in INPLACE_FUNCTIONS or node.kwargs.get("inplace", False)
    return bool(method or function or getattr(module, "inplace", False))


class _Recorder(fx.Interpreter):
    """Runs the graph once and keeps every value."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(model, garbage_collect_values=False, graph=graph)


def _run(model: nn.Module, graph: fx.Graph, input_shape: Shape) -> dict[str, Any]:
    weight = next(model.parameters(), torch.empty(0))
    recorder = _Recorder(model, graph)
    try:
        with torch.inference_mode():
            recorder.run(torch.zeros(1, *input_shape, dtype=weight.dtype, device=weight.device))
    except Exception as error:  # whatever the model raises
        text = str(error).split("\n\nWhile executing")[0]
        raise ModelError(
            f"{type(model).__name__} does not take an input of shape (1, "
            f"{', '.join(map(str, input_shape))}): {text}"
        ) from error
    return {node.name: value for node, value in recorder.env.items()}


def _ends(graph: fx.Graph) -> tuple[str, str]:
    entries = [node for node in graph.nodes if node.op == "placeholder"]
    if len(entries) != 1:
        raise ModelError(f"the model takes {len(entries)} inputs; it must take one")
    (result,) = next(node for node in graph.nodes if node.op == "output").args
    if not isinstance(result, fx.Node):
        raise ModelError("the model must return one tensor; give a factory that wraps it so")
    return entries[0].name, result.name


def _inputs(node: fx.Node) -> tuple[str, ...]:
    return tuple(dict.fromkeys(n.name for n in node.all_input_nodes))


def _op(model: nn.Module, node: fx.Node, values: dict[str, Any]) -> tuple[Op, str]:
    """Return the node as an Op, and why it cannot be cut ("" if it can)."""
    inputs = _inputs(node)
    if node.op == "get_attr":
        return Op(node.name, (), Call(_Constant(values[node.name]), (), {})), ""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else _pool(node)
    reason = _mixes(node, module, values)
    if not reason and isinstance(module, nn.Conv2d):
        return Op(node.name, inputs, Conv(module)), ""
    if not reason and isinstance(module, nn.MaxPool2d):
        return Op(node.name, inputs, MaxPool(module)), ""
    if not reason and isinstance(module, nn.AvgPool2d):
        return Op(node.name, inputs, AvgPool(module)), ""
    target: Any = module if node.op == "call_module" else node.target
    refs = {name: Ref(i) for i, name in enumerate(inputs)}
    args = fx.node.map_arg(node.args, lambda n: refs[n.name])
    kwargs = fx.node.map_arg(node.kwargs, lambda n: refs[n.name])
    call = Call(target, _plain(args), dict(_plain(kwargs)))
    return Op(node.name, inputs, call), reason


def _plain(value: Any) -> Any:
    """Turn fx's immutable lists and dictionaries into plain ones, which pickle anywhere."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_plain(v) for v in value)
    return value


@dataclass(frozen=True)
class _Constant:
    value: Any

    def __call__(self) -> Any:
        return self.value


def _pool(node: fx.Node) -> nn.Module | None:
    """Return F.max_pool2d and F.avg_pool2d as modules."""
    kinds = {F.max_pool2d: nn.MaxPool2d, torch.max_pool2d: nn.MaxPool2d, F.avg_pool2d: nn.AvgPool2d}
    kind = kinds.get(node.target) if node.op == "call_function" else None  # type: ignore[call-overload]
    if kind is None or not isinstance(node.args[0], fx.Node):
        return None
    return kind(*node.args[1:], **{k: v for k, v in node.kwargs.items() if k != "input"})


def _mixes(node: fx.Node, module: nn.Module | None, values: dict[str, Any]) -> str:
    """Say why the operation cannot work on a piece of a map; "" if it can."""
    what = f"{_path(node)} ({_label(node, module)})"
    maps = [values[n.name] for n in node.all_input_nodes]
    out = values[node.name]
    if not all(isinstance(v, Tensor) and v.dim() == 4 for v in [*maps, out]):
        if not _broadcasts(maps, out):
            return f"{what} mixes all positions of the map"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"{what} pads in mode {module.padding_mode!r}, which reads beyond a piece"
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return f"{what} returns indices into the whole map"
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return ""
    if not (_is_pointwise(node, module) and _same_size(maps, out)):
        return f"{what} mixes positions of the map"
    return ""


def _broadcasts(maps: Sequence[Any], out: Any) -> bool:
    """Constants such as a (C, 1, 1) scale may stand beside a map."""
    tensors = [v for v in [*maps, out] if isinstance(v, Tensor)]
    if len(tensors) != len(maps) + 1 or out.dim() != 4:
        return False
    return all(v.dim() == 4 or v.shape[-2:] in ((), (1,), (1, 1)) for v in maps)


def _same_size(maps: Sequence[Tensor], out: Tensor) -> bool:
    """Every map has the output's rows and columns; the others have none at all."""
    return all(
        v.shape[-2:] == out.shape[-2:] or (v.numel() == 1 or tuple(v.shape[-2:]) == (1, 1))
        for v in maps
    ) and any(v.shape[-2:] == out.shape[-2:] and v.dim() == 4 for v in maps)


def _is_pointwise(node: fx.Node, module: nn.Module | None) -> bool:
    if module is not None:
        return isinstance(module, POINTWISE_MODULES)
    if node.op == "call_method":
        return node.target in POINTWISE_METHODS
    if node.target in CHANNEL_FUNCTIONS:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        return dim in (1, -3)
    return node.target in POINTWISE_FUNCTIONS


def _label(node: fx.Node, module: nn.Module | None) -> str:
    if module is not None:
        return type(module).__name__
    return str(getattr(node.target, "__name__", node.target))


def _path(node: fx.Node) -> str:
    """Return where in the module the node stands: "layer1.0.conv1", else its own name."""
    return str(node.target) if node.op == "call_module" else node.name


def _pieces(
    nodes: Sequence[fx.Node],
    ops: dict[str, tuple[Op, str]],
    entry: str,
    exit_: str,
    inputs: dict[str, tuple[str, ...]],
    values: dict[str, Any],
) -> tuple[list[list[Op]], list[fx.Node], str]:
    """Cut the operations wherever one value alone is alive; stop where a piece cannot be cut."""
    last_use = {name: i for i, node in enumerate(nodes) for name in inputs[node.name]}
    last_use[exit_] = len(nodes)
    pieces: list[list[Op]] = []
    piece: list[Op] = []
    reason, done = "", 0
    for i, node in enumerate(nodes):
        op, mixes = ops[node.name]
        reason = reason or mixes
        piece.append(op)
        alive = [n for n in (entry, *(m.name for m in nodes[: i + 1])) if last_use.get(n, -1) > i]
        if reason:
            return pieces, list(nodes[done:]), f"the head begins because {reason}"
        if alive == [node.name] and _is_map(values[node.name]):
            pieces.append(piece)
            piece, done = [], i + 1
    return pieces, list(nodes[done:]), "every block of the model can be cut"


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _blocks(pieces: list[list[Op]], entry: str, paths: dict[str, str]) -> tuple[Block, ...]:
    """Join pieces without any window (activations, batch norm) to the block before them."""
    groups: list[list[Op]] = []
    for piece in pieces:
        if groups and all(op.windows is None for op in piece):
            groups[-1] += piece
        else:
            groups.append(list(piece))
    blocks: list[Block] = []
    for group in groups:
        named = [op for op in group if op.windows is not None] or group
        entry_ = blocks[-1].exit if blocks else entry
        blocks.append(Block(_name([paths[op.name] for op in named]), entry_, tuple(group)))
    return tuple(blocks)


def _name(paths: list[str]) -> str:
    """Return what the paths share: layer1.0.conv1 and layer1.0.conv2 are layer1.0."""
    if len(paths) == 1:
        return paths[0]
    parts = [path.split(".") for path in paths]
    shared = [p[0] for p in zip(*parts, strict=False) if len(set(p)) == 1]
    return ".".join(shared) or paths[-1]
