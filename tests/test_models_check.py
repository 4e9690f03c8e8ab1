"""What is no network that can be served: each kind is named, with what to give in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from mpicoded.errors import ModelError
from mpicoded.models.check import check_kind, check_shapes, check_trainable, check_weights


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))


def holding(value: Any, parameter: bool = True) -> nn.Module:
    model = net()
    if parameter:
        model.w = nn.Parameter(value, requires_grad=False)
    else:
        model.register_buffer("w", value)
    return model


def in_place() -> nn.Module:
    model = net()
    model.compile()
    return model


class Compiled(nn.Module):
    forward = torch.compile(lambda self, x: x)


def exported() -> Any:
    return torch.export.export(net().eval(), (torch.zeros(2, 1, 8, 8),))


KINDS: dict[str, tuple[Callable[[], Any], str]] = {
    "DataParallel": (lambda: nn.DataParallel(net()), r"the model is DataParallel.*its \.module"),
    "inside": (
        lambda: nn.Sequential(nn.DataParallel(net())), r"the model, layer 0, is DataParallel"
    ),
    "script": (lambda: torch.jit.script(net()), r"is TorchScript.*nn\.Module that it was made"),
    "trace": (lambda: torch.jit.trace(net(), torch.zeros(1, 1, 8, 8)), "is TorchScript"),
    "compile": (lambda: torch.compile(net()), r"made by torch\.compile.*\._orig_mod"),
    "compile()": (in_place, r"was compiled, by its compile\(\)"),
    "compiled forward": (Compiled, r"has a forward\(\) compiled by torch\.compile"),
    "export": (exported, r"was made by torch\.export.*nn\.Module that it was made from"),
    "exported module": (lambda: exported().module(), r"was made by torch\.export"),
    "function": (lambda: net, r"the model is function, not a torch\.nn\.Module"),
    "class": (lambda: Compiled, r"is the class Compiled: make one, Compiled"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind: str) -> None:
    make, text = KINDS[kind]
    with pytest.raises(ModelError, match=text):
        check_kind(make())


def test_a_forward_that_was_replaced_for_all_layers_of_a_kind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: own(self, x) * 2)
    with pytest.raises(ModelError, match=r"layer 3, is Linear, whose forward\(\) was replaced"):
        check_kind(net())


def test_plain_networks_are_fine() -> None:
    for model in (net(), fx.symbolic_trace(net())):
        check_kind(model)
        check_weights(model)


def test_lazy_layers() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d())
    check_weights(lazy)  # a program's own first image gives them their shapes
    with pytest.raises(ModelError, match=r"m: 0\.weight has no shape .*run one, net\(torch\.zeros"):
        check_shapes(lazy, "m")
    lazy(torch.zeros(2, 1, 8, 8))
    check_shapes(lazy, "m")


WEIGHTS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "half": (lambda: net().half(), r"0\.weight is torch\.float16; convert it: model\.float\(\)"),
    "meta": (lambda: net().to("meta"), r'0\.weight holds no numbers .*torch\.device\("meta"\)'),
    "complex": (lambda: holding(torch.zeros(3).cfloat()), r"w is torch\.complex64.*real numbers"),
    "sparse": (lambda: holding(torch.eye(3).to_sparse()), r"w is torch\.sparse_coo; make it dense"),
    "not a number": (lambda: holding(torch.tensor([1, torch.nan])), r"w holds NaN .* 1 of its 2 n"),
    "infinite": (lambda: holding(torch.tensor(-torch.inf)), r"w holds NaN or infinity in 1 of its"),
    "buffer": (lambda: holding(torch.tensor(torch.inf), False), r"w holds NaN or infinity in 1 of"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights(kind: str) -> None:
    make, text = WEIGHTS[kind]
    with pytest.raises(ModelError, match=text):
        check_weights(make())


def test_weights_that_are_fine() -> None:
    check_weights(holding(torch.tensor([3, 4])))
    check_weights(holding(torch.full((4,), 3e38)))  # their sum is not finite, they are
    check_weights(holding(torch.tensor([0.0, -torch.inf]), parameter=False))  # an attention mask
    check_weights(holding(torch.tensor([True]), parameter=False))


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}


def test_what_can_be_trained() -> None:
    check_trainable(net())
    with pytest.raises(ModelError, match=r"the model's _extra_state is dict.* extra state"):
        check_trainable(Extra(2, 2))
    with pytest.raises(ModelError, match="no weights that could be trained"):
        check_trainable(nn.ReLU())
