"""Read a network by torch.fx: its graph without idle operations, and the shapes of its values."""

import inspect
import operator
import os
import textwrap
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mpicoded import errors
from mpicoded.errors import ModelError
from mpicoded.network.rearrange import join_rearrangements
from mpicoded.network.tracer import CannotFollow, Tracer

BATCH = 2  # images in the probe; one alone would hide what depends on their number
NOTHING_MODULES = (
    nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
DROPOUTS: frozenset[Any] = frozenset((F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout))
VARIABLE = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)  # fmt: skip
LIBRARIES = tuple(str(Path(m.__file__ or "").parent) + os.sep for m in (torch, errors, inspect))
PARTS: frozenset[Any] = frozenset(("chunk", "split", torch.chunk, torch.split))


@dataclass(frozen=True)
class FxGraph:
    """Operations in order; ``values`` by name, tensors as empty ones on the meta device.

    ``constants`` are the values that do not depend on the input: parameters, buffers and what is
    computed from them.
    """

    nodes: tuple[fx.Node, ...]
    values: dict[str, Any]
    constants: dict[str, Any]
    entry: str
    exit: str


def record(model: nn.Module, input_shape: tuple[int, ...]) -> FxGraph:
    """Run ``model`` and its torch.fx graph on random images; ModelError if that cannot be."""
    _check_input(model)
    probes = [_probe(model, n, input_shape) for n in (BATCH, BATCH + 1)]
    with torch.no_grad():
        tracer = Tracer(probes)
        graph = _read(model, tracer)
        if not _answers(tracer.values.get(_ends(graph)[1])):
            _check_output(model, probes[0])
            raise ModelError(
                f"{type(model).__name__} gives one tensor by a hook alone: let forward() return it"
            )
    _simplify(model, graph, tracer.values)
    entry, exit_ = _ends(graph)
    known = tracer.constants
    ends = ("placeholder", "output")
    nodes = tuple(n for n in graph.nodes if n.op not in ends and n.name not in known)
    return FxGraph(nodes, tracer.values, known, entry, exit_)


def _check_input(model: nn.Module) -> None:
    parameters = inspect.signature(model.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in VARIABLE]
    if len(needed) > 1 or not any(p.kind in POSITIONAL for p in parameters):
        raise ModelError(
            f"{type(model).__name__} takes {len(needed)} inputs ({', '.join(needed)}); it must "
            "take one: give a factory that wraps it so"
        )


def _answers(output: Any) -> bool:
    """Return True for one tensor with an answer for each image of the first probe."""
    return isinstance(output, Tensor) and output.shape[:1] == (BATCH,)


def _check_output(model: nn.Module, probe: Tensor) -> None:
    """Raise ModelError unless the model gives one tensor, an answer for each image of the probe."""
    try:
        output = model(probe.clone())
    except Exception as error:  # whatever the model raises
        raise _does_not_take(model, probe, error) from error
    if not isinstance(output, Tensor):
        raise ModelError(
            f"{type(model).__name__} returns a {type(output).__name__}; it must return one tensor: "
            "give a factory that wraps it so"
        )
    if not _answers(output):
        raise ModelError(
            f"{type(model).__name__} returns {tuple(output.shape)} for {BATCH} images, not an "
            f"answer for each, ({BATCH}, …): keep the images' axis first, view(x.size(0), -1)"
        )


def _does_not_take(model: nn.Module, probe: Tensor, error: Exception) -> ModelError:
    """Return the error for a model that refuses this many images, or images of this shape."""
    name, count, shape = type(model).__name__, len(probe), tuple(probe.shape[1:])
    text = f"{_first_line(error)}{_where(error)}"
    for fewer in (1, count - 1):
        if fewer < count and _runs(model, probe[:fewer]):
            return ModelError(
                f"{name} takes {fewer} image{'s' * (fewer > 1)} at a time and not {count}: {text}. "
                "It must take any number: write x.flatten(1) or x.view(x.size(0), -1) for "
                f"x.view({fewer}, -1)"
            )
    hint = "Resize them (size in [input]), or give the model other args"
    if shape[-1] <= 4 < shape[0]:  # no image is so narrow
        hint = "They look like channels last: save them again with .transpose(0, 3, 1, 2)"
    return ModelError(
        f"{name} does not take {count} images of shape {shape} (C, H, W): {text}. {hint}"
    )


def _runs(model: nn.Module, probe: Tensor) -> bool:
    try:
        model(probe.clone())
    except Exception:  # whatever the model raises
        return False
    return True


def _read(model: nn.Module, tracer: Tracer) -> fx.Graph:
    try:
        return tracer.trace(model)
    except Exception as error:  # torch.fx and the model raise many kinds
        _check_output(model, tracer.probes[0])
        probe = tracer.probes[-1]
        if not _runs(model, probe):
            raise _does_not_take(model, probe, error) from error
        raise ModelError(
            f"torch.fx cannot follow {type(model).__name__}: its forward() "
            f"{'' if isinstance(error, CannotFollow) else 'raises '}{_first_line(error)}"
            f"{_where(error)}, which cannot be recorded; give a factory that returns the part that "
            "can be traced"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
    return text if isinstance(error, CannotFollow) else f"{type(error).__name__}: {text}"


def _where(error: Exception) -> str:
    """Return the line of the user's code that it comes from: " (net.py, line 3: if x > 0:)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.line and not f.filename.startswith(LIBRARIES)]
    if not own:
        return ""
    line = textwrap.shorten(own[-1].line or "", 70, placeholder=" …")
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {line})"


def _probe(model: nn.Module, count: int, input_shape: tuple[int, ...]) -> Tensor:
    floats = (p for p in model.parameters() if p.is_floating_point())
    like = next(floats, torch.empty(0))
    random = torch.randn(count, *input_shape, generator=torch.Generator().manual_seed(0))
    return random.to(like)


def _ends(graph: fx.Graph) -> tuple[str, str]:
    (entry,) = (node.name for node in graph.nodes if node.op == "placeholder")
    (result,) = next(node for node in graph.nodes if node.op == "output").args
    return entry, result.name if isinstance(result, fx.Node) else ""


def _simplify(model: nn.Module, graph: fx.Graph, values: dict[str, Any]) -> None:
    """Keep only values that are read, each under one name."""
    for node in list(graph.nodes):
        module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if _does_nothing(node, module):
            node.replace_all_uses_with(node.all_input_nodes[0])
        elif works_in_place(node, module):
            _rename_later(graph, node)
        elif node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
            _ask_reader(graph, node, values)
        elif _is_part_of_channels(node):
            _narrow(graph, node, values)
    join_rearrangements(model, graph, values)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _does_nothing(node: fx.Node, module: nn.Module | None) -> bool:
    """Return True for an identity; a functional dropout may be active in eval mode."""
    off = node.target in DROPOUTS and node.kwargs.get("training") is False
    return off or isinstance(module, NOTHING_MODULES)


def works_in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Return True if the operation overwrites its first input: relu_(), inplace=True."""
    name = str(getattr(node.target, "__name__", node.target))
    called = node.op == "call_method" or getattr(node.target, "__module__", "") != "_operator"
    named = module is None and called and name.endswith("_")  # operator.and_ is none
    return bool(named or node.kwargs.get("inplace", False) or getattr(module, "inplace", False))


def _rename_later(graph: fx.Graph, node: fx.Node) -> None:
    """Let later readers of the overwritten value read the result."""
    nodes = list(graph.nodes)
    later = set(nodes[nodes.index(node) + 1 :])
    node.all_input_nodes[0].replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _ask_reader(graph: fx.Graph, node: fx.Node, values: dict[str, Any]) -> None:
    """Let each reader of a batch size ask its own tensor: no value is alive in between."""
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
