"""Turn nodes into operations that work on a piece of a map, or say why one cannot."""

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from mpicoded.network.fx_graph import BATCH, FxGraph, works_in_place
from mpicoded.network.ops import AvgPool, Call, Conv, MaxPool, Op, Ref
from mpicoded.network.rearrange import Pad, SpaceToDepth

POINTWISE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
    nn.LogSigmoid, nn.Threshold, nn.BatchNorm2d, nn.Softmax2d, nn.LocalResponseNorm,
    nn.ChannelShuffle,
)  # fmt: skip
POINTWISE_FUNCTIONS: frozenset[Any] = frozenset((
    torch.relu, torch.sigmoid, torch.tanh, torch.clamp, torch.abs, torch.exp, torch.log, torch.sqrt,
    torch.square, torch.pow, torch.add, torch.sub, torch.mul, torch.div, torch.neg,
    torch.maximum, torch.minimum,
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow,
    F.relu, F.relu6, F.leaky_relu, F.prelu, F.elu, F.celu, F.selu, F.gelu, F.silu, F.mish,
    F.sigmoid, F.tanh, F.softplus, F.softsign, F.logsigmoid, F.threshold,
    F.hardtanh, F.hardsigmoid, F.hardswish, F.batch_norm, F.local_response_norm,
))  # fmt: skip
POINTWISE_METHODS = frozenset((
    "relu", "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max", "abs", "exp", "log", "sqrt",
    "square", "pow", "neg", "add", "sub", "mul", "div", "maximum", "minimum",
    "contiguous", "clone", "detach", "float", "double", "half",
))  # fmt: skip
ALONG_CHANNELS: frozenset[Any] = frozenset((
    torch.cat, torch.concat, torch.softmax, F.softmax, "softmax", "narrow",
))  # fmt: skip
CHANNEL_CONSTANTS: frozenset[Any] = frozenset((F.batch_norm, F.prelu))  # take constants of (C,)
POOLS: dict[Any, type[nn.MaxPool2d | nn.AvgPool2d]] = {
    F._max_pool2d: nn.MaxPool2d,  # type: ignore[attr-defined]  # what F.max_pool2d calls
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
}

LAYERS: tuple[tuple[type[nn.Module], Any], ...] = (
    (nn.Conv2d, Conv), (nn.MaxPool2d, MaxPool), (nn.AvgPool2d, AvgPool), (nn.ConstantPad2d, Pad),
)  # fmt: skip


def to_op(model: nn.Module, node: fx.Node, fx_graph: FxGraph) -> tuple[Op, str]:
    """Return the node as an Op, and why it cannot be cut ("" if it can)."""
    values = fx_graph.values
    inputs = tuple(n.name for n in node.all_input_nodes if n.name not in fx_graph.constants)
    if isinstance(node.target, SpaceToDepth):
        cells = node.target.windows[0].kernel * node.target.windows[1].kernel > 1
        return Op(node.name, inputs, node.target if cells else Call(node.target, (Ref(0),), {})), ""
    call = _call(model, node, inputs, fx_graph.constants)
    module = call.target if isinstance(call.target, nn.Module) else None
    if module is None and len(inputs) == 1:
        module = _as_module(call)
    what = _described(_blamed(node, values), model)
    reason = _why_not(what, module, call, [values[n] for n in inputs], values[node.name])
    kind = next((made for kind, made in LAYERS if not reason and isinstance(module, kind)), None)
    return Op(node.name, inputs, kind(module) if kind else call), reason


def path(node: fx.Node) -> str:
    """Return the node's place in the model: "layer1.0.conv1", "layer1.0.add"."""
    if node.op == "call_module":
        return str(node.target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"{stack[-1][0]}.{node.name}" if stack and stack[-1][0] else node.name


def _call(model: nn.Module, node: fx.Node, inputs: tuple[str, ...], known: dict[str, Any]) -> Call:
    """Return the node as a Call that overwrites nothing: an input may be a view of a shared map."""

    def fill(n: fx.Node) -> Any:
        return known[n.name] if n.name in known else Ref(inputs.index(n.name))

    target: Any = node.target
    if node.op == "call_module":
        target = _settled(model.get_submodule(str(node.target)))
    kwargs = _plain(fx.map_arg(node.kwargs, fill))
    if works_in_place(node, target if node.op == "call_module" else None):
        target = _out_of_place(target)
        kwargs = {k: False if k == "inplace" else v for k, v in kwargs.items()}
    if "<locals>" in getattr(target, "__qualname__", ""):
        # F.adaptive_max_pool2d and its like are closures, which cannot be pickled
        target = getattr(F, f"_{target.__name__}", target)
    return Call(target, _plain(fx.map_arg(node.args, fill)), kwargs)


def _settled(module: nn.Module) -> nn.Module:
    """Return a layer with fixed weights, not computed anew from others every time."""
    # those of torch.nn.utils.parametrizations (weight norm, spectral norm) cannot be pickled
    if not any(parametrize.is_parametrized(each) for each in module.modules()):
        return module
    kind = parametrize.type_before_parametrizations(module)
    settled: nn.Module = object.__new__(kind)
    computed = module._modules.get("parametrizations") or nn.ModuleDict()
    assert isinstance(computed, nn.ModuleDict)
    weights = {name: nn.Parameter(getattr(module, name).detach(), False) for name in computed}
    children = {n: m for n, m in module._modules.items() if m is not computed}
    settled.__dict__ = module.__dict__ | {
        "_parameters": module._parameters | weights,
        "_modules": {n: m and _settled(m) for n, m in children.items()},
        "_load_state_dict_pre_hooks": {},  # weight norm's cannot be pickled
    }
    return settled


def _out_of_place(target: Any) -> Any:
    if isinstance(target, nn.Module):
        target = copy.copy(target)
        target.inplace = False
        return target
    name = str(getattr(target, "__name__", target))
    if not name.endswith("_"):
        return target  # its argument inplace says it
    if isinstance(target, str):
        return name[:-1] if callable(getattr(Tensor, name[:-1], None)) else target
    return getattr(torch, name[:-1], getattr(F, name[:-1], target))


def _plain(value: Any) -> Any:
    """Turn fx's immutable lists and dictionaries into plain ones, which pickle anywhere."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_plain(v) for v in value)
    return value


def _as_module(call: Call) -> nn.Module | None:
    """Return F.conv2d, F.pad, F.max_pool2d and F.avg_pool2d with constant arguments as modules."""
    if call.target is F.conv2d:
        return conv(*call.args, **call.kwargs)
    if call.target is F.pad:
        return _pad(*call.args, **call.kwargs)
    kind = POOLS.get(call.target)
    kwargs = {k: v for k, v in call.kwargs.items() if k != "input"}
    return kind(*call.args[1:], **kwargs) if kind else None


def conv(
    input: Ref,  # the names are those of F.conv2d
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> nn.Conv2d:
    """Return F.conv2d with these arguments as a module; it takes the tensors as they are."""
    outer, inner, height, width = weight.shape
    module = nn.Conv2d(
        inner * groups, outer, (height, width), stride, padding, dilation, groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias, requires_grad=False)
    return module


def _pad(input: Ref, pad: Any, mode: str = "constant", value: Any = None) -> nn.Module | None:
    """Return F.pad with these arguments as a module, if it pads rows and columns by a constant."""
    if mode != "constant" or len(pad) > 4 or not all(isinstance(n, int) for n in pad):
        return None
    return nn.ConstantPad2d((*pad, 0, 0)[:4], value or 0.0)


def _blamed(node: fx.Node, values: dict[str, Any]) -> fx.Node:
    """Return the reader of a node that only gives a size or makes a tuple."""
    while not isinstance(values[node.name], Tensor) and node.users:
        node = next(iter(node.users))
    return node


def _described(node: fx.Node, model: nn.Module) -> str:
    if node.op == "call_module":
        return f"{path(node)} ({type(model.get_submodule(str(node.target))).__name__})"
    return f"{path(node)} ({getattr(node.target, '__name__', node.target)})"


def _why_not(what: str, module: nn.Module | None, call: Call, maps: list[Any], out: Any) -> str:
    """Say why the operation cannot work on a piece of a map; "" if it can."""
    if not maps or not all(_is_map(v) for v in [*maps, out]):
        return f"{what} mixes all positions of the map"
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return f"{what} pads in mode {module.padding_mode!r}, which reads beyond a piece"
    if isinstance(module, nn.MaxPool2d) and module.return_indices:
        return f"{what} returns indices into the whole map"
    if _takes_statistics(module, call):
        return f"{what} takes the statistics of the whole map"
    if any(isinstance(module, kind) for kind, _ in LAYERS):
        return ""
    if not _is_pointwise(module, call):
        return f"{what} mixes positions of the map"
    if any(v.shape[-2:] != out.shape[-2:] for v in maps):
        return f"{what} joins maps of different sizes"
    return _spatial_constant(what, call, out.shape)


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4 and value.shape[0] == BATCH


def _takes_statistics(module: nn.Module | None, call: Call) -> bool:
    if isinstance(module, nn.BatchNorm2d):
        return module.running_mean is None
    training = call.kwargs.get("training", len(call.args) > 5 and call.args[5])
    return call.target is F.batch_norm and bool(training)


def _is_pointwise(module: nn.Module | None, call: Call) -> bool:
    if module is not None:
        along = isinstance(module, nn.Softmax) and module.dim in (1, -3)
        return along or isinstance(module, POINTWISE_MODULES)
    if call.target in ALONG_CHANNELS:
        given = [call.kwargs[k] for k in ("dim", "axis") if k in call.kwargs]
        return (given or [*call.args[1:2], 0])[0] in (1, -3)
    if call.target is operator.getitem:
        return _takes_channels(call.args[1])
    return call.target in POINTWISE_FUNCTIONS or call.target in POINTWISE_METHODS


def _takes_channels(index: Any) -> bool:
    """x[:, a:b], x[:, a:b, :, :]."""
    everything = (slice(None), Ellipsis)
    if not isinstance(index, tuple) or len(index) < 2 or index[0] != slice(None):
        return False
    return isinstance(index[1], slice) and all(i in everything for i in index[2:])


def _spatial_constant(what: str, call: Call, shape: torch.Size) -> str:
    """A constant may hold a number for each channel, (C, 1, 1), not for each position."""
    if call.target in CHANNEL_CONSTANTS:
        return ""
    for value in (*call.args, *call.kwargs.values()):
        if isinstance(value, Tensor) and any(n != 1 for n in value.shape[-2:]):
            return (
                f"{what} takes a constant of shape {tuple(value.shape)}, with a number for each "
                f"position of the map of {tuple(shape[-2:])}"
            )
    return ""
