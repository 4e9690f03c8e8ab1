"""Load the tensors of a file into a network, or say why names and shapes do not fit."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpicoded.errors import DataError
from mpicoded.models.check import not_finite
from mpicoded.models.weights import broken, first_of, read_plain

Tensors = dict[str, Tensor]
WRAPPERS = {
    "module.": "DataParallel adds: save model.module.state_dict()",
    "_orig_mod.": "torch.compile adds: save model._orig_mod.state_dict()",
}


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with the tensors of a file; DataError unless all names and shapes fit."""
    state, about = read_plain(path)
    own = model.state_dict()
    for key, value in own.items():
        if not isinstance(value, Tensor) or value.is_meta:
            what = "on the meta device" if torch.is_tensor(value) else f"{type(value).__name__}"
            raise DataError(
                f"weights file {path} cannot fill {type(model).__name__}: its {key} is {what}, no "
                "tensor of numbers; load the weights in its factory, and leave weights out of "
                "[model]"
            )
    _fill_tied(path, state, about, own)
    if why := _misfits(state, own):
        raise DataError(f"weights file {path} does not fit {type(model).__name__}: {why}")
    try:
        model.load_state_dict(state)
    except Exception as error:  # whatever a model's own hooks raise
        first = " ".join(str(error).split())
        raise DataError(
            f"weights file {path} does not fit {type(model).__name__}: {first}"
        ) from error
    parameters = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    for key, tensor in model.state_dict().items():
        if why := not_finite(tensor, mask=key not in parameters):
            raise broken(path, key, why)


def _fill_tied(path: Path, state: Tensors, about: Mapping[str, str], own: Tensors) -> None:
    """Give a tensor that the file has under one of its names (save_model's) its others too."""
    first: dict[Any, str] = {}
    for key, tensor in own.items():
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride()) if tensor.numel() else key
        twin = first.setdefault(place, key)
        for have, lack in ((twin, key), (key, twin), (about.get(key, key), key)):
            if have in state and lack not in state:
                state[lack] = state[have]
        if key != twin and key in state and not torch.equal(state[twin], state[key]):
            raise DataError(
                f"weights file {path}: {twin} and {key} differ, and in the model they are one "
                "tensor: give a model whose layers are not shared, or another file"
            )


def _misfits(state: Tensors, own: Tensors) -> str:
    """Say which tensors do not fit, "" if all do."""
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
    if missing and unexpected and (why := _renamed(state, own)):
        return why
    found = [
        f"{len(keys)} {what} tensor{'s' * (len(keys) != 1)}: {first_of(keys)}"
        for what, keys in [
            ("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen),
        ]
        if keys
    ]  # fmt: skip
    hint = ". Give the model the args it was trained with, or name its own weights file."
    return "; ".join(found) + hint if found else ""


def _renamed(state: Tensors, own: Tensors) -> str:
    """Say how the names differ, if it is by a prefix alone; "" if not."""
    if (prefix := _prefix(state, own)) is not None:
        hint = WRAPPERS.get(prefix, f"save {{k.removeprefix({prefix!r}): v for k, v in …}}")
        verb = "which " if prefix in WRAPPERS else "and no name of the model does: "
        return f'every name in it begins with "{prefix}", {verb}{hint}'
    if (prefix := _prefix(own, state)) is not None:
        return (
            f'every name of the model begins with "{prefix}", and none in the file does: save '
            f"{{{prefix!r} + k: v for k, v in …}}, or give a factory that returns what is in it"
        )
    for part, hint in WRAPPERS.items():
        if _most({key.replace(f".{part}", ".") for key in state}, own):
            return f'names in it have ".{part}" in their midst, which {hint}'
    return ""


def _prefix(longer: Iterable[str], shorter: Iterable[str]) -> str | None:
    """Return the prefix of all names of ``longer`` without which these are of ``shorter``."""
    longer = list(longer)
    parts = longer[0].split(".")[:-1] if longer else []
    for end in range(1, len(parts) + 1):
        prefix = ".".join(parts[:end]) + "."
        if not all(key.startswith(prefix) for key in longer):
            return None
        if _most({key.removeprefix(prefix) for key in longer}, shorter):
            return prefix
    return None


def _most(names: set[str], wanted: Iterable[str]) -> bool:
    """Return True if most of the wanted names are there; old files have no counters."""
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    return 2 * len(names & needed) > len(needed)


def _kind(tensor: Tensor) -> str:
    """Return the shape and the kind of numbers: a quantised file must not pass for floats."""
    if tensor.is_complex():
        return f"{tuple(tensor.shape)} of complex numbers"
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of integers'}"
