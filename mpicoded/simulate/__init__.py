"""A run on a virtual clock, driven by the very decisions of the runtime: no MPI, no tensors."""

from mpicoded.simulate.run import Simulation, simulate

__all__ = ["Simulation", "simulate"]
