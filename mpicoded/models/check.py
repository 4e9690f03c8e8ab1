"""Check that a network can be served: a plain nn.Module on the CPU, finite float32 weights."""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from mpicoded.errors import ModelError

FROM = "give the nn.Module that it was made from"


def check_kind(model: Any, whose: str = "the model") -> None:
    """Raise ModelError unless torch.fx can read ``model`` as it is."""
    # what wraps a network, or was compiled from one, is named with what to give in its place
    kind = type(model).__name__
    if isinstance(model, type):
        raise ModelError(f"{whose} is the class {model.__name__}: make one, {model.__name__}(…)")
    if kind == "ExportedProgram":
        raise ModelError(f"{whose} was made by torch.export, for fixed shapes: {FROM}")
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{whose} is {kind}, not a torch.nn.Module: give a function that returns the network, "
            "or its class, in a job; the network itself in a program"
        )
    for name, module in model.named_modules():
        if why := _wrapped(module):
            raise ModelError(f"{whose}{name and f', layer {name},'} {why}")


def _wrapped(module: nn.Module) -> str:
    kind = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        return f"is TorchScript ({kind}), which is code that nobody can cut: {FROM}"
    if type(module).__module__.startswith(("torch.nn.parallel.", "torch.distributed.")):
        return f"is {kind}, which spreads it in its own way: give what it holds, its .module"
    if "_orig_mod" in module._modules:
        return "was made by torch.compile, which hides it: give its ._orig_mod"
    if module._compiled_call_impl is not None:
        return "was compiled, by its compile(): leave that out"
    if hasattr(module.forward, "_torchdynamo_orig_callable"):
        return "has a forward() compiled by torch.compile: leave that out"
    home = str(getattr(type(module).forward, "__module__", ""))
    if type(module).__module__.startswith("torch.nn.modules.") and not home.startswith("torch."):
        return (
            f"is {kind}, whose forward() was replaced for all of its kind, and ranks know nothing "
            "of that: give that forward() to a class of your own"
        )
    if isinstance(module, fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    ):
        return f"was made by torch.export, for fixed shapes: {FROM}"
    return ""


def check_shapes(model: nn.Module, whose: str) -> None:
    """Raise ModelError if a layer has no shape before the first image."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"{whose}: {name} has no shape before the first image (a lazy layer): let the "
                "factory run one, net(torch.zeros(1, C, H, W)), before it returns the network"
            )


def check_weights(model: nn.Module) -> None:
    """Raise ModelError unless the weights are finite float32, as values on the wire are."""
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        buffer = not isinstance(tensor, nn.Parameter)
        if is_lazy(tensor):
            continue  # it has no numbers yet
        if tensor.is_meta:
            raise ModelError(
                f"the model's {name} holds no numbers (device meta): build it without "
                'torch.device("meta")'
            )
        if tensor.device.type != "cpu":
            raise ModelError(f"the model's {name} is on {tensor.device}; move it: model.cpu()")
        if tensor.layout is not torch.strided:
            raise ModelError(f"the model's {name} is {tensor.layout}; make it dense: to_dense()")
        if tensor.is_complex():
            raise ModelError(
                f"the model's {name} is {tensor.dtype}, and what travels are real numbers: give a "
                "network of float32"
            )
        if tensor.is_floating_point() and tensor.dtype != torch.float32 and not buffer:
            raise ModelError(f"the model's {name} is {tensor.dtype}; convert it: model.float()")
        if why := not_finite(tensor, mask=buffer):
            raise ModelError(f"the model's {name} holds {why}: load weights that are whole")


def check_trainable(model: nn.Module) -> None:
    """Raise ModelError unless all that a file of its weights would hold are plain tensors."""
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.is_quantized:
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ModelError(
                f"the model's {key} is {kind}, and what is trained are tensors of floats: give "
                "a network that is not quantised and has no extra state"
            )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("the model has no weights that could be trained: give another model")


def not_finite(tensor: Tensor, mask: bool = False) -> str:
    """Say how many numbers are not finite as float32, "" if all are; a ``mask`` may hold -inf."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return ""
    numbers = tensor.detach().to(torch.complex64 if tensor.is_complex() else torch.float32)
    if bool(numbers.sum().isfinite()):
        return ""  # the sum of finite numbers may overflow, so this is no proof of the contrary
    fine = numbers.isfinite()
    if mask and not tensor.is_complex():
        fine |= numbers == -torch.inf
    wrong = int((~fine).sum())
    return f"NaN or infinity in {wrong} of its {tensor.numel()} numbers" if wrong else ""
