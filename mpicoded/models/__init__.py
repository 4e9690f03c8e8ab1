"""The networks: ours by name, the user's own as ``package.module:factory``, and their weights."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from mpicoded.errors import DataError, ModelError
from mpicoded.models.base_mlp import base_mlp
from mpicoded.models.lenet import lenet5
from mpicoded.models.resnet import resnet18, resnet20
from mpicoded.models.vgg import vgg, vgg9, vgg11, vgg16, vgg16_features

MODELS: dict[str, Callable[..., nn.Module]] = {
    "base-mlp": base_mlp,
    "lenet5": lenet5,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "vgg": vgg,
    "vgg9": vgg9,
    "vgg11": vgg11,
    "vgg16": vgg16,
    "vgg16-features": vgg16_features,
}

SPEC = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)
FOREIGN = (".pt", ".pth", ".t7")
SHOWN = 3  # tensors named in the message about a file that does not fit


def build(name: str, args: dict[str, Any]) -> nn.Module:
    """Return the network that ``name`` means, made with ``args``, on the CPU and in eval mode.

    ``name`` is a key of ``MODELS`` or ``package.module:factory``, which is imported (the current
    folder counts as a place to import from) and called. That runs the module's code: trust a job
    file that names one as you trust a script. Raises ModelError.
    """
    factory = MODELS[name] if name in MODELS else _factory(name)
    _check_args(name, factory, args)
    try:
        model = factory(**args)
    except ModelError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ModelError(f"model {name!r} with args {args} failed: {_said(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"model {name!r} gave {type(model).__name__}, not a torch.nn.Module: "
            "name a function that returns the network, or its class."
        )
    return model.eval()


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with the tensors of a safetensors file, or of a .pt, .pth or .t7 state dict.

    Names and shapes must all fit. Nothing is unpickled but plain tensors. Raises DataError.
    """
    state = _foreign(path) if path.suffix in FOREIGN else _safetensors(path)
    own = model.state_dict()
    # Older files lack this counter; nothing is computed from it in eval mode, and torch adds it.
    missing = [
        f"{key} {tuple(own[key].shape)}"
        for key in own
        if key not in state and not key.endswith("num_batches_tracked")
    ]
    unexpected = [f"{key} {tuple(state[key].shape)}" for key in state if key not in own]
    misshapen = [
        f"{key} {_kind(state[key])} where the model has {_kind(own[key])}"
        for key in own
        if key in state and _kind(state[key]) != _kind(own[key])
    ]
    if missing or unexpected or misshapen:
        raise DataError(
            f"weights file {path} does not fit {type(model).__name__}: "
            + "; ".join(
                f"{len(keys)} {what} tensor{'s' * (len(keys) != 1)}: {_first(keys)}"
                for what, keys in [
                    ("missing", missing),
                    ("unexpected", unexpected),
                    ("misshapen", misshapen),
                ]
                if keys
            )
            + ". Give the model the args it was trained with, or name its own weights file."
        )
    model.load_state_dict(state)


def _factory(spec: str) -> Callable[..., Any]:
    """Import what ``package.module:factory`` names."""
    match = SPEC.fullmatch(spec)
    if match is None:
        raise ModelError(
            f"there is no model {spec!r}{_near(spec, MODELS)}; known: {', '.join(MODELS)}, "
            "or your own as package.module:factory."
        )
    module = _import(match[1], spec)
    factory = getattr(module, match[2], None)
    if factory is None:
        near = _near(match[2], vars(module))
        raise ModelError(f"model {spec!r}: module {match[1]} has no {match[2]}{near}.")
    if not callable(factory):
        kind = type(factory).__name__
        raise ModelError(
            f"model {spec!r}: {match[2]} is {kind} and cannot be called; "
            "name a function that returns the network, or its class."
        )
    made: Callable[..., Any] = factory
    return made


def _import(name: str, spec: str) -> ModuleType:
    if name.split(".")[0] in sys.stdlib_module_names:
        raise ModelError(f"model {spec!r}: {name} is Python's own library and holds no network.")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does, however this process was started
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"model {spec!r}: module {error.name} is not found from {here}; "
            "start in the folder that holds it, install it, or set PYTHONPATH."
        ) from error
    except Exception as error:  # whatever the user's own code raises
        raise ModelError(f"model {spec!r}: importing {name} failed: {_said(error)}") from error


def _check_args(name: str, factory: Callable[..., Any], args: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # a callable written in C tells nothing; calling it will
    try:
        signature.bind(**args)
    except TypeError as error:
        known = list(signature.parameters)
        near = "".join(_near(key, known) for key in args if key not in known)
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        takes = ", ".join(map(str, bare)) or "none"
        raise ModelError(f"model {name!r}: {error}{near}; its args: {takes}.") from error


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_file(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"weights file {path} is not a whole safetensors file ({error}); "
            f"train or copy it again. Files of torch.save end in {', '.join(FOREIGN)}."
        ) from error


def _foreign(path: Path) -> dict[str, torch.Tensor]:
    _check_file(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that it cannot or will not read
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"weights file {path} is not a file of plain tensors ({first}); "
            "save it again with torch.save(model.state_dict(), path)."
        ) from error
    if not isinstance(state, dict) or not state or not all(map(torch.is_tensor, state.values())):
        held = _first(list(map(str, state))) if isinstance(state, dict) else type(state).__name__
        raise DataError(
            f"weights file {path} holds no flat dictionary of tensors (it holds: {held}); "
            "save it again with torch.save(model.state_dict(), path)."
        )
    return dict(state)  # without the layers' versions, so that torch adds what old ones lacked


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"weights file {path} {what}; train the model, or mend the path.")


def _kind(tensor: torch.Tensor) -> str:
    """Shape, and whether it holds whole numbers (a quantised file must not pass for floats)."""
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of integers'}"


def _first(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _near(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
