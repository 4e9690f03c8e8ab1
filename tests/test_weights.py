"""Weights files: told apart by content, every other kind named; names that do not fit."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from mpicoded.errors import DataError, MpicodedError
from mpicoded.models import load_weights
from mpicoded.models.weights import read_weights

State = dict[str, Tensor]


class Net(nn.Module):
    """Two layers that share their weight, batch norm, and a dense layer."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
        self.bn, self.fc = nn.BatchNorm2d(2), nn.Linear(2, 4)
        if tied:
            self.b.weight = self.a.weight


def state(tied: bool = True) -> State:
    torch.manual_seed(1)
    return {key: value.clone() for key, value in Net(tied).state_dict().items()}


def changed(change: Callable[[Tensor], Tensor], *keys: str) -> State:
    return {k: change(v) if k in (keys or state()) else v for k, v in state().items()}


def floats(dtype: torch.dtype) -> State:
    return changed(lambda v: v.to(dtype) if v.is_floating_point() else v)


def legacy(what: object, path: Path) -> None:
    torch.save(what, path, _use_new_zipfile_serialization=False)


Write = Callable[[Path], None]
READ: dict[str, Write] = {
    "plain.ckpt": lambda p: torch.save(state(), p),
    "plain.pth.tar": lambda p: torch.save(state(), p),
    "torch.safetensors": lambda p: torch.save(state(), p),
    "nothing": lambda p: legacy(state(), p),
    "legacy.bin": lambda p: legacy(state(), p),
    "safetensors.pt": lambda p: save_file(state(), p),
    "tied.safetensors": lambda p: save_model(_filled(), str(p)),
    "without b": lambda p: torch.save({k: v for k, v in state().items() if k != "b.weight"}, p),
    "without a": lambda p: torch.save({k: v for k, v in state().items() if k != "a.weight"}, p),
    "parameters": lambda p: torch.save(changed(lambda v: v if not v.is_floating_point()
                                               else nn.Parameter(v)), p),
}  # fmt: skip


def _filled(tied: bool = True) -> Net:
    net = Net(tied)
    net.load_state_dict(state())
    return net


@pytest.mark.parametrize("name", READ)
def test_weights_are_read_by_content(tmp_path: Path, name: str) -> None:
    READ[name](tmp_path / name)
    net = Net()
    load_weights(net, tmp_path / name)
    assert all(torch.equal(value, state()[key]) for key, value in net.state_dict().items())


def test_an_alias_that_the_file_names_fills_a_layer_of_its_own(tmp_path: Path) -> None:
    save_model(_filled(), str(tmp_path / "w"))
    net = Net(tied=False)
    load_weights(net, tmp_path / "w")
    assert torch.equal(net.b.weight, state()["a.weight"]) and net.b.weight is not net.a.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_other_floats_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    for save in (save_file, torch.save):
        save(floats(dtype), tmp_path / "w")
        net = Net()
        load_weights(net, tmp_path / "w")
        assert torch.equal(net.fc.weight, state()["fc.weight"].to(dtype).float())


def renamed(rename: Callable[[str], str]) -> State:
    return {rename(key): value for key, value in state().items()}


def _without(key: str, tensors: State) -> State:
    return {k: v for k, v in tensors.items() if k != key}


UNFIT: dict[str, tuple[Mapping[str, object], str]] = {
    "module": (
        renamed(lambda k: f"module.{k}"),
        r'every name in it begins with "module\.", which DataParallel adds: save model\.module',
    ),
    "compiled": (renamed(lambda k: f"_orig_mod.{k}"), r'"_orig_mod\.", which torch\.compile adds'),
    "two": (renamed(lambda k: f"net.model.{k}"), r'"net\.model\.", and no name of the model does'),
    "module and one short": (
        _without("module.fc.bias", renamed(lambda k: f"module.{k}")),
        r'every name in it begins with "module\."',
    ),
    "in the midst": (
        renamed(lambda k: k.replace(".", ".module.")), r'names in it have "\.module\." in their mi'
    ),
    "differ": (
        changed(lambda v: v + 1, "b.weight"), r"a\.weight and b\.weight differ.* are one tensor"
    ),
    "not a number": (
        changed(lambda v: v * float("nan"), "bn.bias"),
        r"bn\.bias holds NaN or infinity in 2 of its 2 numbers",
    ),
    "infinite": (changed(lambda v: v / 0, "bn.running_var"), r"bn\.running_var holds NaN or inf"),
    "infinite in float32": (
        changed(lambda v: v.double() + 1e300, "fc.bias"), r"fc\.bias holds NaN or infinity in 4"
    ),
    "complex": (changed(torch.Tensor.cfloat, "fc.bias"), r"fc\.bias \(4,\) of complex numbers whe"),
    "sparse": (changed(Tensor.to_sparse, "fc.weight"), r"fc\.weight is sparse"),
    "meta": (changed(lambda v: v.to("meta"), "fc.weight"), r"fc\.weight holds no numbers"),
    "quantised": (
        changed(lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "fc.weight"),
        r"fc\.weight is quantised \(torch\.qint8\)",
    ),
    "checkpoint": ({"state_dict": state(), "epoch": 3}, r"take its 'state_dict' alone: torch\.sav"),
    "more than tensors": ({**state(), "epoch": 3}, r"no flat dictionary.*\(it holds: epoch, a\.we"),
    "numbered": (dict(enumerate(state().values())), r"no flat dictionary.*\(it holds: 0, 1, 2 and"),
    "whole model": ({"m": Net()}, r"it needs test_weights\.Net, and code of a file is never run"),
}  # type: ignore[dict-item]  # fmt: skip


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit(tmp_path: Path, name: str) -> None:
    content, text = UNFIT[name]
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(DataError, match=text) as error:
        load_weights(Net(), tmp_path / "w.pt")
    assert str(tmp_path / "w.pt") in str(error.value) and "\n" not in str(error.value)


def _script(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3))), str(path))


NONE: dict[str, tuple[Write, str]] = {
    "TorchScript": (_script, "is TorchScript"),
    "npz": (lambda p: np.savez(p.open("wb"), a=np.zeros(3)), "is an archive without a state dict"),
    "npy": (lambda p: np.save(p.open("wb"), np.zeros(3)), "is a numpy array"),
    "HDF5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n") and None, "is HDF5"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"a": 1})) and None, "no.* tensors"),
    "older whole model": (lambda p: legacy(Net(), p), r"it needs test_weights\.Net, and code"),
    "page": (lambda p: p.write_text("<!DOCTYPE html>") and None, "is not a whole safetensors file"),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_weights_file(tmp_path: Path, name: str) -> None:
    write, text = NONE[name]
    write(tmp_path / "w.pt")
    with pytest.raises(DataError, match=rf"w\.pt .*{text}"):
        load_weights(Net(), tmp_path / "w.pt")


def test_a_codes_weights_are_finite_too(tmp_path: Path) -> None:
    save_file(changed(lambda v: v / 0, "fc.bias"), tmp_path / "w", metadata={"code": "learned"})
    with pytest.raises(DataError, match=r"fc\.bias holds NaN or infinity in \d of its 4 numbers"):
        read_weights(tmp_path / "w")
    save_file(state(), tmp_path / "w", metadata={"code": "learned"})
    assert read_weights(tmp_path / "w")[1] == {"code": "learned"}


@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    path, random = tmp_path / "w", Random(seed)
    for save in (save_file, torch.save, legacy):
        save(state(), path)
        whole = path.read_bytes()
        for _ in range(30):
            raw = bytearray(whole[: random.choice((len(whole), random.randrange(len(whole))))])
            for _ in range(random.choice((1, 3, 20)) if raw else 0):
                raw[random.randrange(min(len(raw), 400))] = random.randrange(256)
            path.write_bytes(raw)
            try:
                load_weights(Net(), path)
            except MpicodedError as error:
                assert "\n" not in str(error)
