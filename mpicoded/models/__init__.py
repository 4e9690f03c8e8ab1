"""The networks: ours by name, and the user's own as ``package.module:factory``."""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from torch import nn

from mpicoded.errors import ModelError, near
from mpicoded.models.base_mlp import BaseMLP
from mpicoded.models.check import check_kind, check_shapes
from mpicoded.models.inception import InceptionV3
from mpicoded.models.lenet import LeNet5
from mpicoded.models.loading import load_weights as load_weights
from mpicoded.models.mobilenet import MobileNetV2
from mpicoded.models.resnet import resnet18, resnet20, resnet34, resnet50
from mpicoded.models.vgg import vgg, vgg9, vgg11, vgg13, vgg16, vgg16_features
from mpicoded.models.yolo import TinyYOLOv2, YOLOv2

MODELS: dict[str, Callable[..., nn.Module]] = {
    "base-mlp": BaseMLP,
    "inception-v3": InceptionV3,
    "lenet5": LeNet5,
    "mobilenet-v2": MobileNetV2,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "tiny-yolov2": TinyYOLOv2,
    "vgg": vgg,
    "vgg9": vgg9,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg16-features": vgg16_features,
    "yolov2": YOLOv2,
}

SPEC = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)", re.ASCII)


def build(name: str, args: dict[str, Any]) -> nn.Module:
    """Build the network ``name`` with ``args``, on the CPU and in eval mode.

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
        raise ModelError(
            f"model {name!r} with args {args} failed: {type(error).__name__}: {error}"
        ) from error
    check_kind(model, f"model {name!r}")
    check_shapes(model, f"model {name!r}")
    assert isinstance(model, nn.Module)
    return model.eval()


def _factory(spec: str) -> Callable[..., Any]:
    """Import ``package.module:factory``."""
    match = SPEC.fullmatch(spec)
    if match is None:
        raise ModelError(
            f"there is no model {spec!r}{near(spec, MODELS)}; known: {', '.join(MODELS)}, "
            "or your own as package.module:factory."
        )
    module = _import(match[1], spec)
    factory = getattr(module, match[2], None)
    if factory is None:
        hint = near(match[2], vars(module))
        raise ModelError(f"model {spec!r}: module {match[1]} has no {match[2]}{hint}.")
    if not callable(factory):
        raise ModelError(
            f"model {spec!r}: {match[2]} is {type(factory).__name__} and cannot be called; "
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
        raise ModelError(
            f"model {spec!r}: importing {name} failed: {type(error).__name__}: {error}"
        ) from error


def _check_args(name: str, factory: Callable[..., Any], args: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # a callable written in C tells nothing; calling it will
    try:
        signature.bind(**args)
    except TypeError as error:
        known = list(signature.parameters)
        hint = "".join(near(key, known) for key in args if key not in known)
        bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
        takes = ", ".join(map(str, bare)) or "none"
        raise ModelError(f"model {name!r}: {error}{hint}; its args: {takes}.") from error
