"""Classes of images from their outputs, where these are scores.

Several outputs: the largest. One output, with labels 0 and 1: class 1 is above 0.5 if a sigmoid
ends the network, above 0 if a dense or a convolutional layer does. Else, and of what is not finite,
there is no class.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from mpicoded.errors import DataError
from mpicoded.network.graph import Chain, whole_network
from mpicoded.network.ops import AvgPool, Call, Conv, MaxPool, Op

NONE = -1
SIGMOIDS: tuple[Any, ...] = (
    torch.sigmoid, F.sigmoid, torch.special.expit, F.hardsigmoid, "sigmoid",
)  # fmt: skip
LOGITS: tuple[Any, ...] = (F.linear, F.conv2d)
# leave a number what it is, or take the mean or the largest of several
PASSING: tuple[Any, ...] = (
    torch.flatten, torch.squeeze, torch.reshape, torch.mean, torch.amax, F.adaptive_avg_pool2d,
    F.avg_pool2d, torch.unsqueeze, "flatten", "squeeze", "reshape", "view", "mean", "amax",
    "unsqueeze", "contiguous", "float",
)  # fmt: skip
PASSING_MODULES = (
    nn.Flatten, nn.Unflatten, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d,
    nn.MaxPool2d,
)  # fmt: skip


def classes(outputs: npt.ArrayLike, above: float | None = None) -> npt.NDArray[np.int64]:
    """(…, scores) -> (…): the largest, or whether one is ``above``; NONE of what is not finite."""
    scores = np.asarray(outputs)
    found = scores.argmax(-1) if above is None else (scores[..., 0] > above).astype(np.int64)
    return np.where(np.isfinite(scores).all(-1), found, NONE)


def agree(answers: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return where answers have the class ``truth``; one without a class agrees with nothing."""
    return np.asarray((answers == truth) & (answers != NONE))


def border(chain: Chain, labels: npt.ArrayLike | None) -> float | None:
    """Return the least output of ``chain`` that means class 1, if it has one; None if unknown."""
    if chain.output_shape != (1,) or labels is None or np.max(labels, initial=0) > 1:
        return None
    ops = {op.name: op for op in whole_network(chain).ops}
    op = ops.get(chain.head_after(-1).exit)
    while op is not None and _passes(op):
        op = ops.get(op.inputs[0])
    return None if op is None else _border(op)


def check_scores(chain: Chain, labels: npt.ArrayLike) -> float | None:
    """Return :func:`border`; raise DataError if outputs have no classes to hold against labels."""
    above = border(chain, labels)
    if len(chain.output_shape) == 1 and (chain.output_shape[0] > 1 or above is not None):
        return above
    raise DataError(f"no accuracy can be measured: {why_none(chain.output_shape, labels)}")


def _passes(op: Op) -> bool:
    layer = op.layer
    if isinstance(layer, Call):
        return layer.target in PASSING or isinstance(layer.target, PASSING_MODULES)
    return isinstance(layer, AvgPool | MaxPool)


def _border(op: Op) -> float | None:
    target = op.layer.target if isinstance(op.layer, Call) else op.layer
    if target in SIGMOIDS or isinstance(target, nn.Sigmoid | nn.Hardsigmoid):
        return 0.5
    return 0.0 if target in LOGITS or isinstance(target, nn.Linear | nn.Conv2d | Conv) else None


def why_none(outputs: tuple[int, ...], labels: npt.ArrayLike) -> str:
    """Say why outputs of this shape have no classes that could be held against the labels."""
    if len(outputs) > 1:
        return f"the model gives {outputs} numbers an image, no class scores"
    if outputs == ():
        return "the model gives one number an image without an axis of scores: give it one, (B, 1)"
    top = int(np.max(labels, initial=0))
    if top > 1:
        return f"the model gives one number an image, and labels are 0 to {top}"
    return (
        "the model gives one number an image and ends neither in a sigmoid nor in a dense layer, "
        "so that nobody can say where its two classes part: let it end in one of these"
    )
