"""What a worker is told before the first unit, and how it travels.

Setups are pickled by the leader for its own workers, inside one MPI job; no file is ever unpickled.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mpicoded.faults import Schedule
from mpicoded.ops import Pixels

Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setup:
    """``programs[stage][unit]`` is what to run; every worker can run every unit.

    ``home`` are the units that are this rank's own and ``inputs[stage][unit]`` the shape of an
    input. ``capacity`` is the largest input to come, in bytes.
    """

    programs: tuple[tuple[Run, ...], ...]
    inputs: tuple[tuple[tuple[int, ...], ...], ...]
    pixels: Pixels | None
    home: tuple[int, ...]
    capacity: int
    threads: int
    faults: Schedule


class _Pickler(pickle.Pickler):
    """Tensors travel as plain arrays: no copy through torch's own archive format."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return torch.from_numpy, (obj.detach().contiguous().numpy(),)
        return NotImplemented


def dump(setup: Setup) -> bytes:
    """Return the setup as bytes."""
    stream = io.BytesIO()
    _Pickler(stream, protocol=5).dump(setup)
    return stream.getvalue()


def load(data: bytes | memoryview) -> Setup:
    """Return the setup that the leader of this MPI job sent."""
    setup = pickle.loads(data)
    assert isinstance(setup, Setup)
    return setup
