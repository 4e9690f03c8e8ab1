"""Files of weights, of base models and of codes: safetensors, or what torch.save wrote.

Which of them a file is, it says itself, not its name. Nothing is unpickled but plain tensors.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mpicoded.errors import DataError
from mpicoded.models.check import not_finite

SHOWN = 3  # tensors named in the message about a file that does not fit
TORCH = (
    b"PK",
    b"\x80",
)  # how a file of torch.save begins: a zip archive; before torch 1.6, a pickle
OTHERS = {b"\x89HDF": "HDF5", b"\x1f\x8b": "gzip", b"\x93NUMPY": "a numpy array"}
WRAPPERS = {
    "module.": "DataParallel adds: save model.module.state_dict()",
    "_orig_mod.": "torch.compile adds: save model._orig_mod.state_dict()",
}
SAVE = "save it again with torch.save(model.state_dict(), path)"


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file, all finite, and what it says of itself (safetensors alone can).

    Raises
    ------
    DataError
        If there is no such file, or it is damaged.
    """
    tensors, about = _read(path)
    for key, tensor in tensors.items():
        if why := not_finite(tensor):
            raise _broken(path, key, why)
    return tensors, about


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` with the tensors of a file.

    Names and shapes must all fit. Raises DataError.
    """
    state, about = _read(path)
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
            raise _broken(path, key, why)


def _broken(path: Path, key: str, why: str) -> DataError:
    return DataError(
        f"weights file {path}: {key} holds {why}: it is damaged, or its training diverged; "
        "train or copy it again"
    )


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(
            f"weights file {path} {what}; train the model, or mend the path "
            "(python -m mpicoded train JOB makes it)"
        )
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise DataError(f"weights file {path} cannot be read: {error.strerror}") from error
    torchs = start.startswith(TORCH) and start[8:] != b"{"  # safetensors: a length of 8 bytes, JSON
    tensors, about = (_torch(path), {}) if torchs else _safetensors(path, start)
    for key, tensor in tensors.items():
        if why := _not_plain(tensor):
            raise DataError(f"weights file {path}: {key} {why}; save plain numbers in its place")
    return tensors, about


def _safetensors(path: Path, start: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    for magic, kind in OTHERS.items():
        if start.startswith(magic):
            raise DataError(f"weights file {path} is {kind}; {SAVE}, or as safetensors")
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            return {key: file.get_tensor(key) for key in keys}, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"weights file {path} is not a whole safetensors file ({error}), nor one of "
            "torch.save; copy it again, or make it: python -m mpicoded train JOB"
        ) from error


def _torch(path: Path) -> dict[str, Tensor]:
    """Read what torch.save wrote; of other archives, say what they are."""
    names = _names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise DataError(
            f"weights file {path} is TorchScript (torch.jit.save), with code in it; "
            f"{SAVE}, of the model or of torch.jit.load({path.name!r})"
        )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise DataError(
            f"weights file {path} is an archive without a state dict (it holds: {_first(names)}), "
            f"such as torch.export and numpy write; {SAVE}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that it cannot or will not read
        raise DataError(
            f"weights file {path} is not a file of plain tensors ({_why_torch(error)}); {SAVE}"
        ) from error
    if not _is_flat(state):
        raise DataError(
            f"weights file {path} holds no flat dictionary of tensors (it holds: "
            f"{_held(state)}); {_inner(path, state)}"
        )
    return dict(state)  # without the layers' versions, so that torch adds what old ones lacked


def _why_torch(error: Exception) -> str:
    """Return the one sentence of torch's message that tells why."""
    text = str(error)
    if code := re.search(r"GLOBAL (\S+)", text):
        return f"it needs {code[1]}, and code of a file is never run"
    if why := re.search(r"WeightsUnpickler error: (.+)", text):
        return why[1].strip()
    if "Weights only" in text:
        return "it holds more than tensors"
    return re.split(r"\. |\n", text.strip())[0].rstrip(".") or type(error).__name__


def _held(state: object) -> str:
    """Name what a file holds, first of all what is no tensor."""
    if not isinstance(state, dict):
        return type(state).__name__
    return (
        _first(list(map(str, sorted(state, key=lambda k: torch.is_tensor(state[k]))))) or "nothing"
    )


def _names(path: Path) -> list[str]:
    """Return what a zip archive holds; nothing if it is none, or cut short."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return []


def _is_flat(state: object) -> bool:
    return (
        isinstance(state, dict)
        and bool(state)
        and all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items())
    )


def _inner(path: Path, state: object) -> str:
    """Say how to get at the dictionary of tensors in a checkpoint."""
    keys = (
        [key for key, value in state.items() if _is_flat(value)] if isinstance(state, dict) else []
    )
    if not keys:
        return SAVE
    taken = f"torch.load({path.name!r}, weights_only=True)[{keys[0]!r}]"
    return f"take its {keys[0]!r} alone: torch.save({taken}, 'weights.pth')"


def _not_plain(tensor: Tensor) -> str:
    if tensor.is_quantized:
        return f"is quantised ({tensor.dtype})"
    if tensor.layout is not torch.strided:
        return f"is sparse ({tensor.layout})"
    return "holds no numbers (device meta)" if tensor.is_meta else ""


def _fill_tied(
    path: Path, state: dict[str, Tensor], about: Mapping[str, str], own: Mapping[str, Tensor]
) -> None:
    """Give a tensor that the file has under another of its names that name too.

    safetensors' save_model writes such a tensor once, and in the metadata which name stands for it.
    """
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


def _misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
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
    told = [
        f"{len(keys)} {what} tensor{'s' * (len(keys) != 1)}: {_first(keys)}"
        for what, keys in [
            ("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen),
        ]
        if keys
    ]  # fmt: skip
    way = ". Give the model the args it was trained with, or name its own weights file."
    return "; ".join(told) + way if told else ""


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Say how the names differ, if it is by a prefix alone; "" if not."""
    if (prefix := _prefix(state, own)) is not None:
        way = WRAPPERS.get(prefix, f"save {{k.removeprefix({prefix!r}): v for k, v in …}}")
        verb = "which " if prefix in WRAPPERS else "and no name of the model does: "
        return f'every name in it begins with "{prefix}", {verb}{way}'
    if (prefix := _prefix(own, state)) is not None:
        return (
            f'every name of the model begins with "{prefix}", and none in the file does: save '
            f"{{{prefix!r} + k: v for k, v in …}}, or give a factory that returns what is in it"
        )
    for part, way in WRAPPERS.items():
        if _most({key.replace(f".{part}", ".") for key in state}, own):
            return f'names in it have ".{part}" in their midst, which {way}'
    return ""


def _prefix(longer: Iterable[str], shorter: Iterable[str]) -> str | None:
    """Return what every name of ``longer`` begins with and must lose to be one of ``shorter``."""
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
    """Whether most of the wanted names are there; a file without counters is an old one."""
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    return 2 * len(names & needed) > len(needed)


def _kind(tensor: Tensor) -> str:
    """Shape, and whether it holds whole numbers (a quantised file must not pass for floats)."""
    if tensor.is_complex():
        return f"{tuple(tensor.shape)} of complex numbers"
    return f"{tuple(tensor.shape)}{'' if tensor.is_floating_point() else ' of integers'}"


def _first(names: list[str]) -> str:
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
