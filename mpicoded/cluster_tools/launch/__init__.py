"""The launcher: start mpirun with the right options, and again without the nodes that died."""

from mpicoded.cluster_tools.launch.machines import Host, Limits, Machines
from mpicoded.cluster_tools.launch.supervisor import supervise

__all__ = ["Host", "Limits", "Machines", "supervise"]
