"""The launcher: starts mpirun in the right way, and again without the nodes that died."""

from __future__ import annotations

from mpicoded.launch.supervisor import supervise
from mpicoded.launch.target import Host, Limits, Target

__all__ = ["Host", "Limits", "Target", "supervise"]
