"""Checkpoints: a training's state as safetensors, from which it goes on exactly."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from mpicoded.errors import DataError, JobError
from mpicoded.models.weights import read_weights
from mpicoded.outputs import Lock, write_whole
from mpicoded.study.history import History


class State:
    """The state that goes on from one epoch to the next, and its file."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
    ) -> None:
        self.network, self.optimizer, self.identity = network, optimizer, identity
        self.history = History()
        self.best = _copy(network.state_dict())

    def note(self, loss: float, validation: float, rate: float, seconds: float) -> None:
        """Record an epoch, and its weights if they are the best so far."""
        if not math.isfinite(loss) or not math.isfinite(validation):
            raise JobError(
                f"training diverged in epoch {self.history.epochs + 1} (loss {loss}, validation "
                f"{validation}): lower rate in [train]"
            )
        self.history.losses.append(loss)
        self.history.validations.append(validation)
        self.history.rates.append(rate)
        self.history.seconds.append(seconds)
        if self.history.best == self.history.epochs - 1:
            self.best = _copy(self.network.state_dict())

    def write(self, path: Path) -> None:
        """Write the checkpoint: tensors, and the rest as JSON in the metadata."""
        tensors = {f"now.{key}": value for key, value in self.network.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{key}": value for key, value in values.items()}
        about = {"job": json.dumps(self.identity), "course": json.dumps(asdict(self.history))}
        write_weights(path, tensors, about)

    def read(self, path: Path) -> None:
        """Go on from a checkpoint; DataError if there is none or it is of another job."""
        if not path.is_file():
            raise DataError(f"there is no checkpoint {path} to resume; train without --resume")
        tensors, about = read_weights(path)
        try:
            self._check(path, json.loads(about.get("job", "{}")))
            self._load(tensors, History(**json.loads(about["course"])))
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            first = " ".join(str(error).split())
            raise DataError(
                f"checkpoint {path} is damaged ({first}); train without --resume"
            ) from error

    def _load(self, tensors: Mapping[str, Tensor], history: History) -> None:
        self.network.load_state_dict(_below("now.", tensors))
        self.best = _below("best.", tensors)
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _below("optimizer.", tensors).items():
            number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.history = history

    def _check(self, path: Path, identity: dict[str, Any]) -> None:
        wrong = [
            f"{key} = {identity.get(key)} there and {value} in the job"
            for key, value in self.identity.items()
            if identity.get(key) != value
        ]
        if wrong:
            raise DataError(
                f"checkpoint {path} is of another training: {'; '.join(wrong[:3])}. Put the job "
                "back as it was, or train without --resume"
            )


def _copy(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in tensors.items()}


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write_weights(path: Path, tensors: Mapping[str, Tensor], about: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; DataError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # safetensors takes no tensors that share memory
        own = {key: t.detach().cpu().contiguous().clone() for key, t in tensors.items()}
        write_whole(path, save(own, about))
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; mend out in [train]") from error


def lock(path: Path) -> Lock:
    """Keep other processes from these weights and their checkpoint; OutputError, DataError."""
    try:
        return Lock(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}; name another file") from error
