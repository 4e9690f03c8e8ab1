"""Read files of weights: safetensors or of torch.save; only plain tensors are unpickled."""

import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from mpicoded.errors import DataError
from mpicoded.models.check import not_finite

SHOWN = 3  # tensors named in the message about a file that does not fit
TORCH = (b"PK", b"\x80")  # torch.save writes a zip archive, and before torch 1.6 a pickle
OTHERS = {b"\x89HDF": "HDF5", b"\x1f\x8b": "gzip", b"\x93NUMPY": "a numpy array"}
SAVE = "save it again with torch.save(model.state_dict(), path)"


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a file's finite tensors and (of safetensors) its metadata; DataError if damaged."""
    tensors, about = read_plain(path)
    for key, tensor in tensors.items():
        if why := not_finite(tensor):
            raise broken(path, key, why)
    return tensors, about


def broken(path: Path, key: str, why: str) -> DataError:
    """Return the error for a tensor that is not finite."""
    return DataError(
        f"weights file {path}: {key} holds {why}: it is damaged, or its training diverged; "
        "train or copy it again"
    )


def read_plain(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the same, finite or not."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no regular file"
        what = kind if path.exists() else "does not exist"
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
    """Read a file of torch.save; name the kind of other archives."""
    names = _names(path)
    if any(name.endswith("/constants.pkl") for name in names):
        raise DataError(
            f"weights file {path} is TorchScript (torch.jit.save), with code in it; "
            f"{SAVE}, of the model or of torch.jit.load({path.name!r})"
        )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise DataError(
            f"weights file {path} is an archive without a state dict (it holds: "
            f"{first_of(names)}), such as torch.export and numpy write; {SAVE}"
        )
    try:
        with path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            state = torch.load(file, map_location="cpu", weights_only=True)  # by name it errs
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
    """Return the one sentence of torch's message with the reason."""
    text = str(error)
    if code := re.search(r"GLOBAL (\S+)", text):
        return f"it needs {code[1]}, and code of a file is never run"
    if why := re.search(r"WeightsUnpickler error: (.+)", text):
        return why[1].strip()
    if "Weights only" in text:
        return "it holds more than tensors"
    return re.split(r"\. |\n", text.strip())[0].rstrip(".") or type(error).__name__


def _held(state: object) -> str:
    """Name the contents of a file, those that are no tensors first."""
    if not isinstance(state, dict):
        return type(state).__name__
    names = sorted(state, key=lambda name: torch.is_tensor(state[name]))
    return first_of(list(map(str, names))) or "nothing"


def _names(path: Path) -> list[str]:
    """Return the names in a zip archive; none if it is no archive, or cut short."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return []


def _is_flat(state: object) -> bool:
    if not isinstance(state, dict) or not state:
        return False
    return all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items())


def _inner(path: Path, state: object) -> str:
    """Say how to get at the dictionary of tensors in a checkpoint."""
    held = state if isinstance(state, dict) else {}
    keys = [key for key, value in held.items() if _is_flat(value)]
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


def first_of(names: list[str]) -> str:
    """Return the first few of many names."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")
