"""Layers that only move numbers, on a piece of a map: constant padding, space to depth.

Views and permutations of a map, PixelUnshuffle and the like are recognised by their effect on the
positions' own numbers, however they are written.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from mpicoded.geometry import Window
from mpicoded.network.ops import Layer, Pads, Windowed

MODULES = (nn.PixelUnshuffle, nn.ChannelShuffle, nn.Flatten, nn.Unflatten)
CALLS: frozenset[Any] = frozenset((
    "view", "reshape", "permute", "transpose", "swapaxes", "flatten", "unflatten", "contiguous",
    torch.reshape, torch.permute, torch.transpose, torch.swapaxes, torch.flatten, torch.unflatten,
    F.pixel_unshuffle, F.channel_shuffle,
))  # fmt: skip


class Pad(Layer):
    """Constant padding, or cropping, as a layer of its own."""

    module: nn.ConstantPad2d

    def __init__(self, module: nn.ConstantPad2d) -> None:
        left, right, top, bottom = module.padding
        self.module, self.windows = module, (Window(1, 1, top, bottom), Window(1, 1, left, right))

    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, C, h', w')."""
        sides = (pads.left, pads.right, pads.top, pads.bottom)
        return F.pad(x, sides, value=self.module.value)


class SpaceToDepth(Windowed):
    """Stack the rows x columns of each cell in channels; 1 x 1: put the channels in another order.

    Channel i of the result is number ``order[i]`` of (C, rows, columns).
    """

    def __init__(self, rows: int, cols: int, order: Tensor) -> None:
        self.windows, self.order = (Window(rows, rows), Window(cols, cols)), order

    def piece(self, x: Tensor, pads: Pads, divisor: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, C rows columns, h / rows, w / columns)."""
        (b, c, h, w), (rows, cols) = x.shape, (window.kernel for window in self.windows)
        cells = x.reshape(b, c, h // rows, rows, w // cols, cols).permute(0, 1, 3, 5, 2, 4)
        return cells.reshape(b, -1, h // rows, w // cols).index_select(1, self.order)

    def __call__(self, x: Tensor) -> Tensor:
        """Run it on a whole map; torch.fx wants something to call."""
        return self.whole(x)


def join_rearrangements(model: nn.Module, graph: fx.Graph, values: dict[str, Any]) -> None:
    """Replace operations that together are one SpaceToDepth, from a map to a map, or nothing."""
    for node in list(graph.nodes):
        path = _path(model, node, values)
        if not path:
            continue
        source = path[0].all_input_nodes[0]
        shape = values[source.name].shape
        numbers = torch.arange(shape.numel(), dtype=torch.float64).view(shape)
        found = _run(model, path, dict(values) | {source.name: numbers})
        layer = _space_to_depth(found.long(), shape)
        if torch.equal(found, numbers):
            node.replace_all_uses_with(source)
        elif layer is not None:
            with graph.inserting_before(node):
                joined = graph.create_node("call_function", layer, (source,), name="space_to_depth")
            joined.meta = dict(node.meta)
            values[joined.name] = values[node.name]
            node.replace_all_uses_with(joined)


def _path(model: nn.Module, node: fx.Node, values: dict[str, Any]) -> list[fx.Node]:
    """Return the operations from a map to the map ``node``, if all of them only move numbers."""
    path = list[fx.Node]()
    while _only_moves(model, node) and (not path or not _is_map(values[node.name])):
        path.insert(0, node)
        node = node.all_input_nodes[0]
    whole = path and _is_map(values[path[-1].name]) and _is_map(values[node.name])
    return path if whole else []


def _only_moves(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), MODULES)
    return node.op in ("call_function", "call_method") and node.target in CALLS


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _run(model: nn.Module, path: list[fx.Node], values: dict[str, Any]) -> Tensor:
    """Run the operations one after another on these values."""
    for node in path:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: values[n.name])
        if node.op == "call_module":
            values[node.name] = model.get_submodule(str(node.target))(*args, **kwargs)
        elif node.op == "call_method":
            values[node.name] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            values[node.name] = node.target(*args, **kwargs)  # type: ignore[operator]
    result: Tensor = values[path[-1].name]
    return result


def _space_to_depth(found: Tensor, shape: torch.Size) -> SpaceToDepth | None:
    """Return the layer that moves the numbers of (B, C, H, W) to ``found``, if there is one."""
    (b, c, h, w), (images, _, height, width) = shape, found.shape
    rows, cols = h // height, w // width
    if (images, rows * height, cols * width) != (b, h, w):
        return None
    first = found[0, :, 0, 0]  # of each channel, its place in (C, H, W)
    layer = SpaceToDepth(rows, cols, (first // (h * w) * rows + first // w % h) * cols + first % w)
    inside = bool((first < c * h * w).all() and (first // w % h < rows).all())
    if not inside or not bool((first % w < cols).all()):
        return None
    return layer if torch.equal(layer(torch.arange(shape.numel()).view(shape)), found) else None
