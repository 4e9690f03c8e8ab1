"""Coded distributed inference of convolutional networks under MPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpicoded.answer import Answer, Mode
    from mpicoded.errors import MpicodedError
    from mpicoded.group import Group

__all__ = ["Answer", "Group", "Mode", "MpicodedError"]


def __getattr__(name: str) -> Any:
    """Import on first use: a worker must not pay for what only a leader needs, nor a report MPI."""
    from importlib import import_module, metadata

    if name == "__version__":
        return metadata.version("mpicoded")
    homes = {
        "Answer": "mpicoded.answer",
        "Mode": "mpicoded.answer",
        "Group": "mpicoded.group",
        "MpicodedError": "mpicoded.errors",
    }
    if name not in homes:
        raise AttributeError(f"module 'mpicoded' has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)
