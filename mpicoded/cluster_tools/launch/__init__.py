"""The launcher: starts mpirun in the right way, and again without the nodes that died."""

from __future__ import annotations

from mpicoded.cluster_tools.launch.supervisor import supervise
from mpicoded.cluster_tools.launch.target import Host, Limits, Target

__all__ = ["Host", "Limits", "Target", "supervise"]
